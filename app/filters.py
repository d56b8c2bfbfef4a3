"""The groups that the board's filter keeps, in its order: what the URL says, applied to ``groups.parquet``."""

from __future__ import annotations

import polars as pl
import streamlit as st

from app.data import Study, board, search_groups
from mopd.browsing import FLAGS

__all__ = ["SORTS", "filtered"]

SORTS = {
    "file": ("order of the file", []),
    "hard": ("hardest first", [("success_rate", False)]),
    "easy": ("easiest first", [("success_rate", True)]),
    "delta": ("largest Δ first", [("size", True)]),
    "low": ("lowest value under the condition first", [("value", False)]),
    "high": ("highest value under the condition first", [("value", True)]),
}
"""Orders of the board: words, then columns and whether they descend."""


def filtered(study: Study, values: pl.DataFrame | None = None) -> pl.DataFrame:
    """The board's rows that the filter in the URL keeps, sorted.

    Args:
        study: of the board.
        values: ``group_id, value`` of one condition, for the orders by value.
    """
    given = st.query_params
    rows = board(study)
    if rows.is_empty():
        return rows
    task = given.get("task")
    if task and task in rows["task"]:
        rows = rows.filter(pl.col("task") == task)
    for flag in [f for f in given.get("flags", "").split(",") if f in FLAGS]:
        rows = rows.filter(pl.col("flags").list.contains(flag))
    if given.get("compared") == "yes":
        rows = rows.filter(pl.col("largest_delta").is_not_null())
    for name, keep in (("lowest", pl.col("n_success").ge), ("highest", pl.col("n_success").le)):
        if given.get(name, "").isdecimal():
            rows = rows.filter(keep(int(given[name])))
    if words := given.get("words", "").strip():
        rows = rows.filter(pl.col("group_id").is_in(list(search_groups(study, words))))
    _, order = SORTS.get(given.get("sort", "file"), SORTS["file"])
    rows = rows.with_columns(size=pl.col("largest_delta").abs())
    if values is not None:
        rows = rows.join(values, on="group_id", how="left", validate="1:1", maintain_order="left")
    order = [entry for entry in order if entry[0] in rows.columns]
    if order:
        columns, down = zip(*order, strict=True)
        rows = rows.sort(columns, descending=down, nulls_last=True, maintain_order=True)
    return rows.drop("size")
