"""A board of groups: how many succeeded, how well each condition ranks them, and what is odd about them."""

from __future__ import annotations

import polars as pl
import streamlit as st

from analysis.charts import condition_order
from app import data, parts, state
from app.filters import SORTS, filtered
from app.markup import plain
from mopd.browsing import FLAGS


def show(study: data.Study) -> None:
    whole = data.board(study)
    if whole.is_empty():
        st.info("This folder has no group of rollouts.")
        return
    chosen, conditions = choose(study)
    filters(whole, bool(conditions))
    values = pl.DataFrame()
    if chosen:
        values = data.table(study, "group_values", **chosen)
        conditions = [c for c in conditions if c in set(values["condition"])]
    first = values.filter(pl.col("condition") == st.query_params.get("condition", "")) if conditions else values
    rows = filtered(study, first.select("group_id", "value") if conditions else None)
    st.caption(f"{rows.height:,} of {whole.height:,} groups. Select a row to open it.")
    board(rows, values, conditions, chosen.get("metric", ""))


def choose(study: data.Study) -> tuple[dict[str, str], list[str]]:
    """Which numbers the board shows: task, protocol, score and metric, and the condition that it can be sorted by."""
    values = data.table(study, "metrics")
    if values.is_empty() or not data.has_table(study, "group_values"):
        parts.absent("No metric of single groups here.", "python -m analysis.signal_quality")
        return {}, []
    boxes = st.columns(5, vertical_alignment="bottom")
    chosen = parts.choose_numbers(values, boxes[:4])
    conditions = condition_order(values["condition"].to_list())
    parts.choose_condition(boxes[4], "Condition (for sorting)", conditions)
    return chosen, conditions


def filters(whole: pl.DataFrame, scored: bool) -> None:
    """The boxes of the filter; ``filtered`` reads what they wrote into the URL."""
    most = int(whole["n_success"].max() or 0)  # pyright: ignore[reportArgumentType]
    boxes = st.columns([3, 3, 1.4, 1.4, 2.4], vertical_alignment="bottom")
    state.text(boxes[0], "Search", "words", placeholder="words in prompt or responses")
    present = set(whole["flags"].explode(empty_as_null=True).drop_nulls())
    words = "; ".join(f"{plain(flag)}: {plain(meaning)}" for flag, meaning in FLAGS.items())
    state.many(boxes[1], "Flags", [flag for flag in FLAGS if flag in present], "flags", help=words)
    state.number(boxes[2], "Successes from", "lowest", lowest=0, highest=most, default=0)
    state.number(boxes[3], "to", "highest", lowest=0, highest=most, default=most)
    sorts = [name for name in SORTS if scored or name not in ("delta", "low", "high")]
    state.choice(boxes[4], "Order", sorts, "sort", words={name: words for name, (words, _) in SORTS.items()})
    if scored:
        state.toggle(st, "Only groups that were compared", "compared")


def board(rows: pl.DataFrame, values: pl.DataFrame, conditions: list[str], metric: str) -> None:
    """The table; a selected row opens the group."""
    shown = rows.with_columns(successes=pl.concat_str("n_success", pl.lit(" of "), "n_rollouts"))
    if conditions:
        wide = values.pivot("condition", index="group_id", values="value").select(
            "group_id", *(pl.col(c).alias(f"{metric} {c}") for c in conditions)
        )
        shown = shown.join(wide, on="group_id", how="left", validate="1:1", maintain_order="left")
    numbers = [f"{metric} {c}" for c in conditions]
    columns = ["question", "task", "step", "policy", "successes", "success_rate", *numbers]
    columns += ["largest_delta", "largest_condition", "flags", "n_unjudged", "group_id"]
    columns = [c for c in columns if shown[c].null_count() < max(shown.height, 1)]
    if shown["task"].n_unique() <= 1:
        columns = [c for c in columns if c not in ("task", "policy")]
    number = st.column_config.NumberColumn
    event = parts.table(
        shown.select(columns),
        "groups",
        "board",
        on_select="rerun",
        selection_mode="single-row",
        height=min(560, 37 * (shown.height + 1)),
        column_config={
            "question": st.column_config.TextColumn("question", width="large", pinned=True),
            "success_rate": st.column_config.ProgressColumn("success rate", format="%.2f", min_value=0, max_value=1),
            **{name: number(name, format="%.3f") for name in numbers},
            "largest_delta": number("largest mean Δ (nats per token)", format="%+.3f"),
            "largest_condition": "under condition",
            "flags": st.column_config.ListColumn("flags"),
            "n_unjudged": "not judged",
        },
    )
    if event.selection.rows:
        state.go("group", group=rows["group_id"][event.selection.rows[0]], rollout=None, unit=None)


parts.guarded("Groups", show, "rollouts")
