"""AUC by how hard the prompt was for the policy: strata by the success rate of the group.

A context can help on prompts that are mostly failed and not on those that are mostly solved; a mean over groups hides
that. Strata are fixed beforehand (``STRATA``), so that no one chooses them by looking. Each has its own groups and its
own interval; between strata nothing is tested.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from mopd.inference import DRAWS, bootstrap_intervals
from mopd.metrics import ALL_TASKS

__all__ = ["DIFFICULTY_TABLE", "STRATA", "difficulty_table"]

STRATA = ("up to 1/4", "up to 1/2", "up to 3/4", "above 3/4")
"""By the share of successes among a group's judged rollouts: (0, 1/4], (1/4, 1/2], (1/2, 3/4], (3/4, 1)."""

DIFFICULTY_TABLE = {
    **dict.fromkeys(("task", "protocol", "stratum", "condition", "score"), pl.String()),
    **dict.fromkeys(("value", "ci_low", "ci_high"), pl.Float64()),
    **dict.fromkeys(("n_groups", "n_pairs"), pl.Int64()),
}
"""Columns and types of the table: the AUC of a condition over the groups of a stratum."""


def difficulty_table(
    group_values: pl.DataFrame,
    rollouts: pl.DataFrame,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    confidence: float = 0.95,
) -> pl.DataFrame:
    """The AUC of each condition by stratum: the rows of ``DIFFICULTY_TABLE``; a stratum without a group has none.

    Args:
        group_values: ``group_values.parquet``.
        rollouts: group_id and success (null if not judged) of every rollout.
        draws, seed, confidence: of the bootstrap over the groups of a stratum.
    """
    rate = rollouts.group_by("group_id").agg(rate=pl.col("success").mean())
    rows = (
        _with_all_tasks(group_values.filter(pl.col("metric") == "auc", pl.col("value").is_not_nan()))
        .join(rate, on="group_id", how="inner", validate="m:1")
        .with_columns(place=(pl.col("rate") * len(STRATA)).ceil().cast(pl.Int64).clip(1, len(STRATA)) - 1)
    )
    found = []
    for (task, protocol, score, place), part in rows.group_by("task", "protocol", "score", "place"):
        wide = part.pivot("condition", index="group_id", values="value").sort("group_id")
        names = wide.columns[1:]
        pairs = dict(part.group_by("condition").agg(pl.col("n_pairs").sum()).iter_rows())
        values_GK = wide.select(names).fill_null(float("nan")).to_numpy().astype(np.float64)
        value, low, high, n = bootstrap_intervals(values_GK, draws=draws, seed=seed, confidence=confidence)
        for k, name in enumerate(names):
            numbers = (value[k], low[k], high[k], int(n[k]), pairs[name])
            found.append((task, protocol, STRATA[place], name, score, *numbers))
    table = pl.DataFrame(found, schema=DIFFICULTY_TABLE, orient="row").with_columns(
        pl.selectors.float().fill_nan(None)
    )
    rank = pl.col("stratum").replace_strict({name: i for i, name in enumerate(STRATA)}, return_dtype=pl.Int64)
    return table.sort("task", "protocol", "score", rank, "condition")


def _with_all_tasks(values: pl.DataFrame) -> pl.DataFrame:
    """The rows, and those of all tasks together if there are several."""
    if values["task"].n_unique() < 2:
        return values
    return pl.concat([values, values.with_columns(task=pl.lit(ALL_TASKS))])
