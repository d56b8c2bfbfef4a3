"""Score against label: how well does a score rank a group's successes above its failures?

The data model is fixed before any score is read. A *unit* is a set of targets that are compared with one
another because they were scored under the same context: a pair under ``leave_pair_out``, the targets of one
split under ``split``, the whole group under ``self_exclusion``. A metric has a value per unit; a group's
value is the mean over the units of the group that define it; a condition's value (``mopd.inference``) is the
mean over groups. Every score is read as "higher is better".

Undefined is NaN in arrays and null in frames, never 0.0: a unit of one class (all successes, all failures, a
single target) defines no metric at all, and a constant score defines no correlation.

All metrics are computed for all units at once from one sort (``Units``); ``measure`` is the same code for one
unit. Suffixes of arrays: ``N`` targets (rows), ``U`` units, ``K`` blocks of tied scores within a unit.

Deviation from the paper: its Kendall ignores ties, its undefined prompts count as 0.0 and its top-1 counts a
group of failures as a hit; here ties enter the formulas and undefined stays undefined.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "METRICS",
    "Metric",
    "Units",
    "auc",
    "auprc_lift",
    "goodman_kruskal_gamma",
    "group_values",
    "kendall_tau_b",
    "margin",
    "measure",
    "metrics_for",
    "point_biserial",
    "spearman",
    "top1",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ALL_TASKS = "all"
PAIRWISE_PROTOCOL = "leave_pair_out"
KEYS = ("task", "protocol", "condition", "group_id")


@dataclass(frozen=True, kw_only=True, slots=True)
class Units:
    """Targets of many units, sorted by (unit, score), with the counts that every metric is made of.

    All counts are whole numbers in float64, hence exact. Build it with ``Units.of``.
    """

    score_N: Floats  # ascending within a unit
    success_N: NDArray[np.bool_]
    unit_N: Ints  # 0..U-1, ascending
    block_N: Ints  # 0..K-1, ascending: equal scores of a unit share a block
    block_unit_K: Ints
    block_size_K: Floats
    block_wins_K: Floats  # successes in the block
    below_K: Floats  # targets of the unit with a strictly lower score
    wins_below_K: Floats  # successes among them
    size_U: Floats
    wins_U: Floats  # successes
    pairs_U: Floats  # successes x failures

    @classmethod
    def of(cls, score_N: ArrayLike, success_N: ArrayLike, unit_N: ArrayLike, n_units: int) -> Units:
        """Sort and count.

        Args:
            score_N: float, shape (N,), no NaN; infinite values are allowed and rank as such.
            success_N: bool, shape (N,).
            unit_N: int, shape (N,), values in 0..n_units-1, in any order; a unit may have no row.
            n_units: U.

        Raises:
            ValueError: a score is NaN, or the arrays differ in length.
        """
        score, success = np.asarray(score_N, dtype=np.float64), np.asarray(success_N, dtype=np.bool_)
        unit = np.asarray(unit_N, dtype=np.int64)
        if not score.shape == success.shape == unit.shape or score.ndim != 1:
            raise ValueError(
                f"score, success and unit must be one-dimensional and of one length, got shapes "
                f"{score.shape}, {success.shape} and {unit.shape}"
            )
        if np.isnan(score).any():
            raise ValueError("score must not hold NaN: drop the targets that have no score, and count them")
        # The label is the last sort key so that float sums do not depend on the order of the rows.
        order = np.lexsort((success, score, unit))
        score, success, unit = score[order], success[order], unit[order]
        new_block = np.ones(len(unit), dtype=np.bool_)
        new_block[1:] = (unit[1:] != unit[:-1]) | (score[1:] != score[:-1])
        block = np.cumsum(new_block) - 1
        block_unit = unit[new_block]
        block_size = _sums(block, np.ones(len(block)), len(block_unit))
        block_wins = _sums(block, success, len(block_unit))
        size = _sums(unit, np.ones(len(unit)), n_units)
        wins = _sums(unit, success, n_units)
        return cls(
            score_N=score,
            success_N=success,
            unit_N=unit,
            block_N=block,
            block_unit_K=block_unit,
            block_size_K=block_size,
            block_wins_K=block_wins,
            below_K=np.cumsum(block_size) - block_size - (np.cumsum(size) - size)[block_unit],
            wins_below_K=np.cumsum(block_wins) - block_wins - (np.cumsum(wins) - wins)[block_unit],
            size_U=size,
            wins_U=wins,
            pairs_U=wins * (size - wins),
        )

    def total(self, value_N: ArrayLike) -> Floats:
        """Sum over each unit's targets; shape (U,), 0 for a unit without targets."""
        return _sums(self.unit_N, value_N, len(self.size_U))

    def total_over_blocks(self, value_K: ArrayLike) -> Floats:
        """Sum over each unit's blocks of tied scores; shape (U,)."""
        return _sums(self.block_unit_K, value_K, len(self.size_U))

    def pair_counts(self) -> tuple[Floats, Floats, Floats]:
        """(success, failure) pairs that the score orders rightly, wrongly, and not at all; shape (U,)
        each."""
        losses_below = self.below_K - self.wins_below_K
        right = self.total_over_blocks(self.block_wins_K * losses_below)
        tied = self.total_over_blocks(self.block_wins_K * (self.block_size_K - self.block_wins_K))
        return right, self.pairs_U - right - tied, tied


