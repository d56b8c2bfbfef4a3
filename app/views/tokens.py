"""One rollout, token by token: under a condition, under two side by side, or what the two differ in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl
import streamlit as st
import streamlit.components.v2 as component_v2

from analysis.charts import condition_order
from app import data, parts, state
from app.lookup import condition_words, context_row
from app.markup import facts_html
from app.target import Target, choose_target
from app.tokens_html import (
    CSS,
    JS,
    KINDS,
    Kind,
    Side,
    mark_kind,
    standalone,
    token_numbers,
    token_view,
    view_values,
)
from mopd.tokenview import RANKS, VALUES, error_mask, jump_targets, line_table, marks_of, token_difference, token_table

MODES = {"one": "one condition", "two": "two side by side", "difference": "first minus second"}
BASELINE = "shell_only"  # the same wording without a peer: what is left is the peers' doing
FIRST_ERROR = "wrong equation"
MARK_TABLES = ("tokens", "marks")
FIXED = {"position", "token_id", "text", "line", "cumulative", "rank", *RANKS, *VALUES}
MOUNT = """
export default function ({ data, parentElement }) {
  const place = parentElement.querySelector(".place");
  place.innerHTML = data.view;
  mountTokenView(place.firstElementChild, data.values);
}
"""


def show(study: data.Study) -> None:
    target = choose_target(study)
    if target is None:
        return
    boxes = st.columns(4)
    mode = state.choice(boxes[0], "View", list(MODES), "mode", words=MODES)
    conditions = condition_order(target.conditions)
    first = parts.choose_condition(boxes[1], "Condition", conditions, default=parts.usual(conditions))
    chosen = [first]
    if mode != "one":
        second = parts.choose_condition(boxes[2], "Second condition", conditions, "second", default=BASELINE)
        chosen.append(second)
    tables = {name: tokens_under(study, target, name) for name in chosen}
    lacking = [name for name, found in tables.items() if found is None]
    if lacking:
        st.info("tokens.parquet has no row for this rollout under this condition.")
        return
    whole = [found for name in chosen if (found := tables[name]) is not None]
    kind = choose_kind(boxes[3], whole[0])
    row = st.container(horizontal=True, vertical_alignment="center")
    scored = set(data.group_rows(study, "scores", target.group_id)["rollout_id"])
    state.step(row, [r for r in target.names if r in scored], "rollout", what="rollout", keys=("P", "N"))
    by_line = state.toggle(row, "Line by line", "lines", help="for code: each line with the sum of its Δ")
    draw(study, target, columns(mode, chosen, whole, by_line), kind, mode)


def tokens_under(study: data.Study, target: Target, condition: str) -> pl.DataFrame | None:
    """The tokens with their texts and marks, under one condition."""
    context = context_row(target.assignments, target.contexts, condition, target.unit, target.rollout_id)
    if context is None:
        return None
    key = (target.group_id, context["context_id"], target.rollout_id)
    row = data.token_row(study, "tokens", *key)
    if row is None:
        return None
    n_tokens = len(row["token_ids"])
    marks: dict[str, Any] = {}
    for name in MARK_TABLES:
        marks |= marks_of(data.token_row(study, name, *key) or {}, n_tokens)
    texts = data.group_rows(study, "texts", target.group_id)
    pieces = None
    if not texts.is_empty():
        mine = texts.filter(pl.col("rollout_id") == target.rollout_id)["token_texts"].to_list()
        pieces = mine[0] if mine and len(mine[0]) == n_tokens else None
        if pieces is not None and any(wrong := error_mask(pieces)):
            marks[FIRST_ERROR] = wrong
    return token_table(row, pieces, marks)


def columns(mode: str, names: Sequence[str], whole: Sequence[pl.DataFrame], by_line: bool) -> list[Side]:
    """What stands in the view's columns."""
    words = condition_words(names)
    titled = [(words[name], frame) for name, frame in zip(names, whole, strict=True)]
    if mode == "difference":
        titled = [(f"{words[names[0]]} − {words[names[1]]}", token_difference(whole[1], whole[0]))]
    by_line = by_line and all(frame["text"].null_count() < frame.height for _, frame in titled)
    return [Side(title=t, tokens=f, lines=line_table(f) if by_line else None) for t, f in titled]


