"""How sure: intervals and tests with groups as the sampling unit.

Rollouts of one prompt resemble one another, so the group, not the rollout or the pair, is what is resampled.
A value is the plain mean over the groups that define the metric; undefined groups are left out and counted.

**Interval.** On either side the farther of two limits.

* The expanded percentile bootstrap (Hesterberg, "What teachers should know about the bootstrap", The American
  Statistician 69, 2015, §3): resample the G defined groups with replacement, take the means, and read the quantiles at
  Φ(∓ t_{G-1} · sqrt(G / (G - 1))) instead of at 2.5% and 97.5%, which makes up for the missing 1/(G-1) of the variance
  and for estimating it.
* The studentised limit with Hall's correction for skewness (J. R. Statist. Soc. B 54, 1992): the t statistic under his
  cubic transformation, with Student's quantiles and the adjusted Fisher-Pearson skewness of the groups, kept within
  the observed values. Heavy tails make the standard deviation less sure, which takes degrees of freedom.

Why both: the percentile alone is right for coarse values, but where values have a long tail (average precision of few
targets, an AUC near 1) means of few of them miss the truth on one side: ``auprc_lift`` of 12 groups was covered in
0.906 to 0.931 of 2,000 studies under the nulls of ``analysis.validate``, with four to seventeen times as many misses
below the truth as above. The studentised limit alone is right there, but loses up to 0.02 where tails are heavy on both
sides.
With both, ``auprc_lift`` is covered in 0.940 to 0.964 of 2,000 studies of 12 groups and 0.951 to 0.957 of 30, and no
statistic of ``analysis.validate`` falls below 0.936. The price is width (about a tenth more with 12 groups and a
twenty-fifth with 30, more in long tails) and coverage above the nominal for coarse values (up to 0.99 for top-1 with 12
groups). Coverage of nominal 95% intervals over 9 distributions of group values in [0, 1], from smooth to a single
0-or-1 pair a group, by ``python -m analysis.benchmark coverage --seeds 2000``:

================  =====  =====  =====  =====  =====  =====
groups                6      8     12     20     30     60
================  =====  =====  =====  =====  =====  =====
lowest of the 9   0.884  0.940  0.954  0.960  0.953  0.960
mean              0.941  0.967  0.977  0.982  0.967  0.965
================  =====  =====  =====  =====  =====  =====

The percentile alone fell to 0.916 with 12 groups and 0.934 with 30. Six and seven groups fall short of 0.95 where
values are coarse and the truth lies off the middle: six pairs won with a chance of 0.7 each are all won in 0.118 of
studies.

What was not taken, with its coverage of ``auprc_lift`` with 12 groups: BCa with expanded quantiles 0.917 to 0.923; the
studentised bootstrap 0.931 to 0.942, but its limits are infinite where resamples of coarse values have no variance;
and, over ten distributions with 12 groups, the plain percentile 0.878, BCa 0.863 and Student's t 0.895 at the lowest.

**Limits.** An interval never leaves the range of the observed group values. So equal values in every group
(an oracle's 1.000) give [v, v], which says that these groups do not differ and not that the next one will
not; and with G groups no coverage above 1 - 2^(1-G) can be had, so that fewer groups than that (6 for 95%) give no
interval.

**Test.** Paired differences under sign flips, which is exact if a difference is as likely to be d as -d.

Suffixes of arrays: ``G`` groups, ``K`` columns (one per condition, score and metric).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from mopd.metrics import ALL_TASKS

__all__ = [
    "Contrast",
    "Interval",
    "benjamini_hochberg",
    "bootstrap_intervals",
    "cell_blocks",
    "contrast",
    "contrast_table",
    "expanded_tail",
    "fewest_groups",
    "finish_table",
    "holm",
    "interval",
    "metric_table",
    "pair_total",
    "resampled_means",
    "sign_flip_p_values",
    "studentised_limits",
]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

DRAWS = 2000
FEWEST_DRAWS = 200
FLIPS = 9999
EXACT_GROUPS = 12  # up to 2^12 sign patterns are enumerated, beyond that they are drawn
CHUNK = 500  # resamples held at once: memory stays small, and results do not depend on the machine
CELL = ("task", "protocol", "score", "metric", "condition")


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A mean over groups and its confidence interval; None where there are too few groups for it."""

    value: float | None
    low: float | None
    high: float | None
    n_groups: int
    n_undefined: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Contrast:
    """A mean paired difference over the groups that define both sides; None where there are too few for
    it."""

    difference: float | None
    low: float | None
    high: float | None
    p_value: float | None
    n_groups: int
    n_undefined: int