def _sums(index_N: Ints, value_N: ArrayLike, length: int) -> Floats:
    """Sum of the values at each index 0..length-1; 0 where there is none."""
    weights = np.asarray(value_N, dtype=np.float64)
    return np.bincount(index_N, weights=weights, minlength=length).astype(np.float64, copy=False)


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Quotient; NaN where the denominator is 0 or the quotient is not finite (infinite scores)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        value = numerator / denominator
    return np.where(np.isfinite(value), value, np.nan)


def _correlation_with_label(units: Units, value_N: Floats) -> Floats:
    """Pearson correlation of ``value_N`` with the label in each unit; NaN where either is constant."""
    constant = units.total_over_blocks(np.ones(len(units.block_unit_K))) < 2
    with np.errstate(invalid="ignore"):
        deviation = value_N - _ratio(units.total(value_N), units.size_U)[units.unit_N]
        # Scaled to at most 1, so that squares of very small or very large scores neither vanish nor overflow.
        largest = np.zeros(len(units.size_U))
        np.maximum.at(largest, units.unit_N, np.abs(deviation))
        deviation = _ratio(deviation, largest[units.unit_N])
    covariance = units.total(np.where(units.success_N, deviation, 0.0))
    label_variance = _ratio(units.pairs_U, units.size_U)
    value = _ratio(covariance, np.sqrt(units.total(deviation**2) * label_variance))
    return np.where(constant, np.nan, np.clip(value, -1.0, 1.0))


def auc(units: Units) -> Floats:
    """Area under the ROC curve by counting pairs; shape (U,).

    The mean over a unit's (success, failure) pairs of 1 if the success has the higher score, ½ if the two are
    equal, 0 otherwise: the probability that a random success is ranked above a random failure. In [0, 1],
    higher is better, chance and any constant score 0.5. Undefined for one class.
    Hanley and McNeil, Radiology 143 (1982); Mann-Whitney U divided by the number of pairs.
    """
    right, _, tied = units.pair_counts()
    return _ratio(right + tied / 2, units.pairs_U)


def margin(units: Units) -> Floats:
    """Mean score of the successes minus mean score of the failures, in the score's unit (nats); shape (U,).

    For a pair, the difference of the two scores. Unbounded, higher is better, chance 0. Undefined for one
    class and where infinite scores leave no finite difference.
    """
    with np.errstate(invalid="ignore"):
        wins = _ratio(units.total(np.where(units.success_N, units.score_N, 0.0)), units.wins_U)
        losses = units.total(np.where(units.success_N, 0.0, units.score_N))
    return wins - _ratio(losses, units.size_U - units.wins_U)


def spearman(units: Units) -> Floats:
    """Spearman's rank correlation of score and label; shape (U,).

    Pearson's correlation of the scores' ranks with the label, ties sharing their mean rank (with a binary
    label ranking the label changes nothing). In [-1, 1], higher is better, chance 0; the bounds are reached
    only by units of two targets or of two distinct scores. Undefined for one class and for a constant score.
    Spearman (1904); ``scipy.stats.spearmanr``.
    """
    mean_rank_K = units.below_K + (units.block_size_K + 1) / 2
    return _correlation_with_label(units, mean_rank_K[units.block_N])


