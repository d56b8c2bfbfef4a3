"""From a score to a probability of success, and how good that probability is.

A mean log-prob is no probability of being right, and neither is its sigmoid. A calibrator is a monotone map from score
to the chance of success that is fitted on other prompts than those it is judged on (cross-fitted), so that nothing is
judged by what it has seen. Two maps: Platt's logistic curve and isotonic regression.

A study fits thousands of curves to the same targets. Logistic curves are therefore fitted all at once by Newton's
method (tests hold them to scikit-learn's); isotonic ones by ``scipy.optimize.isotonic_regression``.

Suffixes of arrays: ``N`` targets, ``K`` columns of scores, ``B`` bins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import isotonic_regression
from scipy.special import expit

__all__ = [
    "CALIBRATION_TABLE",
    "METHODS",
    "RELIABILITY_TABLE",
    "Brier",
    "brier",
    "calibration_tables",
    "cross_fitted",
    "cross_fitted_columns",
    "expected_calibration_error",
    "reliability",
]

Floats = NDArray[np.float64]
Method = Literal["platt", "isotonic"]

METHODS: tuple[Method, ...] = ("platt", "isotonic")
FOLDS = 5
BINS = 10
PENALTY = 1e-6
"""Of the squared slope of a logistic curve: with none, separable scores have no finite fit."""
MOST_STEPS, MOST_HALVINGS, TOLERANCE = 100, 30, 1e-12

_KEYS = dict.fromkeys(("task", "protocol", "condition", "score", "method"), pl.String())
CALIBRATION_TABLE = {
    **_KEYS,
    **dict.fromkeys(("brier", "reliability", "resolution", "uncertainty", "within_bins", "ece"), pl.Float64()),
    **dict.fromkeys(("n_targets", "n_groups"), pl.Int64()),
}
"""Columns and types of ``calibration.parquet``."""
RELIABILITY_TABLE = {
    **_KEYS,
    "bin": pl.Int64(),
    **dict.fromkeys(("forecast", "observed"), pl.Float64()),
    "n_targets": pl.Int64(),
}
"""Columns and types of ``reliability.parquet``: mean forecast and share of successes of each bin."""


def cross_fitted(
    score_N: ArrayLike, success_N: ArrayLike, group_N: ArrayLike, method: Method, *, folds: int = FOLDS, seed: int = 0
) -> Floats:
    """Chance of success of each target, by a calibrator that saw no rollout of its group; shape (N,).

    Groups are dealt to ``folds`` folds in a seeded order, as even in number as can be. Platt: logistic regression on
    the standardised score, with a penalty too weak to matter (Platt, 1999). Isotonic: pool adjacent violators, linear
    between the scores it saw and constant beyond. Both are fitted to the training folds' targets. A target whose
    training folds lack a class, or whose score is not finite, has NaN.

    Args:
        score_N: higher is better.
        success_N: labels.
        group_N: prompts; the unit that is held out.

    Raises:
        ValueError: the arrays differ in length, or there are fewer than two folds.
    """
    score = np.asarray(score_N, dtype=np.float64)
    return cross_fitted_columns(score[:, None], success_N, group_N, method, folds=folds, seed=seed)[:, 0]


def cross_fitted_columns(
    score_NK: Floats, success_N: ArrayLike, group_N: ArrayLike, method: Method, *, folds: int = FOLDS, seed: int = 0
) -> Floats:
    """``cross_fitted`` for many columns of scores of the same targets; shape (N, K)."""
    success = np.asarray(success_N, dtype=np.bool_)
    names, group = np.unique(np.asarray(group_N), return_inverse=True)
    if not len(score_NK) == len(success) == len(group):
        raise ValueError(
            f"score, success and group must be of one length, got {len(score_NK)}, {len(success)} and {len(group)}"
        )
    if folds < 2:
        raise ValueError(f"cross-fitting needs at least 2 folds, got {folds}")
    fold = np.empty(len(names), dtype=np.int64)
    fold[np.random.default_rng(seed).permutation(len(names))] = np.arange(len(names)) % folds
    finite = np.isfinite(score_NK)
    chance = np.full(score_NK.shape, np.nan)
    for f in range(min(folds, len(names))):
        held = fold[group] == f
        for columns in _columns_alike(finite):
            train = ~held & finite[:, columns[0]]
            new = held & finite[:, columns[0]]
            if new.any() and 0 < success[train].sum() < train.sum():
                place = np.ix_(new, columns)
                chance[place] = _FITS[method](score_NK[np.ix_(train, columns)], success[train], score_NK[place])
    return chance


def _columns_alike(finite_NK: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """The columns, gathered by which of their scores are finite."""
    if finite_NK.all():
        return [np.arange(finite_NK.shape[1])]
    _, which = np.unique(finite_NK, axis=1, return_inverse=True)
    return [np.flatnonzero(which.ravel() == k) for k in range(int(which.max(initial=-1)) + 1)]


def _isotonic(score_NK: Floats, success: NDArray[np.bool_], new_NK: Floats) -> Floats:
    """Chances for ``new_NK`` by an isotonic curve through the rest, column by column."""
    chance = np.empty(new_NK.shape)
    for k in range(score_NK.shape[1]):
        level, which = np.unique(score_NK[:, k], return_inverse=True)
        count = np.bincount(which)
        curve = isotonic_regression(np.bincount(which, weights=success) / count, weights=count).x
        chance[:, k] = np.interp(new_NK[:, k], level, curve)
    return chance


def _platt(score_NK: Floats, success: NDArray[np.bool_], new_NK: Floats) -> Floats:
    """Chances for ``new_NK`` by a logistic curve through the rest, for all columns at once."""
    centre, spread = score_NK.mean(axis=0), score_NK.std(axis=0)
    constant = spread <= 1e-12 * np.maximum(1.0, np.abs(score_NK).max(axis=0))
    spread = np.where(constant, 1.0, spread)
    level, slope = _logistic((score_NK - centre) / spread, success)
    chance = expit(level + slope * (new_NK - centre) / spread)
    return np.where(constant, success.mean(), chance)  # a constant score: the base rate


def _logistic(x_NK: Floats, success: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Level and slope of the logistic curves that minimise log loss + PENALTY · slope² / 2; shape (K,) each.

    Newton's method; a step that does not lower the loss is halved.
    """
    sign = np.where(success, 1.0, -1.0)[:, None]

    def loss(level: Floats, slope: Floats) -> Floats:
        return np.logaddexp(0.0, -sign * (level + slope * x_NK)).sum(axis=0) + PENALTY * slope**2 / 2

    rate = success.mean()
    level, slope = np.full(x_NK.shape[1], np.log(rate / (1 - rate))), np.zeros(x_NK.shape[1])
    now = loss(level, slope)
    for _ in range(MOST_STEPS):
        p = expit(level + slope * x_NK)
        weight, off = p * (1 - p), p - success[:, None]
        down_level, down_slope = off.sum(axis=0), (off * x_NK).sum(axis=0) + PENALTY * slope
        hll, hls = weight.sum(axis=0), (weight * x_NK).sum(axis=0)
        hss = (weight * x_NK**2).sum(axis=0) + PENALTY
        determinant = np.maximum(hll * hss - hls**2, 1e-300)
        step_level = (hss * down_level - hls * down_slope) / determinant
        step_slope = (hll * down_slope - hls * down_level) / determinant
        size, slack = np.ones_like(level), TOLERANCE * (1 + now) / 10  # rounding is no worsening
        after = loss(level - step_level, slope - step_slope)
        for _ in range(MOST_HALVINGS):
            worse = after > now + slack
            if not worse.any():
                break
            size[worse] /= 2
            after = loss(level - size * step_level, slope - size * step_slope)
        better = after <= now + slack
        level = np.where(better, level - size * step_level, level)
        slope = np.where(better, slope - size * step_slope, slope)
        done = now - np.minimum(after, now) <= TOLERANCE * (1 + now)
        now = np.minimum(after, now)
        if done.all():
            break
    return level, slope


