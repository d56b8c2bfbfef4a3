"""Figures and sections of a report, and the rows of a study that they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from analysis.charts import condition_order
from analysis.reporting.findings import SCORES_SHOWN
from analysis.reporting.finished import FinishedStudy

__all__ = [
    "Figure",
    "Section",
    "again",
    "by_condition",
    "few_groups",
    "metric_rows",
    "percent",
    "resumed",
    "sized",
]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A chart with the table that it draws; a figure without a chart is a table alone."""

    key: str
    caption: str
    table: pl.DataFrame
    chart: Any = None


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading with its figures; ``missing`` says what was not made and which command makes it."""

    key: str
    title: str
    text: str = ""
    figures: list[Figure] = field(default_factory=list)
    missing: str = ""


def again(study: FinishedStudy, flags: str) -> str:
    """The command that makes what is missing, in a study of its own."""
    arguments = study.info.get("arguments", {})
    rollouts = f" --rollouts {arguments['rollouts']}" if arguments.get("rollouts") else ""
    teacher = arguments.get("teacher", "hf")
    who = "" if teacher == "hf" else f" --teacher {teacher}"
    if teacher in ("hf", "vllm") and arguments.get("model"):
        who += f" --model {arguments['model']}"
    return f"python -m analysis.signal_quality{rollouts}{who} {flags}"


def resumed(study: FinishedStudy) -> str:
    """How a table that this study could have is made: scores are kept, so nothing is forwarded again."""
    return f"python -m analysis.signal_quality --resume --output {study.path} with the study's own options"


def metric_rows(study: FinishedStudy, protocol: str, names: Sequence[str]) -> pl.DataFrame:
    """``metrics.parquet`` of the widest task, one protocol, some metrics, and the scores that a report shows."""
    return study.tables["metrics"].filter(
        pl.col("task") == (study.task or ""),
        pl.col("protocol") == protocol,
        pl.col("metric").is_in(list(names)),
        pl.col("score").is_in(SCORES_SHOWN),
    )


def by_condition(rows: pl.DataFrame, *first: str) -> pl.DataFrame:
    """Rows by ``first``, then by condition as tables show them; those without a condition come first."""
    place = {name: i for i, name in enumerate(condition_order(set(rows["condition"].drop_nulls())))}
    rank = pl.col("condition").replace_strict(place, return_dtype=pl.Int64, default=None)
    return rows.sort(*first, rank, maintain_order=True, nulls_last=False) if place else rows


def sized(rows: pl.DataFrame) -> str:
    """How much a panel rests on; null numbers of pairs are left out."""
    groups, pairs = (rows[name].max() for name in ("n_groups", "n_pairs"))
    words = [(groups, "group"), (pairs, "pair")]
    return ", ".join(f"{n} {word}{'s' * (n != 1)}" for n, word in words if n is not None)


def few_groups(drawn: pl.DataFrame) -> str:
    """A sentence on points without an interval, if there are any."""
    if drawn.filter(pl.col("value").is_not_null() & pl.col("ci_low").is_null()).is_empty():
        return ""
    return " A point without a line rests on too few groups for an interval."


def percent(study: FinishedStudy) -> str:
    """The confidence of the intervals, in words."""
    return f"{100 * study.confidence:g}%"