def kendall_tau_b(units: Units) -> Floats:
    """Kendall's τ-b of score and label; shape (U,).

    (right - wrong) / sqrt(pairs untied in score × pairs untied in label), over all pairs of targets of the
    unit. In [-1, 1], higher is better, chance 0; the bounds are reached only where score and label tie the
    same targets. Undefined for one class and for a constant score.
    Kendall, Biometrika 33 (1945); ``scipy.stats.kendalltau``.
    """
    right, wrong, _ = units.pair_counts()
    all_pairs = units.size_U * (units.size_U - 1) / 2
    tied_in_score = units.total_over_blocks(units.block_size_K * (units.block_size_K - 1) / 2)
    return _ratio(right - wrong, np.sqrt((all_pairs - tied_in_score) * units.pairs_U))


def goodman_kruskal_gamma(units: Units) -> Floats:
    """Goodman and Kruskal's γ of score and label; shape (U,).

    (right - wrong) / (right + wrong) over the unit's (success, failure) pairs with different scores. In [-1,
    1], higher is better, chance 0; without ties it is 2·AUC - 1. Undefined for one class and where every such
    pair is tied.
    Goodman and Kruskal, JASA 49 (1954).
    """
    right, wrong, _ = units.pair_counts()
    return _ratio(right - wrong, right + wrong)


def auprc_lift(units: Units) -> Floats:
    """Average precision minus prevalence; shape (U,).

    Average precision is Σ (recall_k - recall_{k-1}) · precision_k over the distinct scores from the highest
    down, tied targets entering together. Prevalence is the share of successes, which is what a constant score
    gets. In (-1, 1), higher is better. Undefined for one class.

    Chance is *not* 0 in a small unit: a random order of n targets with P successes has an expected average
    precision of (H_n + (n - H_n)(P - 1)/(n - 1)) / n with H_n = 1 + ½ + … + 1/n, which is above P/n (for n =
    8, P = 2: 0.43 against 0.25). Compare conditions with one another or with a noise teacher, not with 0.
    ``sklearn.metrics.average_precision_score``; the expectation: Bestgen, "Exact expected average precision
    of the random baseline", PBML 103 (2015).
    """
    at_or_above = units.size_U[units.block_unit_K] - units.below_K
    wins_at_or_above = units.wins_U[units.block_unit_K] - units.wins_below_K
    weighted = units.total_over_blocks(units.block_wins_K * wins_at_or_above / at_or_above)
    value = _ratio(weighted, units.wins_U) - _ratio(units.wins_U, units.size_U)
    return np.where(units.pairs_U > 0, value, np.nan)


def point_biserial(units: Units) -> Floats:
    """Point-biserial correlation: Pearson's of the score itself with the label; shape (U,).

    In [-1, 1], higher is better, chance 0; unlike the rank metrics it changes under a monotone map of the
    score. Undefined for one class, for a constant score and for infinite scores.
    ``scipy.stats.pointbiserialr``.
    """
    return _correlation_with_label(units, units.score_N)


def top1(units: Units) -> Floats:
    """Is the highest-scored target a success? 1 or 0; shape (U,).

    Where several share the highest score, the share of successes among them. In [0, 1], higher is better,
    chance and any constant score: the unit's share of successes. Undefined for one class, where every choice
    is right or none is.
    """
    last_K = np.ones(len(units.block_unit_K), dtype=np.bool_)
    last_K[:-1] = units.block_unit_K[1:] != units.block_unit_K[:-1]
    value = np.full(len(units.size_U), np.nan)
    value[units.block_unit_K[last_K]] = units.block_wins_K[last_K] / units.block_size_K[last_K]
    return np.where(units.pairs_U > 0, value, np.nan)


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """A row of ``METRICS``; the definition is the function's docstring."""

    name: str
    function: Callable[[Units], Floats]
    listwise: bool  # true: needs units of more than a pair to say more than the AUC
    range: tuple[float, float]
    chance: float | None  # of a score that knows nothing; None: depends on the unit's share of successes
    higher_is_better: bool = True
    unit: str = "1"  # "nats", or "1" for a plain number


_INF = float("inf")
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(name="auc", function=auc, listwise=False, range=(0.0, 1.0), chance=0.5),
        Metric(name="margin", function=margin, listwise=False, range=(-_INF, _INF), chance=0.0, unit="nats"),
        Metric(name="spearman", function=spearman, listwise=True, range=(-1.0, 1.0), chance=0.0),
        Metric(name="kendall_tau_b", function=kendall_tau_b, listwise=True, range=(-1.0, 1.0), chance=0.0),
        Metric(
            name="goodman_kruskal_gamma",
            function=goodman_kruskal_gamma,
            listwise=True,
            range=(-1.0, 1.0),
            chance=0.0,
        ),
        Metric(name="auprc_lift", function=auprc_lift, listwise=True, range=(-1.0, 1.0), chance=None),
        Metric(name="point_biserial", function=point_biserial, listwise=True, range=(-1.0, 1.0), chance=0.0),
        Metric(name="top1", function=top1, listwise=True, range=(0.0, 1.0), chance=None),
    )
}
"""Every metric, in the order in which tables show them: the only place that lists their names."""


