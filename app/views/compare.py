"""Two studies, or two training steps of one, side by side and group by group."""

from __future__ import annotations

import polars as pl
import streamlit as st

from analysis.charts import difference_chart, metric_chart, scatter_chart
from analysis.compare import compare_values, of_step
from app import data, parts, state
from mopd.metrics import METRICS


def show(study: data.Study) -> None:
    studies = state.all_studies()
    with_values = [name for name, other in studies.items() if data.has_table(other, "group_values")]
    steps = data.board(study)["step"].drop_nulls().unique().sort().to_list()
    ways = (["studies"] if len(with_values) > 1 else []) + (["steps"] if len(steps) > 1 else [])
    if not ways:
        st.info(
            "There is nothing to compare with: open a folder with several studies (`--studies FOLDER`), or a training "
            "run with several steps."
        )
        return
    boxes = st.columns(3)
    words = {"studies": "two studies", "steps": "two training steps"}
    way = state.choice(boxes[0], "Compare", ways, "way", words=words)
    if way == "studies":
        others = [name for name in with_values if name != study.name]
        named = {name: studies[name].words for name in others}
        other = studies[state.choice(boxes[1], "With", others, "other", words=named)]
        if chosen := overall(study, other):
            groups(study, other, None, chosen)
    else:
        known = [str(s) for s in steps]
        first = state.choice(boxes[1], "First step", known, "from", default=known[0])
        second = state.choice(boxes[2], "Second step", known, "to", default=known[-1])
        groups(study, study, (int(first), int(second)), {})


def overall(study: data.Study, other: data.Study) -> dict[str, str]:
    """The same metric of both over conditions; returns which, empty where they have none in common."""
    here, there = (data.table(s, "metrics") for s in (study, other))
    keys = ["task", "protocol", "score", "metric", "condition"]
    both = here.join(there.select(keys), on=keys, how="semi")
    if both.is_empty():
        st.info("The two studies have no task, protocol, score and condition in common. Choose another one above.")
        return {}
    chosen = parts.choose_numbers(both, st.columns(4))
    metric = METRICS.get(chosen["metric"])
    rows = pl.concat(
        [data.table(s, "metrics", **chosen).with_columns(study=pl.lit(s.name)) for s in (study, other)], how="diagonal"
    )
    title = f"{chosen['metric']} of {chosen['score']}"
    drawn = metric_chart(rows, title=title, chance=metric.chance if metric else None, compare=(study.name, other.name))
    st.caption("Intervals are over each study's own groups. Studies of different groups are not paired.")
    parts.chart(drawn, "compared", "overall", alt_text=f"{title} of two studies by condition")
    return chosen


def groups(study: data.Study, other: data.Study, steps: tuple[int, int] | None, chosen: dict[str, str]) -> None:
    """Groups of the same question in both, by their values; of steps the numbers are chosen here."""
    first, second = (data.table(s, "group_values") for s in (study, other))
    first_board, second_board = data.board(study), data.board(other)
    names = (study.name, other.name)
    if steps:
        names = (f"step {steps[0]}", f"step {steps[1]}")
        first, second = of_step(first, first_board, steps[0]), of_step(second, second_board, steps[1])
    if first.is_empty() or second.is_empty():
        st.info("One of the two has no group that was compared.")
        return
    if steps:
        chosen = parts.choose_numbers(first, st.columns(4))
    conditions = parts.condition_order(
        first.filter(pl.col("condition").is_in(second["condition"].to_list()))["condition"].to_list()
    )
    if not conditions:
        return
    name = parts.choose_condition(st, "Condition", conditions, default=parts.usual(conditions))
    rows = compare_values(first, second, first_board, second_board, **chosen, condition=name)
    st.subheader("Group by group")
    if rows.is_empty():
        st.info("No question was compared in both.")
        return
    metric = METRICS.get(chosen["metric"])
    bounded = metric is not None and max(map(abs, metric.range)) < float("inf")
    left, right = st.columns(2)
    bounds = metric.range if metric and bounded else None
    with left:
        drawn = scatter_chart(rows, names=names, metric=chosen["metric"], bounds=bounds)
        parts.chart(drawn, "scatter", "scatter", alt_text="groups by their value in both")
    with right:
        bars = difference_chart(rows, names=names, metric=chosen["metric"])
        parts.chart(bars, "differences", "differences", alt_text="difference of each group")
    number = st.column_config.NumberColumn
    shown = rows.select("question", "first", "second", "difference", "side")
    config = {n: number(w, format="%.3f") for n, w in zip(("first", "second"), names, strict=True)}
    parts.table(shown, "compared", "compared", column_config=config | {"difference": number(format="%+.3f")})


parts.guarded("Compare", show, "rollouts", "group_values")
