"""From a score to a probability of success, and how good that probability is.

A mean log-prob is no probability of being right, and neither is its sigmoid. A calibrator is a monotone map from score
to the chance of success that is fitted on other prompts than those it is judged on (cross-fitted), so that nothing is
judged by what it has seen. Two maps: Platt's logistic curve and isotonic regression (scikit-learn).

Suffixes of arrays: ``N`` targets, ``B`` bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "CALIBRATION_TABLE",
    "METHODS",
    "RELIABILITY_TABLE",
    "Brier",
    "brier",
    "calibration_tables",
    "cross_fitted",
    "expected_calibration_error",
    "reliability",
]

Floats = NDArray[np.float64]
Method = Literal["platt", "isotonic"]

METHODS: tuple[Method, ...] = ("platt", "isotonic")
FOLDS = 5
BINS = 10

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
    the standardised score, with a penalty too weak to matter (Platt, 1999). Isotonic: pool adjacent violators, constant
    beyond the scores it saw. Both are fitted to the training folds' targets. A target whose training folds lack a
    class, or whose score is not finite, has NaN.

    Args:
        score_N: higher is better.
        success_N: labels.
        group_N: prompts; the unit that is held out.

    Raises:
        ValueError: the arrays differ in length, or there are fewer than two folds.
    """
    score, success = np.asarray(score_N, dtype=np.float64), np.asarray(success_N, dtype=np.bool_)
    names, group = np.unique(np.asarray(group_N), return_inverse=True)
    if not len(score) == len(success) == len(group):
        raise ValueError(
            f"score, success and group must be of one length, got {len(score)}, {len(success)} and {len(group)}"
        )
    if folds < 2:
        raise ValueError(f"cross-fitting needs at least 2 folds, got {folds}")
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    fold = np.empty(len(names), dtype=np.int64)
    fold[np.random.default_rng(seed).permutation(len(names))] = np.arange(len(names)) % folds
    finite = np.isfinite(score)
    chance = np.full(len(score), np.nan)
    for f in range(min(folds, len(names))):
        held = (fold[group] == f) & finite
        train = (fold[group] != f) & finite
        if held.any() and 0 < success[train].sum() < train.sum():
            with threadpool_limits(1):  # threads that wait for one another make a small fit thirty times as slow
                chance[held] = _fit_predict(method, score[train], success[train], score[held])
    return chance


def _fit_predict(method: Method, score: Floats, success: NDArray[np.bool_], new: Floats) -> Floats:
    from sklearn.isotonic import IsotonicRegression  # takes a second to import, which not every study needs
    from sklearn.linear_model import LogisticRegression

    if method == "isotonic":
        model = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip")
        return model.fit(score, success.astype(np.float64)).predict(new)
    spread = score.std()
    if spread <= 1e-12 * max(1.0, float(np.abs(score).max())):
        return np.full(len(new), success.mean())  # a constant score: the base rate
    centre = score.mean()
    # A weak penalty only: with none, separable scores have no finite fit.
    model = LogisticRegression(C=1e6).fit(((score - centre) / spread)[:, None], success)
    return model.predict_proba(((new - centre) / spread)[:, None])[:, 1]


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
    rows, curves = [], []
    for (task, protocol, cond), part in listwise.group_by("task", "protocol", "condition"):
        targets = (
            part.group_by("group_id", "rollout_id")
            .agg(pl.col("success").first(), *(pl.col(s).mean() for s in scores))
            .sort("group_id", "rollout_id")
        )
        success, group = targets["success"].to_numpy(), targets["group_id"].to_numpy()
        for score in scores:
            values = targets[score].fill_null(float("nan")).to_numpy()
            for method in METHODS:
                chance = cross_fitted(values, success, group, method, folds=folds, seed=seed)
                parts, kept = brier(chance, success), ~np.isnan(chance)
                place = (task, protocol, cond, score, method)
                numbers = (parts.score, parts.reliability, parts.resolution, parts.uncertainty, parts.within_bins)
                ece = expected_calibration_error(chance, success)
                rows.append((*place, *numbers, ece, int(kept.sum()), len(np.unique(group[kept]))))
                for b, (forecast, observed, n) in enumerate(zip(*reliability(chance, success), strict=True)):
                    curves.append((*place, b, float(forecast), float(observed), int(n)))
    calibration = pl.DataFrame(rows, schema=CALIBRATION_TABLE, orient="row")
    return {
        "calibration": calibration.with_columns(pl.selectors.float().fill_nan(None)).sort(*_KEYS),
        "reliability": pl.DataFrame(curves, schema=RELIABILITY_TABLE, orient="row").sort(*_KEYS, "bin"),
    }