def metrics_for(protocol: str, names: Sequence[str] | None = None) -> tuple[Metric, ...]:
    """The metrics reported under a protocol, all or those in ``names``: for pairs only AUC and margin.

    Raises:
        ValueError: a name is not in ``METRICS``.
    """
    unknown = [name for name in names or () if name not in METRICS]
    if unknown:
        raise ValueError(f"unknown metric {unknown[0]!r}; known metrics: {', '.join(METRICS)}")
    return tuple(
        metric
        for metric in METRICS.values()
        if (names is None or metric.name in names) and not (metric.listwise and protocol == PAIRWISE_PROTOCOL)
    )


def measure(name: str, score_N: ArrayLike, success_N: ArrayLike) -> float:
    """One metric of one unit, NaN if undefined; scores and labels of shape (N,), no NaN score."""
    (metric,) = metrics_for("split", [name])
    return float(metric.function(Units.of(score_N, success_N, np.zeros(np.shape(score_N)), 1))[0])


def group_values(
    scored: pl.DataFrame,
    scores: str | Sequence[str] = "teacher_mean",
    metrics: Sequence[str] | None = None,
) -> pl.DataFrame:
    """Every metric of every group under every condition.

    Args:
        scored: a row per (condition, unit, target), already on common support: within a task and a protocol
            each condition has the same (unit, target) rows. Columns ``group_id``, ``unit_id`` (unique within
            the group), ``rollout_id``, ``condition``, ``protocol``, ``success`` (bool), the score columns,
            and ``task`` if there are several tasks.
        scores: score columns, nats. A null or NaN score drops that target from *all* conditions of its
            protocol, so that they stay comparable; ``n_dropped`` counts it.
        metrics: names from ``METRICS``; default all that the protocol reports (``metrics_for``).

    Returns:
        A row per (task, protocol, condition, group_id, score, metric), sorted by these: ``value`` (mean over
        the group's defined units, null if there is none), ``n_units`` (defined ones), ``n_undefined`` (units
        that do not define the metric), ``n_pairs`` ((success, failure) pairs of the defined units),
        ``n_dropped`` (targets without a score, counted once for each unit they are in).

    Raises:
        ValueError: a column is missing, a key or label is null, or the rows are not on common support.
    """
    columns = [scores] if isinstance(scores, str) else list(scores)
    metrics_for("split", metrics)
    scored = _checked(scored, columns)
    parts = []
    for (protocol,), rows in sorted(scored.partition_by("protocol", as_dict=True).items()):
        layout = _Layout.of(rows)
        for column in columns:
            parts += _score_values(rows, layout, column, metrics_for(str(protocol), metrics))
    return pl.concat([GROUP_VALUES_EMPTY, *parts]).sort(*KEYS, "score", "metric")


GROUP_VALUES_EMPTY = pl.DataFrame(
    schema={
        **dict.fromkeys((*KEYS, "score", "metric"), pl.String),
        "value": pl.Float64,
        **dict.fromkeys(("n_units", "n_undefined", "n_pairs", "n_dropped"), pl.Int64),
    }
)


def _codes(rows: pl.DataFrame, *columns: str) -> Ints:
    """Dense integer codes 0.. of the rows' keys, in the keys' sort order (text order, also for numbers)."""
    code = np.zeros(rows.height, dtype=np.int64)
    for column in columns:
        text = rows[column].cast(pl.String)
        values = text.cast(pl.Enum(text.unique().sort())).to_physical().to_numpy().astype(np.int64)
        code = _dense(code * (int(values.max(initial=0)) + 1) + values)
    return code


def _dense(code_N: Ints) -> Ints:
    """The codes renumbered to 0.. without gaps, order kept."""
    largest = int(code_N.max(initial=0))
    if largest > 16 * len(code_N):
        return np.unique(code_N, return_inverse=True)[1]
    present = np.zeros(largest + 1, dtype=np.bool_)  # a table look-up, where it fits, saves the sort
    present[code_N] = True
    return (np.cumsum(present) - 1)[code_N]