_FITS = {"platt": _platt, "isotonic": _isotonic}


@dataclass(frozen=True, kw_only=True, slots=True)
class Brier:
    """Brier score and its parts: ``score = reliability - resolution + uncertainty + within_bins``."""

    score: float
    reliability: float
    resolution: float
    uncertainty: float
    within_bins: float


def brier(chance_N: ArrayLike, success_N: ArrayLike, *, bins: int = BINS) -> Brier:
    """Mean squared difference of forecast and outcome, and where it comes from.

    Over the bins of ``reliability``: reliability Σ n_B (forecast_B - observed_B)² / N, lower is better; resolution
    Σ n_B (observed_B - rate)² / N, higher is better; uncertainty rate (1 - rate), the score of the base rate. The rest,
    ``within_bins``, is what is lost by treating a bin's forecasts as equal. NaN everywhere without a target.
    Brier (1950); Murphy, J. Appl. Meteorol. 12 (1973); Stephenson et al., Weather and Forecasting 23 (2008).
    """
    chance, success = _defined(chance_N, success_N)
    if not len(chance):
        return Brier(**dict.fromkeys(("score", "reliability", "resolution", "uncertainty", "within_bins"), np.nan))
    forecast, observed, size = _bins(chance, success, bins)
    rate, total = success.mean(), len(success)
    score = float(((chance - success) ** 2).mean())
    calibration = float((size * (forecast - observed) ** 2).sum() / total)
    resolution = float((size * (observed - rate) ** 2).sum() / total)
    uncertainty = float(rate * (1 - rate))
    return Brier(
        score=score,
        reliability=calibration,
        resolution=resolution,
        uncertainty=uncertainty,
        within_bins=score - (calibration - resolution + uncertainty),
    )


def expected_calibration_error(chance_N: ArrayLike, success_N: ArrayLike, *, bins: int = BINS) -> float:
    """Σ n_B |forecast_B - observed_B| / N over the bins of ``reliability``. In [0, 1], lower is better; NaN without a
    target. It is above 0 for a perfect calibrator too, the more so the fewer targets a bin has. Naeini et al. (2015).
    """
    chance, success = _defined(chance_N, success_N)
    if not len(chance):
        return float("nan")
    forecast, observed, size = _bins(chance, success, bins)
    return float((size * np.abs(forecast - observed)).sum() / size.sum())


