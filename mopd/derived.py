"""What the controls say when they are subtracted: the derived quantities of a study.

All are differences of log-probs of the same target under two contexts, in nats; Δ is teacher minus student.

* ``specificity``: Δ under ``2s1f`` minus Δ under ``other_prompt``: what peers of this very prompt add to what peers of
  any prompt of the task would.
* ``label_effect``: Δ under ``2s1f`` minus Δ under ``label_swapped``: what true headings add.
* ``shell_effect``: Δ under ``shell_only``: what the wording alone does.
* ``copy_component``: the teacher's log-prob under ``peers_only``: what can be said of a response without the question.

Each is given for successes, for failures, and for the difference of the two, which is what helps to tell them apart.
A target's value is first averaged over its units, then over the group's targets of a class, then over groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from mopd.inference import DRAWS, bootstrap_intervals
from mopd.metrics import ALL_TASKS

__all__ = ["DERIVED_TABLE", "QUANTITIES", "Quantity", "derived_table"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantity:
    """A row of ``QUANTITIES``: the scores under ``condition``, less those under ``minus`` if there is one."""

    name: str
    condition: str
    minus: str | None
    scores: tuple[str, ...]


QUANTITIES: dict[str, Quantity] = {
    q.name: q
    for q in (
        Quantity(name="specificity", condition="2s1f", minus="other_prompt", scores=("delta_mean", "delta_sum")),
        Quantity(name="label_effect", condition="2s1f", minus="label_swapped", scores=("delta_mean", "delta_sum")),
        Quantity(name="shell_effect", condition="shell_only", minus=None, scores=("delta_mean", "delta_sum")),
        Quantity(name="copy_component", condition="peers_only", minus=None, scores=("teacher_mean",)),
    )
}

DERIVED_TABLE = {
    **dict.fromkeys(("task", "protocol", "quantity", "score", "targets"), pl.String()),
    **dict.fromkeys(("value", "ci_low", "ci_high"), pl.Float64()),
    "n_groups": pl.Int64(),
}
"""Columns and types of ``derived.parquet``; ``targets`` is success, failure or success - failure."""

_CLASSES = ("success", "failure", "success - failure")


def derived_table(scored: pl.DataFrame, *, draws: int = DRAWS, seed: int = 0, confidence: float = 0.95) -> pl.DataFrame:
    """The derived quantities whose conditions were run: the rows of ``derived.parquet``.

    Args:
        scored: a row per (condition, unit, target) on common support, as ``mopd.metrics.group_values`` takes it.
    """
    there = set(scored["condition"].unique())
    parts = []
    for quantity in QUANTITIES.values():
        if {quantity.condition, quantity.minus} - {None} <= there:
            parts += [_intervals(_group_means(scored, quantity, s), draws, seed, confidence) for s in quantity.scores]
    empty = pl.DataFrame(schema=DERIVED_TABLE)
    table = pl.concat([empty, *parts]).with_columns(pl.selectors.float().fill_nan(None))
    return table.sort("task", "protocol", "quantity", "score", "targets")


def _group_means(scored: pl.DataFrame, quantity: Quantity, score: str) -> pl.DataFrame:
    """A row per (task, protocol, group): the mean over successes, over failures, and their difference."""
    keys = ("task", "protocol", "group_id", "unit_id", "rollout_id")
    rows = scored.filter(pl.col("condition") == quantity.condition).select(*keys, "success", value=score)
    if quantity.minus is not None:
        other = scored.filter(pl.col("condition") == quantity.minus).select(*keys, minus=score)
        rows = rows.join(other, on=keys, how="inner", validate="1:1").with_columns(
            value=pl.col("value") - pl.col("minus")
        )
    targets = rows.group_by("task", "protocol", "group_id", "rollout_id", maintain_order=True).agg(
        pl.col("value").mean(), pl.col("success").first()
    )
    means = targets.group_by("task", "protocol", "group_id", maintain_order=True).agg(
        pl.col("value").filter("success").mean().alias("success"),
        pl.col("value").filter(~pl.col("success")).mean().alias("failure"),
    )
    return means.with_columns(
        (pl.col("success") - pl.col("failure")).alias("success - failure"),
        quantity=pl.lit(quantity.name),
        score=pl.lit(score),
    ).sort("task", "protocol", "group_id")


def _intervals(means: pl.DataFrame, draws: int, seed: int, confidence: float) -> pl.DataFrame:
    tasks = means["task"].unique().to_list()
    if len(tasks) > 1 and ALL_TASKS not in tasks:
        means = pl.concat([means, means.with_columns(task=pl.lit(ALL_TASKS))])
    rows = []
    for (task, protocol, quantity, score), part in means.group_by(
        "task", "protocol", "quantity", "score", maintain_order=True
    ):
        values_GK = part.select(_CLASSES).fill_null(float("nan")).to_numpy().astype(np.float64)
        value, low, high, n = bootstrap_intervals(values_GK, draws=draws, seed=seed, confidence=confidence)
        for k, targets in enumerate(_CLASSES):
            rows.append((task, protocol, quantity, score, targets, value[k], low[k], high[k], int(n[k])))
    return pl.DataFrame(rows, schema=DERIVED_TABLE, orient="row")
