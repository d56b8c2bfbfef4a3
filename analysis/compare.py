"""Two studies, or two training steps of one, group by group."""

from __future__ import annotations

from typing import Any

import polars as pl

__all__ = ["compare_values", "of_step"]

KEYS = ("task", "protocol", "condition", "score", "metric")


def of_step(values: pl.DataFrame, board: pl.DataFrame, step: int) -> pl.DataFrame:
    """The rows of ``group_values`` whose group was sampled at a training step.

    Args:
        values: ``group_values.parquet``.
        board: ``groups.parquet``.
        step: of the rollouts.
    """
    return values.join(board.filter(pl.col("step") == step).select("group_id"), on="group_id", how="semi")


def compare_values(
    first: pl.DataFrame,
    second: pl.DataFrame,
    first_board: pl.DataFrame,
    second_board: pl.DataFrame,
    **equal: Any,
) -> pl.DataFrame:
    """Groups of the same task and question in both, with their values side by side.

    Where a question has several groups (sampled twice), their values are averaged first.

    Args:
        first, second: ``group_values.parquet``.
        first_board, second_board: ``groups.parquet`` of the two.
        equal: values of columns that rows must have, such as ``metric="auc"``.

    Returns:
        ``task, protocol, condition, score, metric, question, first, second, difference`` (second minus first),
        ``side`` (which is higher), and ``first_group, second_group``; rows that only one side defines are left out.
    """
    sides = []
    for name, values, board in (("first", first, first_board), ("second", second, second_board)):
        rows = values.filter(*(pl.col(column) == value for column, value in equal.items()))
        asked = rows.join(board.select("group_id", "question"), on="group_id", how="left", validate="m:1")
        grouped = asked.filter(pl.col("value").is_not_null()).group_by(*KEYS, "question", maintain_order=True)
        sides.append(grouped.agg(pl.col("value").mean().alias(name), pl.col("group_id").first().alias(f"{name}_group")))
    joined = sides[0].join(sides[1], on=[*KEYS, "question"], how="inner", validate="1:1", maintain_order="left")
    difference = pl.col("second") - pl.col("first")
    side = (
        pl.when(difference > 0)
        .then(pl.lit("second higher"))
        .when(difference < 0)
        .then(pl.lit("first higher"))
        .otherwise(pl.lit("equal"))
    )
    columns = ("question", "first", "second", "difference", "side", "first_group", "second_group")
    return joined.with_columns(difference=difference, side=side).select(*KEYS, *columns)