def interval(values_G: ArrayLike, *, draws: int = DRAWS, seed: int = 0, confidence: float = 0.95) -> Interval:
    """Mean over groups with its bootstrap interval (module docstring).

    Args:
        values_G: shape (G,), NaN where a group does not define the value.
    """
    values_GK = np.asarray(values_G, dtype=np.float64).reshape(-1, 1)
    value, low, high, n = bootstrap_intervals(values_GK, draws=draws, seed=seed, confidence=confidence)
    return Interval(
        value=_none_if_nan(value[0]),
        low=_none_if_nan(low[0]),
        high=_none_if_nan(high[0]),
        n_groups=int(n[0]),
        n_undefined=len(values_GK) - int(n[0]),
    )


def contrast(
    values_a_G: ArrayLike,
    values_b_G: ArrayLike,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    confidence: float = 0.95,
    flips: int = FLIPS,
) -> Contrast:
    """Mean of a - b over the groups that define both, with interval and two-sided sign-flip p-value.

    Args:
        values_a_G, values_b_G: shape (G,), the same groups in the same order, NaN where undefined.

    Raises:
        ValueError: the two differ in length.
    """
    a, b = np.asarray(values_a_G, dtype=np.float64), np.asarray(values_b_G, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"a paired difference needs the same groups on both sides, got shapes {a.shape} and {b.shape}")
    difference = interval(a - b, draws=draws, seed=seed, confidence=confidence)
    p_value = sign_flip_p_values((a - b).reshape(-1, 1), flips=flips, seed=seed)[0]
    return Contrast(
        difference=difference.value,
        low=difference.low,
        high=difference.high,
        p_value=_none_if_nan(p_value),
        n_groups=difference.n_groups,
        n_undefined=difference.n_undefined,
    )


def fewest_groups(confidence: float) -> int:
    """Groups from which on an interval within the range of their values can be covered as often as it promises.

    The median lies outside the range of G values with probability 2^(1-G).
    """
    return 1 + math.ceil(-math.log2(1 - confidence) - 1e-9)


