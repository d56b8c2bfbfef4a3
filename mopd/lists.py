"""List columns to flat arrays and back, without a Python list in between."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

__all__ = ["flat", "list_column", "offsets"]


def list_column(
    name: str, arrays: Sequence[NDArray | None], dtype: pl.List, *, negative_is_null: bool = False
) -> pl.Series:
    """A list column from arrays (None: a null list), through Arrow's offsets: Python lists take ten times as long."""
    if not arrays:
        return pl.Series(name, [], dtype=dtype)
    missing = np.array([a is None for a in arrays])
    known = [np.zeros(0) if a is None else a for a in arrays]
    starts = np.concatenate([[0], np.cumsum([len(a) for a in known])])
    values = np.concatenate([a for a in known if len(a)] or [np.zeros(0)])
    inner = pa.array(values, mask=values < 0 if negative_is_null else None)
    lists = pa.LargeListArray.from_arrays(pa.array(starts), inner, mask=pa.array(missing))
    return pl.Series(name, pl.from_arrow(lists)).cast(dtype)


def flat(lists: pl.Series, size_N: NDArray[np.int64], dtype: type) -> NDArray:
    """The elements of all lists one after the other; zeros for those of a null list and for null elements.

    Args:
        lists: no list is empty.
        size_N: elements of each list, also of a null one.
        dtype: of the result.
    """
    known = np.repeat(lists.is_not_null().to_numpy(), size_N)
    values = np.zeros(int(size_N.sum()), dtype=dtype)
    if known.any():
        inner = lists.drop_nulls().explode()
        values[known] = inner.fill_null(False if inner.dtype == pl.Boolean else 0).to_numpy()
    return values


def offsets(size_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each list begins among the elements of ``flat``."""
    return np.cumsum(size_N) - size_N