def choose_kind(place: Any, tokens: pl.DataFrame) -> Kind:
    """What the colours say: a value that the tokens have, or a mark."""
    kinds = {name: kind for name, kind in KINDS.items() if tokens[name].null_count() < tokens.height}
    marks = [n for n, kind in tokens.schema.items() if n not in FIXED and not kind.is_integer()]  # numbers of things
    kinds |= {name: mark_kind(tokens, name) for name in marks}
    chosen = state.choice(place, "Colour by", list(kinds), "colour", words={n: k.words for n, k in kinds.items()})
    return kinds[chosen]


def draw(study: data.Study, target: Target, sides: list[Side], kind: Kind, mode: str) -> None:
    """The view, its downloads, and what it lacks."""
    shown = kind if kind.column in sides[0].tokens.columns else KINDS["delta"]
    if mode == "difference" and not shown.sign:
        shown = Kind(
            column=shown.column,
            words=f"difference in {shown.words}",
            sign=True,
            steps=KINDS["delta"].steps,
            legend=KINDS["delta"].legend,
        )
    row = target.rollouts.filter(pl.col("rollout_id") == target.rollout_id).row(0, named=True)
    facts = {
        "rollout": target.names[target.rollout_id],
        "tokens": sides[0].tokens.height,
        "reward": row["reward"],
        "extracted answer": row["answer"],
        "verifier says": row["feedback"],
        "ended by itself": {True: "yes", False: "no, cut by the length limit"}.get(row["finished"]),
    }
    st.html(facts_html(facts))
    caption = "cumulative difference in Δ" if mode == "difference" else "cumulative Δ"
    view = token_view(sides, shown, jumps=jump_targets(sides[0].tokens), caption=caption)
    component()(data={"view": view, "values": view_values(sides)}, key="tokens")
    if sides[0].tokens["text"].null_count() == sides[0].tokens.height:
        parts.absent(
            "This study has no token texts, so ids are shown.", "python -m analysis.signal_quality --resume --output …"
        )
    if steps := data.info(study).get("small_copy", {}).get("steps_nats"):
        st.caption(
            f"A small copy of a study: log-probs are to the nearest {steps['teacher_logprob']:.3f} nats here, "
            f"entropies to {steps['entropy']:.3f}. The scores on the other pages are sums of the exact values."
        )
    if mode != "difference" and not set(sides[0].tokens.columns) - FIXED:
        st.caption(
            "There is no mark to colour by here (copied, in the answer, …): `python -m analysis.signal_quality` writes "
            "them with a study."
        )
    downloads(study, target, sides, view)


def downloads(study: data.Study, target: Target, sides: list[Side], view: str) -> None:
    """The view as a file by itself, and its numbers."""
    name = (study.name, "tokens", target.names[target.rollout_id][:2])
    title = f"{target.names[target.rollout_id]} of {target.group_id}"
    boxes = st.container(horizontal=True)
    boxes.download_button(
        "Standalone HTML",
        lambda: standalone(view, sides, title),
        parts.file_name(*name, suffix="html"),
        "text/html",
        icon=":material/download:",
        on_click="ignore",
    )
    with boxes:
        parts.csv_button(token_numbers(sides), "CSV", parts.file_name(*name, suffix="csv"), "csv tokens")


def component() -> Any:
    """The component that shows a token view; streamlit wants it registered in every run."""
    return component_v2.component("mopd_tokens", html='<div class="place"></div>', css=CSS, js=JS + MOUNT)


parts.guarded("Tokens", show, "rollouts", "scores", "tokens", "assignments", "contexts")