def _checked(scored: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
    """The rows with a ``task`` column, checked for columns, nulls and common support."""
    if "task" not in scored.columns:
        scored = scored.with_columns(task=pl.lit(ALL_TASKS))
    keys = [*KEYS, "unit_id", "rollout_id", "success"]
    missing = [name for name in (*keys, *columns) if name not in scored.columns]
    if missing:
        raise ValueError(
            f"the scored frame lacks the columns {missing}; it has {scored.columns}. Every row needs its "
            "keys, its label and the score columns that are asked for"
        )
    if nulls := [name for name in keys if scored[name].null_count()]:
        raise ValueError(
            f"the scored frame has nulls in {nulls}: a target without a label or key cannot be compared; "
            "leave such rows out before scoring, and count them"
        )
    if scored.is_empty():
        return scored
    place = _codes(scored, "task", "protocol")
    target = _codes(scored, "task", "protocol", "group_id", "unit_id", "rollout_id")
    condition = _codes(scored, "condition")
    n_conditions = int(condition.max()) + 1
    if _dense(target * n_conditions + condition).max() + 1 < scored.height:
        raise ValueError("the scored frame has two rows for one (condition, unit, target); keep one of them")
    is_run = np.zeros((int(place.max()) + 1, n_conditions), dtype=np.bool_)
    is_run[place, condition] = True
    short = np.bincount(target)[target] != is_run.sum(axis=1)[place]
    if short.any():
        row = scored.row(int(np.argmax(short)), named=True)
        raise ValueError(
            f"the scored frame is not on common support: target {row['rollout_id']!r} of unit "
            f"{row['unit_id']!r} of group {row['group_id']!r} is not there under every condition of "
            f"{row['protocol']!r}. Keep only (unit, target) rows that all compared conditions have"
        )
    return scored


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layout:
    """Which rows of one protocol make up which units and groups: the same for every score."""

    keys: pl.DataFrame  # KEYS, a row per group and condition
    group_N: Ints
    unit_N: Ints
    group_U: Ints

    @classmethod
    def of(cls, rows: pl.DataFrame) -> _Layout:
        group = _codes(rows, *KEYS)
        unit_names = _codes(rows, "unit_id")
        unit = _dense(group * (int(unit_names.max()) + 1) + unit_names)
        group_of_unit = np.zeros(int(unit.max()) + 1, dtype=np.int64)
        group_of_unit[unit] = group
        row_of_group = np.zeros(int(group.max()) + 1, dtype=np.int64)
        row_of_group[group] = np.arange(rows.height)
        return cls(keys=rows[row_of_group].select(KEYS), group_N=group, unit_N=unit, group_U=group_of_unit)


def _score_values(rows: pl.DataFrame, layout: _Layout, column: str, metrics: Sequence[Metric]) -> list[pl.DataFrame]:
    """``group_values`` of one protocol and one score, a frame per metric."""
    score = rows[column].cast(pl.Float64).fill_null(float("nan")).to_numpy()
    dropped = np.isnan(score)
    if dropped.any():
        target = _codes(rows, "task", "group_id", "unit_id", "rollout_id")
        dropped = np.bincount(target, weights=dropped)[target] > 0
    kept = ~dropped
    n_units = len(layout.group_U)
    units = Units.of(score[kept], rows["success"].to_numpy()[kept], layout.unit_N[kept], n_units)
    n_dropped = np.bincount(layout.group_N, weights=dropped).astype(np.int64)

    def tally(weights: ArrayLike) -> Floats:
        return _sums(layout.group_U, weights, layout.keys.height)

    frames = []
    for metric in metrics:
        value_U = metric.function(units)
        defined = ~np.isnan(value_U)
        count = tally(defined)
        frames.append(
            layout.keys.with_columns(
                score=pl.lit(column),
                metric=pl.lit(metric.name),
                value=pl.Series(_ratio(tally(np.where(defined, value_U, 0.0)), count)).fill_nan(None),
                n_units=pl.Series(count.astype(np.int64)),
                n_undefined=pl.Series(tally(~defined).astype(np.int64)),
                n_pairs=pl.Series(tally(np.where(defined, units.pairs_U, 0.0)).astype(np.int64)),
                n_dropped=pl.Series(n_dropped),
            )
        )
    return frames
