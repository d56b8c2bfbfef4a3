"""What changes over the steps of a training run, from the rollouts that it sampled and their scores."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from mopd.diversity import pass_at_k
from mopd.peers import normalise
from mopd.rollouts import prompt_key

__all__ = ["CURVES", "gap_curves", "training_curves"]

CURVES = {
    "reward": "mean reward of a rollout",
    "mean@k": "share of successes among a group's judged rollouts, mean over groups",
    "pass@k": "chance that one of k rollouts succeeds, mean over groups",
    "ever solved": "share of the prompts seen so far with a success so far",
    "distinct responses": "different texts over rollouts of a group, mean over groups",
}
"""Curves of rollouts and what each means."""

SCHEMA = {"step": pl.Int64, "curve": pl.String, "series": pl.String, "value": pl.Float64, "n": pl.Int64}


def training_curves(rollouts: pl.DataFrame, k: Sequence[int] = (1, 2, 4, 8)) -> pl.DataFrame:
    """Curves over steps; rollouts without a step take no part.

    Args:
        rollouts: ``rollouts.parquet`` of a run.
        k: for pass@k; a k above the smallest number of judged rollouts in a step's groups is left out of that step.

    Returns:
        ``step, curve`` (of ``CURVES``), ``series, value`` and ``n`` (rollouts, groups or prompts in the mean).
    """
    rows = rollouts.filter(pl.col("step").is_not_null())
    if rows.is_empty():
        return pl.DataFrame(schema=SCHEMA)
    judged = pl.col("success").is_not_null()
    groups = (
        rows.with_columns(
            prompt=pl.Series([prompt_key(p) for p in rows["prompt"].to_list()], dtype=pl.String),
            text=pl.Series([normalise(t or "") for t in rows["response"]], dtype=pl.String),
        )
        .group_by("step", "group_id", maintain_order=True)
        .agg(
            pl.col("prompt").first(),
            n=judged.sum().cast(pl.Int64),
            successes=pl.col("success").sum().cast(pl.Int64),
            distinct=pl.col("text").n_unique() / pl.len(),
        )
        .sort("step")
    )
    reward = rows.filter(pl.col("reward").is_not_null()).group_by("step").agg(value=pl.col("reward").mean(), n=pl.len())
    judged_groups = groups.filter(pl.col("n") > 0)
    rate = judged_groups.group_by("step").agg(value=(pl.col("successes") / pl.col("n")).mean(), n=pl.len())
    distinct = groups.group_by("step").agg(value=pl.col("distinct").mean(), n=pl.len())
    parts = [
        _named(reward, "reward", "reward"),
        _named(rate, "mean@k", "mean@k"),
        _pass_curves(judged_groups, k),
        _named(_ever_solved(groups), "ever solved", "ever solved"),
        _named(distinct, "distinct responses", "distinct responses"),
    ]
    return pl.concat(parts).sort("curve", "series", "step")


def _named(frame: pl.DataFrame, curve: str, series: str) -> pl.DataFrame:
    return frame.select(
        pl.col("step").cast(pl.Int64),
        pl.lit(curve).alias("curve"),
        pl.lit(series).alias("series"),
        pl.col("value").cast(pl.Float64),
        pl.col("n").cast(pl.Int64),
    )


def _pass_curves(groups: pl.DataFrame, k: Sequence[int]) -> pl.DataFrame:
    rows = []
    for (step,), part in groups.group_by("step", maintain_order=True):
        for size in k:
            if size <= min(part["n"]):
                values = [pass_at_k(n, c, size) for n, c in part.select("n", "successes").iter_rows()]
                rows.append((step, "pass@k", f"pass@{size}", sum(values) / len(values), len(values)))
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def _ever_solved(groups: pl.DataFrame) -> pl.DataFrame:
    seen: set[str] = set()
    solved: set[str] = set()
    rows = []
    for (step,), part in groups.group_by("step", maintain_order=True):
        seen |= set(part["prompt"])
        solved |= set(part.filter(pl.col("successes") > 0)["prompt"])
        rows.append((step, len(solved) / len(seen), len(seen)))
    return pl.DataFrame(rows, schema={"step": pl.Int64, "value": pl.Float64, "n": pl.Int64}, orient="row")


def gap_curves(scores: pl.DataFrame, board: pl.DataFrame) -> pl.DataFrame:
    """The gap between teacher and student over steps: mean Δ of a rollout, nats per token, a series per condition.

    Args:
        scores: ``scores.parquet`` of a run.
        board: ``groups.parquet``, for the steps.

    Returns:
        As ``training_curves``, with the curve ``gap``; ``n`` counts (context, target) rows.
    """
    steps = board.filter(pl.col("step").is_not_null()).select("group_id", "step")
    rows = scores.join(steps, on="group_id", how="inner", validate="m:1").filter(pl.col("delta_mean").is_not_null())
    means = rows.group_by("step", "condition").agg(value=pl.col("delta_mean").mean(), n=pl.len())
    named = means.select("step", pl.lit("gap").alias("curve"), pl.col("condition").alias("series"), "value", "n")
    return named.cast(dict(SCHEMA)).sort("series", "step")  # pyright: ignore[reportArgumentType]
