"""Which differences are tested, and what is made of them.

**Families.** The *primary* family is declared before any score is read: ``2s1f`` against ``question_only``,
``shell_only``, ``1s``, ``2s`` and ``random_peer``, as many of them as were run. Its p-values are adjusted by Holm, so
that the chance of any false claim among them is bounded. All other differences (each condition against the study's
reference, ``2s1f`` against each control, and another order of blocks against the usual one) are the *rest*, adjusted
by Benjamini and Hochberg: they say where to look. One (task, protocol, score, metric) is one family.

**Equivalence.** A difference that is not significant is not therefore none. For the AUC the two one-sided tests
(Schuirmann, J. Pharmacokinet. Biopharm. 15, 1987) are given: a small ``p_equivalence`` says that the true difference
lies within ``EQUIVALENCE_MARGIN`` of 0.

**Clustering.** ``clustering_table`` says how alike the pairs of one group are (intraclass correlation) and by how much
that shrinks their number (design effect): the reason why groups and not pairs are what is resampled.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from mopd.conditions import CONTROLS, ORDERS, condition
from mopd.inference import (
    CONTRAST_TABLE,
    DRAWS,
    FLIPS,
    benjamini_hochberg,
    bootstrap_intervals,
    cell_blocks,
    finish_table,
    holm,
    pair_total,
    sign_flip_p_values,
)
from mopd.metrics import METRICS, Units

__all__ = [
    "CLUSTERING_TABLE",
    "EQUIVALENCE_MARGIN",
    "FAMILY_TABLE",
    "PRIMARY",
    "clustering_table",
    "compared_pairs",
    "contrast_families",
    "design_effect",
    "equivalence_p_values",
    "intraclass_correlation",
]

Floats = NDArray[np.float64]

PRIMARY = ("2s1f", ("question_only", "shell_only", "1s", "2s", "random_peer"))
"""The condition that the claim is about, and those that it is claimed to beat."""
EQUIVALENCE_MARGIN = 0.05
"""Differences of AUC up to this count as none."""

FAMILY_TABLE = {
    **CONTRAST_TABLE,
    "family": pl.String(),  # primary (p_adjusted by Holm) or rest (by Benjamini and Hochberg)
    "sd": pl.Float64(),  # of the groups' differences, for planning
    "equivalence_margin": pl.Float64(),
    "p_equivalence": pl.Float64(),
}
"""Columns and types of ``contrasts.parquet``."""
CLUSTERING_TABLE = {
    **dict.fromkeys(("task", "protocol", "condition", "score"), pl.String()),
    **dict.fromkeys(("icc", "design_effect"), pl.Float64()),
    **dict.fromkeys(("n_groups", "n_pairs"), pl.Int64()),
}
"""Columns and types of ``clustering.parquet``."""


def compared_pairs(conditions: Sequence[str], reference: str) -> list[tuple[str, str, str]]:
    """(condition, reference, family) of every difference among the conditions that were run."""
    lead, rivals = PRIMARY
    pairs = [(lead, rival, "primary") for rival in rivals if lead in conditions and rival in conditions]
    known = {(a, b) for a, b, _ in pairs}
    rest = [(name, reference) for name in conditions if reference in conditions and name != reference]
    rest += [(lead, name) for name in CONTROLS if lead in conditions and name in conditions]
    ordered = [condition(name) for name in conditions if name.endswith(tuple(ORDERS))]
    rest += [(c.name, c.control_of) for c in ordered if c.control_of in conditions]
    return pairs + [(a, b, "rest") for a, b in dict.fromkeys(rest) if (a, b) not in known]


def contrast_families(
    group_values: pl.DataFrame,
    reference: str = "question_only",
    *,
    draws: int = DRAWS,
    seed: int = 0,
    confidence: float = 0.95,
    flips: int = FLIPS,
) -> pl.DataFrame:
    """Every difference of ``compared_pairs``, paired by group: the rows of ``contrasts.parquet``.

    Args:
        group_values: what ``mopd.metrics.group_values`` returns, in any row order.
        reference: what the conditions are compared with outside the primary family; it need not have been run.

    Returns:
        ``FAMILY_TABLE``, sorted by task, protocol, score, metric and condition, the primary family first.
    """
    parts = []
    for cells, value_GK, pairs_GK in cell_blocks(group_values):
        index = {row: k for k, row in enumerate(cells.iter_rows())}
        places = cells.select("task", "protocol", "score", "metric").unique(maintain_order=True).rows()
        pairs = compared_pairs(cells["condition"].unique().sort().to_list(), reference)
        rows = [
            (*place, a, b, family)
            for place in places
            for a, b, family in pairs
            if (*place, a) in index and (*place, b) in index
        ]
        if not rows:
            continue
        first = np.array([index[(*row[:4], row[4])] for row in rows])
        second = np.array([index[(*row[:4], row[5])] for row in rows])
        difference_GK = value_GK[:, first] - value_GK[:, second]
        shared_GK = np.minimum(pairs_GK[:, first], pairs_GK[:, second])
        names = ("task", "protocol", "score", "metric", "condition", "reference", "family")
        table = pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String), orient="row")
        parts.append(_measured(table, difference_GK, shared_GK, draws, seed, confidence, flips))
    return finish_table(parts, FAMILY_TABLE).sort(
        "task", "protocol", "score", "metric", "family", "condition", "reference"
    )


def _measured(
    table: pl.DataFrame,
    difference_GK: Floats,
    shared_GK: Floats,
    draws: int,
    seed: int,
    confidence: float,
    flips: int,
) -> pl.DataFrame:
    """The rows of a table with the statistics of their differences."""
    value, low, high, n_groups = bootstrap_intervals(difference_GK, draws=draws, seed=seed, confidence=confidence)
    p_value = sign_flip_p_values(difference_GK, flips=flips, seed=seed)
    p_adjusted = np.full(table.height, np.nan)
    numbered = table.with_row_index("_k")
    for (*_, family), part in numbered.group_by("task", "protocol", "score", "metric", "family"):
        members = part["_k"].to_numpy()
        p_adjusted[members] = (holm if family == "primary" else benjamini_hochberg)(p_value[members])
    margin = np.where(table["metric"].to_numpy() == "auc", EQUIVALENCE_MARGIN, np.nan)
    return table.with_columns(
        difference=pl.Series(value),
        ci_low=pl.Series(low),
        ci_high=pl.Series(high),
        p_value=pl.Series(p_value),
        p_adjusted=pl.Series(p_adjusted),
        n_groups=pl.Series(n_groups),
        n_pairs=pl.Series(pair_total(shared_GK, ~np.isnan(difference_GK))),
        sd=pl.Series(_standard_deviation(difference_GK)),
        equivalence_margin=pl.Series(margin),
        p_equivalence=pl.Series(equivalence_p_values(difference_GK, margin)),
    )


def _standard_deviation(values_GK: Floats) -> Floats:
    """Over the defined groups, with n - 1; NaN for fewer than two, and 0 where rounding is all that varies."""
    n = (~np.isnan(values_GK)).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(n > 0, np.nansum(values_GK, axis=0) / n, np.nan)
        sd = np.sqrt(np.where(n > 1, np.nansum((values_GK - mean) ** 2, axis=0) / (n - 1), np.nan))
    return np.where(sd <= 1e-12 * np.maximum(1.0, np.abs(mean)), 0.0, sd)


def equivalence_p_values(difference_GK: Floats, margin_K: ArrayLike) -> Floats:
    """Two one-sided t-tests of |mean difference| >= margin, the larger p-value of the two; shape (K,).

    Small values say that the mean difference lies within the margin. NaN for fewer than two groups, for equal
    differences in all groups (which leave no error to judge by) and for a NaN margin.

    Args:
        difference_GK: shape (G, K), NaN where undefined.
        margin_K: positive, shape (K,).
    """
    n = (~np.isnan(difference_GK)).sum(axis=0)
    sd = _standard_deviation(difference_GK)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.nansum(difference_GK, axis=0) / n
        error = np.where(sd > 0, sd / np.sqrt(n), np.nan)
        t = (np.asarray(margin_K, dtype=np.float64) - np.abs(mean)) / error
    return stats.t.sf(t, np.maximum(n - 1, 1))


def intraclass_correlation(value_N: ArrayLike, group_N: ArrayLike) -> float:
    """ICC(1), the share of the variance of pairs that lies between groups, by one-way analysis of variance.

    (MSB - MSW) / (MSB + (m0 - 1) MSW) with m0 = (N - Σ m_g² / N) / (G - 1), the mean size of unequal groups. It can be
    negative. NaN for fewer than two groups, groups of one only, or equal values everywhere.
    Donner and Koval, Biometrics 36 (1980).
    """
    value, (_, group) = np.asarray(value_N, dtype=np.float64), np.unique(np.asarray(group_N), return_inverse=True)
    size = np.bincount(group).astype(np.float64) if len(value) else np.zeros(0)
    total, groups = len(value), len(size)
    if groups < 2 or total <= groups:
        return float("nan")
    mean = np.bincount(group, weights=value) / size
    between = float((size * (mean - value.mean()) ** 2).sum()) / (groups - 1)
    within = float(((value - mean[group]) ** 2).sum()) / (total - groups)
    m0 = (total - float((size**2).sum()) / total) / (groups - 1)
    scale = between + (m0 - 1) * within
    return (between - within) / scale if scale > 1e-15 else float("nan")


def design_effect(icc: float, group_N: ArrayLike) -> float:
    """By how many times clustering multiplies the variance of a mean over pairs, were the pairs weighted alike.

    1 + (Σ m_g² / N - 1) · ICC, with a negative ICC read as 0. NaN if the ICC is. Kish, Survey Sampling (1965).
    """
    size = np.unique(np.asarray(group_N), return_counts=True)[1].astype(np.float64)
    return float(1 + ((size**2).sum() / size.sum() - 1) * max(icc, 0.0)) if not np.isnan(icc) else float("nan")


def clustering_table(scored: pl.DataFrame, scores: Sequence[str]) -> pl.DataFrame:
    """How alike the pairs of a group are, for every condition: the rows of ``clustering.parquet``.

    Args:
        scored: as ``mopd.metrics.group_values`` takes it; only ``leave_pair_out``, whose units are pairs, is read. A
            pair with a null or NaN score is left out under all conditions.
        scores: score columns.
    """
    schema = dict(CLUSTERING_TABLE)
    rows = scored.filter(pl.col("protocol") == "leave_pair_out")
    missing = {score: pl.col(score).fill_null(float("nan")).is_nan() for score in scores}
    missing = {score: gap for score, gap in missing.items() if rows.select(gap.any()).item()}
    rows = rows.with_columns(
        gap.any().over("task", "group_id", "unit_id").alias(f"no {score}") for score, gap in missing.items()
    )
    found = []
    for (task, cond), part in rows.group_by("task", "condition", maintain_order=False):
        names = part.select(pl.struct("group_id", "unit_id").rank("dense").alias("unit"), "group_id")
        unit = names["unit"].to_numpy().astype(np.int64) - 1
        group_U = names.group_by("unit").agg(pl.col("group_id").first()).sort("unit")["group_id"].to_numpy()
        success = part["success"].to_numpy()
        for score in scores:
            there = ~part[f"no {score}"].to_numpy() if score in missing else np.ones(part.height, dtype=np.bool_)
            value = part[score].to_numpy()[there]
            won_U = METRICS["auc"].function(Units.of(value, success[there], unit[there], len(group_U)))
            kept = ~np.isnan(won_U)
            icc = intraclass_correlation(won_U[kept], group_U[kept])
            n_groups = len(np.unique(group_U[kept]))
            effect = design_effect(icc, group_U[kept]) if n_groups else float("nan")
            found.append((task, "leave_pair_out", cond, score, icc, effect, n_groups, int(kept.sum())))
    table = pl.DataFrame(found, schema=schema, orient="row").with_columns(pl.selectors.float().fill_nan(None))
    return table.sort("task", "condition", "score")