def reliability(
    chance_N: ArrayLike, success_N: ArrayLike, *, bins: int = BINS
) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Mean forecast, share of successes and number of targets of each bin that holds any; shape (B,) each.

    Bins are of equal number of targets, equal forecasts never apart, in ascending order.
    """
    chance, success = _defined(chance_N, success_N)
    return _bins(chance, success, bins)


def _defined(chance_N: ArrayLike, success_N: ArrayLike) -> tuple[Floats, Floats]:
    chance, success = np.asarray(chance_N, dtype=np.float64), np.asarray(success_N, dtype=np.float64)
    if chance.shape != success.shape:
        raise ValueError(f"chance and success must be of one shape, got {chance.shape} and {success.shape}")
    kept = ~np.isnan(chance)
    return chance[kept], success[kept]


def _bins(chance: Floats, success: Floats, bins: int) -> tuple[Floats, Floats, NDArray[np.int64]]:
    values, which = np.unique(chance, return_inverse=True)
    count = np.bincount(which, minlength=len(values))
    middle = np.cumsum(count) - count / 2  # equal forecasts go where their middle lies
    bin_of_value = np.minimum((middle * bins / max(len(chance), 1)).astype(np.int64), bins - 1)
    bin_N = bin_of_value[which]
    size = np.bincount(bin_N, minlength=bins)
    there = size > 0
    forecast = np.bincount(bin_N, weights=chance, minlength=bins)[there] / size[there]
    observed = np.bincount(bin_N, weights=success, minlength=bins)[there] / size[there]
    return forecast, observed, size[there]


def calibration_tables(
    scored: pl.DataFrame, scores: Sequence[str], *, folds: int = FOLDS, seed: int = 0
) -> dict[str, pl.DataFrame]:
    """Calibration of every score under every condition and listwise protocol.

    Pairs are left out: each takes a success and a failure, so their targets have a rate of one half by construction.
    A target of several splits counts once, with its mean score.

    Args:
        scored: a row per (condition, unit, target) on common support, as ``mopd.metrics.group_values`` takes it.
        scores: score columns.

    Returns:
        ``calibration`` and ``reliability``.
    """
    listwise = scored.filter(pl.col("protocol") != "leave_pair_out")
    targets = listwise.group_by("task", "protocol", "condition", "group_id", "rollout_id", maintain_order=True).agg(
        pl.col("success").first(), *(pl.col(s).mean() for s in scores)
    )
    rows, curves = [], []
    for (task, protocol), part in targets.group_by("task", "protocol", maintain_order=True):
        for names, success, group, score_NK in _columns(part, scores):
            for method in METHODS:
                chance_NK = cross_fitted_columns(score_NK, success, group, method, folds=folds, seed=seed)
                for (cond, score), chance in zip(names, chance_NK.T, strict=True):
                    place = (task, protocol, cond, score, method)
                    row, curve = _judged(chance, success, group)
                    rows.append((*place, *row))
                    curves += [(*place, b, *point) for b, point in enumerate(curve)]
    calibration = pl.DataFrame(rows, schema=CALIBRATION_TABLE, orient="row")
    return {
        "calibration": calibration.with_columns(pl.selectors.float().fill_nan(None)).sort(*_KEYS),
        "reliability": pl.DataFrame(curves, schema=RELIABILITY_TABLE, orient="row").sort(*_KEYS, "bin"),
    }


def _columns(
    part: pl.DataFrame, scores: Sequence[str]
) -> Iterator[tuple[list[tuple[str, str]], NDArray[np.bool_], NDArray[Any], Floats]]:
    """(condition, score) of columns with the same targets, the targets' labels and groups, and the scores."""
    by_targets: dict[tuple[str, ...], list[pl.DataFrame]] = {}
    for _, one in sorted(part.partition_by("condition", as_dict=True).items()):
        one = one.sort("group_id", "rollout_id")
        by_targets.setdefault(tuple(one["rollout_id"]), []).append(one)
    for frames in by_targets.values():
        names = [(str(frame["condition"][0]), score) for frame in frames for score in scores]
        columns = [frame[score].fill_null(float("nan")).to_numpy() for frame in frames for score in scores]
        yield names, frames[0]["success"].to_numpy(), frames[0]["group_id"].to_numpy(), np.column_stack(columns)


def _judged(
    chance: Floats, success: NDArray[np.bool_], group: NDArray[Any]
) -> tuple[tuple[float | int, ...], list[tuple[float, float, int]]]:
    """The numbers of a row of ``calibration.parquet``, and the points of its reliability curve."""
    parts, kept = brier(chance, success), ~np.isnan(chance)
    numbers = (parts.score, parts.reliability, parts.resolution, parts.uncertainty, parts.within_bins)
    curve = [(float(f), float(o), int(n)) for f, o, n in zip(*reliability(chance, success), strict=True)]
    ece = expected_calibration_error(chance, success)
    return (*numbers, ece, int(kept.sum()), len(np.unique(group[kept]))), curve
