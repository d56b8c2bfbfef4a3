"""Pieces that several pages have: downloads, choices of what is shown, plain lines for what is not there."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import altair as alt
import polars as pl
import streamlit as st

from analysis.charts import PICK, chart_png, condition_order
from app import data, state
from app.lookup import condition_words

__all__ = [
    "SCORE_WORDS",
    "absent",
    "as_csv",
    "chart",
    "choose_condition",
    "choose_numbers",
    "choose_score",
    "csv_button",
    "file_name",
    "guarded",
    "picked",
    "scored_conditions",
    "table",
    "usual",
]

SCORE_WORDS = {
    "teacher_mean": "teacher_mean (mean teacher log-prob, nats per token)",
    "delta_mean": "delta_mean (mean Δ = teacher − student, nats per token)",
    "delta_sum": "delta_sum (sum of Δ, nats)",
}


def file_name(*parts: str, suffix: str) -> str:
    """A name for a download, of letters, digits, dots and dashes only."""
    words = "-".join(re.sub(r"[^A-Za-z0-9.]+", "-", part).strip("-.") for part in parts)
    return f"{words[:120] or 'mopd'}.{suffix}"


def as_csv(frame: pl.DataFrame) -> bytes:
    """CSV with lists as JSON; text that a spreadsheet would run as a formula gets an apostrophe in front."""
    nested = [name for name, kind in frame.schema.items() if kind.is_nested()]
    flat = frame.with_columns(pl.Series(name, _json_rows(frame[name]), dtype=pl.String) for name in nested)
    safe = flat.with_columns(
        pl.when(pl.col(name).str.contains(r"^[=+\-@\t\r]")).then("'" + pl.col(name)).otherwise(name).alias(name)
        for name, kind in flat.schema.items()
        if kind == pl.String
    )
    return safe.write_csv().encode("utf-8", "replace")


def _json_rows(column: pl.Series) -> list[str]:
    return [line.partition(":")[2][:-1] for line in column.to_frame("v").write_ndjson().splitlines()]


def csv_button(frame: pl.DataFrame, label: str, name: str, key: str) -> None:
    """A download of a table as CSV, made only when somebody asks for it."""
    st.download_button(
        label, lambda: as_csv(frame), name, "text/csv", key=key, icon=":material/download:", on_click="ignore"
    )


def table(frame: pl.DataFrame, name: str, key: str, *, label: str = "CSV", **options: Any) -> Any:
    """A table with its download; returns what was selected, if rows can be."""
    options = {"width": "stretch", "hide_index": True, "height": "auto", "placeholder": "–"} | options
    event = st.dataframe(frame, key=key, **options)
    csv_button(frame, label, file_name(state.study().name, name, suffix="csv"), f"csv {key}")
    return event


def chart(drawn: alt.TopLevelMixin, name: str, key: str, *, alt_text: str, select: bool = False) -> dict[str, Any]:
    """A chart with its download as PNG; returns the picked data point, empty without one."""
    kept: Any = drawn
    event: Any = st.altair_chart(
        kept, width="stretch", key=key, on_select="rerun" if select else "ignore", alt=alt_text
    )
    st.download_button(
        "Chart (PNG)",
        lambda: chart_png(drawn),
        file_name(state.study().name, name, suffix="png"),
        "image/png",
        key=f"png {key}",
        icon=":material/image:",
        on_click="ignore",
    )
    return picked(event) if select else {}


def picked(event: Any) -> dict[str, Any]:
    """The data point that was clicked."""
    points = event.selection.get(PICK) or []
    return dict(points[0]) if points else {}


def absent(what: str, command: str) -> None:
    """A plain line for something that this study does not have."""
    st.caption(f"{what} To make it, run `{command}`.")


def choose_numbers(metrics: pl.DataFrame, place: Sequence[Any]) -> dict[str, str]:
    """Choices of task, protocol, score and metric, among those that the table has."""
    chosen: dict[str, str] = {}
    wanted = {"score": "teacher_mean", "metric": "auc", "protocol": "leave_pair_out"}
    for box, name in zip(place, ("task", "protocol", "score", "metric"), strict=True):
        options = metrics[name].unique(maintain_order=True).to_list()
        words = SCORE_WORDS if name == "score" else {}
        chosen[name] = state.choice(box, name.capitalize(), options, name, default=wanted.get(name), words=words)
        metrics = metrics.filter(pl.col(name) == chosen[name])
    return chosen


def scored_conditions(study: data.Study) -> list[str]:
    """The study's conditions in table order."""
    names = (
        data.table(study, "metrics")["condition"]
        if data.has_table(study, "metrics")
        else pl.Series([], dtype=pl.String)
    )
    if names.is_empty() and data.has_table(study, "contexts"):
        names = data.names(study, "contexts", "condition")
    return condition_order(names.to_list())


def choose_condition(
    place: Any, label: str, options: Sequence[str], name: str = "condition", default: str | None = None
) -> str:
    """A choice of condition, shown with its label."""
    return state.choice(place, label, options, name, default=default, words=condition_words(options))


def usual(conditions: Sequence[str]) -> str:
    """The condition to begin with: the paper's best, or the last in table order."""
    return "2s1f" if "2s1f" in conditions else conditions[-1]


def choose_score(place: Any, default: str = "delta_mean") -> str:
    """A choice among the three scores."""
    return state.choice(place, "Score", list(SCORE_WORDS), "score", default=default, words=SCORE_WORDS)


def guarded(title: str, show: Callable[[data.Study], None], *needed: str) -> None:
    """Show a page under its title, or say in plain words which table it lacks."""
    study = state.study()
    st.title(title)
    missing = [name for name in needed if not data.has_table(study, name)]
    if missing:
        st.info(
            f"This folder has no {', '.join(f'{name}.parquet' for name in missing)}, which this page shows. "
            "A study that ran to its end has it: `python -m analysis.signal_quality`."
        )
        return
    show(study)