def bootstrap_intervals(
    values_GK: Floats,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[Floats, Floats, Floats, NDArray[np.int64]]:
    """Means over groups with their intervals (module docstring), for many columns at once.

    Columns that are defined on the same groups share their resamples, and the resamples depend only on the
    seed and the number of groups: a further column never changes the interval of another.

    Args:
        values_GK: shape (G, K), NaN where undefined.
        draws: resamples, at least 200 (the expanded quantiles of 95% lie at about 1%).
        confidence: in (0, 1).

    Returns:
        value, low, high (float, shape (K,), NaN where undefined; low and high also for fewer than
        ``fewest_groups(confidence)``) and the number of defined groups (shape (K,)).

    Raises:
        ValueError: too few draws, or a confidence outside (0, 1).
    """
    if draws < FEWEST_DRAWS:
        raise ValueError(f"draws must be at least {FEWEST_DRAWS} for quantiles to mean something, got {draws}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, such as 0.95, got {confidence}")
    value, low, high = np.full((3, values_GK.shape[1]), np.nan)
    n_groups = np.zeros(values_GK.shape[1], dtype=np.int64)
    for defined_G, columns in _columns_by_support(values_GK):
        size = int(defined_G.sum())
        n_groups[columns] = size
        if size == 0:
            continue
        values = values_GK[np.ix_(defined_G, columns)]
        # Measured from the first group, equal values give exactly that value and not a rounded neighbour.
        origin = values[0]
        offsets = values - origin
        value[columns] = origin + offsets.mean(axis=0)
        if size < fewest_groups(confidence):
            continue
        tail = expanded_tail(size, confidence)
        means_BK = resampled_means(offsets, draws, np.random.default_rng(seed))
        percentile = np.quantile(means_BK, [tail, 1 - tail], axis=0)
        studentised = studentised_limits(offsets, confidence)
        low[columns] = origin + np.minimum(percentile[0], studentised[0])
        high[columns] = origin + np.maximum(percentile[1], studentised[1])
    return value, low, high, n_groups


def studentised_limits(values_GK: Floats, confidence: float) -> tuple[Floats, Floats]:
    """Limits of the mean by the inverse of Hall's cubic transformation of the t statistic, shape (K,) each.

    NaN for a column that holds one.

    With skewness γ, T = (mean - μ) / sd and g(T) = T + γT²/3 + γ²T³/27 + γ/6G, the limits are the μ at which
    g(T) = ± t/√G, and t is Student's quantile. They are kept within the observed values; without skewness and heavy
    tails they are those of Student's t.
    """
    size = len(values_GK)
    mean = values_GK.mean(axis=0)
    offset_GK = values_GK - mean
    sd = np.sqrt((offset_GK**2).sum(axis=0) / (size - 1))
    varies = (np.ptp(values_GK, axis=0) > 0) & (sd > 0) & (size > 2)
    scaled_GK = np.divide(offset_GK, sd, out=np.zeros_like(offset_GK), where=varies)
    t = stats.t.ppf((1 + confidence) / 2, _degrees_of_freedom(scaled_GK))
    skewness = (scaled_GK**3).sum(axis=0) * size / ((size - 1) * max(size - 2, 1))  # as scipy.stats.skew, unbiased
    slight = np.abs(skewness) < 1e-6
    divisor = np.where(slight, 1.0, skewness)

    def inverse(y: Floats) -> Floats:
        cubed = 1 + skewness * (y - skewness / (6 * size))
        return np.where(slight, y, 3 / divisor * (np.cbrt(cubed) - 1))

    reach = t / np.sqrt(size)
    low, high = mean - sd * inverse(reach), mean - sd * inverse(-reach)
    return np.maximum(low, values_GK.min(axis=0)), np.minimum(high, values_GK.max(axis=0))


def _degrees_of_freedom(scaled_GK: Floats) -> Floats:
    """Of the standard deviation, shape (K,): (G - 1) · 2 / (2 + κ) by Satterthwaite, κ the excess kurtosis if positive.

    Args:
        scaled_GK: offsets from the mean over the standard deviation; κ is their unbiased ``scipy.stats.kurtosis``.
    """
    size = len(scaled_GK)
    if size < 4:
        return np.full(scaled_GK.shape[1], size - 1.0)
    plain = (scaled_GK**4).mean(axis=0) * (size / (size - 1)) ** 2 - 3
    kurtosis = (size - 1) / ((size - 2) * (size - 3)) * ((size + 1) * plain + 6)
    return np.maximum((size - 1) * 2 / (2 + np.maximum(kurtosis, 0.0)), min(size - 1, 2))


def sign_flip_p_values(difference_GK: Floats, *, flips: int = FLIPS, seed: int = 0) -> Floats:
    """Two-sided sign-flip permutation p-values of mean differences, for many columns at once; shape (K,).

    The share of sign patterns whose absolute mean reaches the observed one: all 2^G of them up to
    ``EXACT_GROUPS`` groups, else ``flips`` drawn ones plus the observed one (add-one, Phipson and Smyth,
    Stat. Appl. Genet. Mol. Biol. 9, 2010), so never 0. NaN for a column without a defined group.

    Args:
        difference_GK: shape (G, K), NaN where undefined.
    """
    p_values = np.full(difference_GK.shape[1], np.nan)
    for defined_G, columns in _columns_by_support(difference_GK):
        size = int(defined_G.sum())
        if size == 0:
            continue
        difference = difference_GK[np.ix_(defined_G, columns)]
        # A little slack, so that sums that are equal on paper count as equal in floating point.
        observed = np.abs(difference.sum(axis=0)) - 1e-12 * np.abs(difference).sum(axis=0)
        exact = size <= EXACT_GROUPS
        reached = sum(
            (np.abs(signs @ difference) >= observed).sum(axis=0) for signs in _signs(size, flips, seed, exact)
        )
        p_values[columns] = reached / 2.0**size if exact else (reached + 1) / (flips + 1)
    return p_values


def holm(p_values: ArrayLike) -> Floats:
    """Holm's step-down adjusted p-values: they bound the chance of any false rejection in the family.

    NaN stays NaN and does not count as a member. Holm, Scand. J. Statist. 6 (1979).
    """
    return _adjusted(p_values, lambda ascending: np.maximum.accumulate(ascending * np.arange(len(ascending), 0, -1)))


def benjamini_hochberg(p_values: ArrayLike) -> Floats:
    """Benjamini and Hochberg's adjusted p-values: they bound the expected share of false rejections.

    NaN stays NaN and does not count as a member. JRSS B 57 (1995); ``scipy.stats.false_discovery_control``.
    """

    def step_up(ascending: Floats) -> Floats:
        scaled = ascending * len(ascending) / np.arange(1, len(ascending) + 1)
        return np.minimum.accumulate(scaled[::-1])[::-1]

    return _adjusted(p_values, step_up)


def metric_table(
    group_values: pl.DataFrame, *, draws: int = DRAWS, seed: int = 0, confidence: float = 0.95
) -> pl.DataFrame:
    """Means over groups with intervals: the rows of ``metrics.parquet``.

    Args:
        group_values: what ``mopd.metrics.group_values`` returns, in any row order.

    Returns:
        task, condition, protocol, score, metric, value, ci_low, ci_high, n_groups (that define the metric),
        n_pairs ((success, failure) pairs in them), n_undefined (groups that do not), sorted by ``CELL``.
        Where there are several tasks, ``task`` is also "all": the plain mean over the groups of all tasks.
    """
    parts = []
    for cells, value_GK, pairs_GK in cell_blocks(group_values):
        value, low, high, n_groups = bootstrap_intervals(value_GK, draws=draws, seed=seed, confidence=confidence)
        present_GK = ~np.isnan(pairs_GK)
        parts.append(
            cells.with_columns(
                value=pl.Series(value),
                ci_low=pl.Series(low),
                ci_high=pl.Series(high),
                n_groups=pl.Series(n_groups),
                n_pairs=pl.Series(pair_total(pairs_GK, ~np.isnan(value_GK))),
                n_undefined=pl.Series(present_GK.sum(axis=0) - n_groups),
            )
        )
    return finish_table(parts, METRIC_TABLE)


def contrast_table(
    group_values: pl.DataFrame,
    reference: str = "question_only",
    *,
    adjust: Literal["holm", "benjamini_hochberg"] = "holm",
    draws: int = DRAWS,
    seed: int = 0,
    confidence: float = 0.95,
    flips: int = FLIPS,
) -> pl.DataFrame:
    """Each condition minus a reference condition, paired by group: the rows of ``contrasts.parquet``.

    The p-values of one (task, protocol, score, metric) are a family: they are adjusted together.

    Args:
        group_values: what ``mopd.metrics.group_values`` returns, in any row order.

    Returns:
        task, condition, reference, protocol, score, metric, difference, ci_low, ci_high, p_value, p_adjusted,
        n_groups and n_pairs (where both define the metric), sorted by ``CELL``; tasks as in ``metric_table``.

    Raises:
        ValueError: the reference is missing under a task, protocol, score or metric.
    """
    adjustment = {"holm": holm, "benjamini_hochberg": benjamini_hochberg}[adjust]
    parts = []
    for cells, value_GK, pairs_GK in cell_blocks(group_values):
        references = _reference_columns(cells, reference)
        others = np.flatnonzero(references != np.arange(cells.height))
        difference_GK = value_GK[:, others] - value_GK[:, references[others]]
        value, low, high, n_groups = bootstrap_intervals(difference_GK, draws=draws, seed=seed, confidence=confidence)
        shared_GK = np.minimum(pairs_GK[:, others], pairs_GK[:, references[others]])
        p_value = sign_flip_p_values(difference_GK, flips=flips, seed=seed)
        p_adjusted = np.full(len(others), np.nan)
        for family in np.unique(references[others]):
            members = references[others] == family
            p_adjusted[members] = adjustment(p_value[members])
        parts.append(
            cells[others].with_columns(
                reference=pl.lit(reference),
                difference=pl.Series(value),
                ci_low=pl.Series(low),
                ci_high=pl.Series(high),
                p_value=pl.Series(p_value),
                p_adjusted=pl.Series(p_adjusted),
                n_groups=pl.Series(n_groups),
                n_pairs=pl.Series(pair_total(shared_GK, ~np.isnan(difference_GK))),
            )
        )
    return finish_table(parts, CONTRAST_TABLE)


_NAMES = dict.fromkeys(("protocol", "score", "metric"), pl.String())
_COUNTS = dict.fromkeys(("n_groups", "n_pairs"), pl.Int64())
METRIC_TABLE = {
    **dict.fromkeys(("task", "condition"), pl.String()),
    **_NAMES,
    **dict.fromkeys(("value", "ci_low", "ci_high"), pl.Float64()),
    **_COUNTS,
    "n_undefined": pl.Int64(),
}
"""Columns and types of ``metrics.parquet``."""
CONTRAST_TABLE = {
    **dict.fromkeys(("task", "condition", "reference"), pl.String()),
    **_NAMES,
    **dict.fromkeys(("difference", "ci_low", "ci_high", "p_value", "p_adjusted"), pl.Float64()),
    **_COUNTS,
}
"""Columns and types of ``contrasts.parquet``."""


def _none_if_nan(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _columns_by_support(values_GK: Floats) -> Iterator[tuple[Bools, NDArray[np.int64]]]:
    """The distinct sets of defined groups, each with the columns that have it."""
    defined_KG = ~np.isnan(values_GK).T
    if defined_KG.size == 0:
        return
    supports, which_K = np.unique(defined_KG, axis=0, return_inverse=True)
    for number, defined_G in enumerate(supports):
        yield defined_G, np.flatnonzero(which_K.ravel() == number)


def expanded_tail(size: int, confidence: float) -> float:
    """The quantile at which an expanded percentile interval of ``size`` groups has its lower limit."""
    t = stats.t.ppf((1 - confidence) / 2, size - 1)
    return float(stats.norm.cdf(t * np.sqrt(size / (size - 1))))


def resampled_means(values_GK: Floats, draws: int, rng: np.random.Generator) -> Floats:
    """Means of ``draws`` resamples of the groups, shape (draws, K): multinomial counts times values."""
    size = len(values_GK)
    means = np.empty((draws, values_GK.shape[1]))
    for start in range(0, draws, CHUNK):
        rows = min(CHUNK, draws - start)
        picks = rng.integers(0, size, (rows, size)) + size * np.arange(rows)[:, None]
        counts_BG = np.bincount(picks.ravel(), minlength=rows * size).reshape(rows, size)
        means[start : start + rows] = counts_BG.astype(np.float64) @ values_GK / size
    return means


def _signs(size: int, flips: int, seed: int, exact: bool) -> Iterator[Floats]:
    """Sign patterns, shape (rows, size) of ±1: all of them if ``exact``, else ``flips`` random ones in
    chunks."""
    if exact:
        yield 1.0 - 2.0 * (np.arange(2**size)[:, None] >> np.arange(size) & 1).astype(np.float64)
        return
    rng = np.random.default_rng(seed)
    for start in range(0, flips, CHUNK):
        rows = min(CHUNK, flips - start)
        yield 1.0 - 2.0 * rng.integers(0, 2, (rows, size), dtype=np.int8).astype(np.float64)


def _adjusted(p_values: ArrayLike, step: Callable[[Floats], Floats]) -> Floats:
    """Apply ``step`` to the ascending defined p-values, cap at 1 and put them back in place."""
    p = np.asarray(p_values, dtype=np.float64)
    if ((p < 0) | (p > 1)).any():
        raise ValueError(f"p-values must lie in [0, 1], got {p[(p < 0) | (p > 1)].tolist()}")
    adjusted = np.full(p.shape, np.nan)
    order = np.argsort(p, kind="stable")[: int((~np.isnan(p)).sum())]  # NaN sorts last
    adjusted[order] = np.minimum(step(p[order]), 1.0)
    return adjusted


def cell_blocks(group_values: pl.DataFrame) -> Iterator[tuple[pl.DataFrame, Floats, Floats]]:
    """For each task (and all of them) and protocol: its cells, and values and pairs as (G, K) matrices.

    Cells are the K columns, sorted by ``CELL``; groups are sorted. NaN in the pairs: no such row.
    """
    missing = [name for name in (*CELL, "group_id", "value", "n_pairs") if name not in group_values.columns]
    if missing:
        raise ValueError(
            f"group values lack the columns {missing}; they have {group_values.columns}. "
            "Pass what mopd.metrics.group_values returns"
        )
    tasks = sorted(group_values["task"].unique().to_list())
    pooled = [ALL_TASKS] if len(tasks) > 1 and ALL_TASKS not in tasks else []
    for task in [*tasks, *pooled]:
        rows = group_values if task in pooled else group_values.filter(pl.col("task") == task)
        rows = rows.with_columns(_group=pl.struct("task", "group_id"), task=pl.lit(task))
        for _, part in sorted(rows.partition_by("protocol", as_dict=True).items()):
            yield _matrices(part)


def _matrices(rows: pl.DataFrame) -> tuple[pl.DataFrame, Floats, Floats]:
    cells = rows.select(CELL).unique().sort(CELL)
    groups = rows.select("_group").unique().sort("_group")
    placed = rows.join(cells.with_row_index("_k"), on=CELL, how="left", validate="m:1").join(
        groups.with_row_index("_g"), on="_group", how="left", validate="m:1"
    )
    if placed.select("_g", "_k").is_duplicated().any():
        raise ValueError("the group values have two rows for one (group, condition, score, metric); keep one of them")
    where = placed["_g"].to_numpy(), placed["_k"].to_numpy()
    value_GK, pairs_GK = np.full((2, groups.height, cells.height), np.nan)
    value_GK[where] = placed["value"].fill_null(float("nan")).to_numpy()
    pairs_GK[where] = placed["n_pairs"].to_numpy()
    return cells, value_GK, pairs_GK


def _reference_columns(cells: pl.DataFrame, reference: str) -> NDArray[np.int64]:
    """For each cell the index of the reference condition's cell of the same score and metric."""
    index = {row: k for k, row in enumerate(cells.iter_rows())}
    columns = np.empty(cells.height, dtype=np.int64)
    for (*place, condition), k in index.items():
        if (*place, reference) not in index:
            known = sorted(cells["condition"].unique())
            raise ValueError(
                f"the reference condition {reference!r} has no values under {', '.join(place)} "
                f"(where {condition!r} has some); there are {', '.join(known)}. Run it too, or name another"
            )
        columns[k] = index[(*place, reference)]
    return columns


def pair_total(pairs_GK: Floats, defined_GK: Bools) -> NDArray[np.int64]:
    return np.where(defined_GK, pairs_GK, 0.0).sum(axis=0).astype(np.int64)


def finish_table(parts: list[pl.DataFrame], schema: dict[str, pl.DataType]) -> pl.DataFrame:
    empty = pl.DataFrame(schema=schema)
    table = pl.concat([empty, *(part.select(empty.columns) for part in parts)])
    return table.with_columns(pl.selectors.float().fill_nan(None)).sort(CELL)
