"""The messages that the teacher read for a target, word for word, and what two conditions differ in."""

from __future__ import annotations

from typing import Any

import polars as pl
import streamlit as st

from analysis.charts import condition_order
from app import data, parts, state
from app.lookup import context_row, cuts_words, last_message, sections_of
from app.markup import CONTEXT_CSS, context_html, difference_html, facts_html
from app.target import Target, choose_target

NONE = "nothing"


def show(study: data.Study) -> None:
    target = choose_target(study)
    if target is None:
        return
    conditions = condition_order(target.conditions)
    boxes = st.columns(2)
    first = parts.choose_condition(boxes[0], "Condition", conditions, default=parts.usual(conditions))
    others = [NONE, *(c for c in conditions if c != first)]
    second = parts.choose_condition(boxes[1], "Compare with", others, "second", default=NONE)
    chosen = [c for c in (first, second) if c != NONE]
    rows = {c: context_row(target.assignments, target.contexts, c, target.unit, target.rollout_id) for c in chosen}
    wording = data.info(study).get("config", {}).get("templates", {})
    for place, name in zip(st.columns(len(chosen)), chosen, strict=True):
        with place:
            one(target, name, rows[name], wording)
    if len(chosen) == 2 and (a := rows[first]) is not None and (b := rows[second]) is not None:
        st.subheader("What changes from the first to the second")
        st.caption("Struck through: only in the first. Underlined: only in the second.")
        texts = (whole_text(a), whole_text(b))
        st.html(CONTEXT_CSS + difference_html(*texts))


def whole_text(context: dict[str, Any]) -> str:
    """All messages as one text, each under its role."""
    if isinstance(context["messages"], str):
        return context["messages"]
    return "\n\n".join(f"[{m['role']}]\n{m['content']}" for m in context["messages"])


def one(target: Target, name: str, context: dict[str, Any] | None, wording: dict[str, str]) -> None:
    """A context: its size, what was cut, its messages, and the target that follows."""
    if context is None:
        st.info("This condition could not be filled for this comparison.")
        return
    score = target.scores.filter(pl.col("context_id") == context["context_id"])
    facts = {
        "condition": name,
        "context (tokens)": f"{context['n_tokens']:,}",
        "peers": len(context["peers"]),
        "target's mean teacher log-prob (nats)": f"{score['teacher_mean'][0]:.3f}" if score.height else None,
        "target's mean Δ (nats)": f"{score['delta_mean'][0]:+.3f}" if score.height else None,
    }
    st.html(facts_html(facts))
    if cuts := cuts_words(context, target.names):
        st.warning(f"Shortened to fit: {cuts}.")
    before, role, _ = last_message(context["messages"])
    sections = sections_of(context, target.rollouts, wording)
    st.html(CONTEXT_CSS + context_html(before, role, sections, target.names))
    said = target.rollouts.filter(pl.col("rollout_id") == target.rollout_id)["response"][0]
    with st.expander(f"Then the target's {score['n_tokens'][0] if score.height else ''} tokens are read"):
        st.text(said or "")
    st.download_button(
        "Context (text)",
        whole_text(context),
        parts.file_name(state.study().name, "context", name, suffix="txt"),
        "text/plain",
        key=f"context {name}",
        icon=":material/download:",
        on_click="ignore",
    )


parts.guarded("Contexts", show, "rollouts", "scores", "assignments", "contexts")
