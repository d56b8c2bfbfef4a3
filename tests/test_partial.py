"""Partial rank correlation against residuals of regressions, and where there is none."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from scipy import stats

from mopd.inference import studentised_limits
from mopd.partial import (
    GIVEN,
    _jackknife_limits,
    centred_ranks,
    partial_correlation,
    partial_intervals,
    partial_rows,
)


def test_ranks_by_hand() -> None:
    # unit 0: 5, 1, 5 have ranks 1.5, 0, 1.5 (from 0), mean 1, size 3; unit 1: one target, nothing to rank
    found = centred_ranks([5.0, 7.0, 1.0, 5.0], [0, 1, 0, 0])
    assert found.tolist() == pytest.approx([0.5 / 3, 0.0, -1 / 3, 0.5 / 3])
    assert centred_ranks([], []).tolist() == []


def test_ranks_are_those_of_scipy() -> None:
    value = np.random.default_rng(0).integers(0, 5, 30)
    ranks = stats.rankdata(value)
    np.testing.assert_allclose(centred_ranks(value, np.zeros(30)), (ranks - ranks.mean()) / 30)


@pytest.mark.parametrize("given", GIVEN.values(), ids=str)
def test_partial_correlation_is_that_of_residuals(given: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(50, 4)) @ rng.normal(size=(4, 4))
    x -= x.mean(axis=0)
    z = x[:, list(given)]
    a, b = (x[:, k] - z @ np.linalg.lstsq(z, x[:, k], rcond=None)[0] if given else x[:, k] for k in (0, 1))
    expected = stats.pearsonr(a, b)[0]
    assert partial_correlation(x.T @ x / 50, given) == pytest.approx(expected)


def test_what_does_not_vary_gives_nothing() -> None:
    moment = np.diag([1.0, 1.0, 0.0, 1.0])
    moment[0, 1] = moment[1, 0] = 0.5
    assert partial_correlation(moment, (2,)) == 0.5  # a covariate that does not vary
    moment[0, 3] = moment[3, 0] = 1.0
    assert math.isnan(partial_correlation(moment, (3,)))  # the score is the covariate
    assert math.isnan(partial_correlation(np.zeros((4, 4)), ()))


def unit_rows(score: list[float], success: list[bool], length: list[int], groups: int = 3) -> pl.DataFrame:
    return pl.concat(
        pl.DataFrame(
            {
                "group_id": f"g{g}",
                "unit_id": "u",
                "success": success,
                "n_tokens": length,
                "edit_similarity": pl.Series([None] * len(score), dtype=pl.Float64),
                "teacher_mean": score,
                "condition": "1s",
            }
        )
        for g in range(groups)
    )


def by_stratum(rows: pl.DataFrame) -> dict[str, dict]:
    return {row["stratum"]: row for row in partial_rows(rows, ["teacher_mean"], draws=200)}


def test_equal_groups_give_spearman_and_its_partial() -> None:
    rng = np.random.default_rng(2)
    score, length = rng.normal(size=8), rng.integers(1, 9, 8)
    success = np.array([True] * 3 + [False] * 5)
    rows = by_stratum(unit_rows(score.tolist(), success.tolist(), length.tolist(), groups=6))
    r = stats.spearmanr(np.column_stack([score, success, length])).statistic  # pyright: ignore[reportAttributeAccessIssue]
    expected = (r[0, 1] - r[0, 2] * r[1, 2]) / math.sqrt((1 - r[0, 2] ** 2) * (1 - r[1, 2] ** 2))
    nothing, given = rows["given nothing"], rows["given length"]
    assert (nothing["value"], given["value"]) == (pytest.approx(r[0, 1]), pytest.approx(expected))
    assert (given["ci_low"], given["ci_high"]) == (pytest.approx(expected), pytest.approx(expected))  # equal groups
    assert (given["n_groups"], given["n_pairs"]) == (6, 90)
    assert math.isnan(rows["given similarity"]["value"])  # no peer is shown
    assert rows["given similarity"]["n_groups"] == 0


def test_a_score_that_is_length_says_nothing_about_the_label_given_length() -> None:
    rows = by_stratum(unit_rows([1.0, 2.0, 3.0, 4.0], [False, True, False, True], [1, 2, 3, 4]))
    assert rows["given nothing"]["value"] > 0
    assert math.isnan(rows["given length"]["value"])
    constant = by_stratum(unit_rows([1.0] * 4, [False, True, False, True], [1, 2, 3, 4]))
    assert all(math.isnan(row["value"]) for row in constant.values())
    single = by_stratum(unit_rows([1.0, 2.0, 3.0], [False, True, True], [3, 1, 2], groups=1))
    assert not math.isnan(single["given nothing"]["value"])
    assert math.isnan(single["given nothing"]["ci_low"])


def test_intervals_under_noise_hold_none_nominally() -> None:
    rng = np.random.default_rng(3)
    held, studies = 0, 200
    for _ in range(studies):
        n = 20 * 6
        rows = pl.DataFrame(
            {
                "group_id": np.repeat(np.arange(20), 6).astype(str),
                "unit_id": "u",
                "success": np.tile([True, True, False, False, False, True], 20),
                "n_tokens": rng.integers(10, 90, n),
                "edit_similarity": rng.random(n),
                "teacher_mean": rng.normal(size=n),
                "condition": "1s",
            }
        )
        row = by_stratum(rows)["given length and similarity"]
        held += row["ci_low"] <= 0 <= row["ci_high"]
    assert held / studies == pytest.approx(0.95, abs=3.5 * math.sqrt(0.95 * 0.05 / studies))


def noise_moments(studies: int, groups: int, seed: int) -> np.ndarray:
    """Moments of pairs of groups of one to seven successes among eight, whose scores, lengths and similarities are
    noise; shape (S, G, V, V)."""
    rng = np.random.default_rng(seed)
    found = []
    for successes in rng.integers(1, 8, studies * groups):
        x = rng.normal(size=(8, 3))
        score, length, similarity = np.sign(x[:successes, None] - x[None, successes:]).reshape(-1, 3).T
        variables = np.column_stack([score, np.ones_like(score), length, similarity]) / 4  # ranks of a pair: ±1/4
        found.append(variables.T @ variables / len(variables))
    return np.reshape(found, (studies, groups, 4, 4))


def test_six_groups_hold_the_truth_where_the_percentiles_alone_fall_short() -> None:
    moment = noise_moments(800, 6, seed=0)
    found = partial_intervals(moment, 400, 1, 0.95)
    # the percentiles alone: 0.912 to 0.921; the standard error of a coverage of 0.95 over 800 studies is 0.0077
    for stratum, numbers in found.items():
        _, low, high = np.array(numbers).T
        assert ((low <= 0) & (high >= 0)).mean() >= 0.935, stratum


def test_the_jackknife_by_its_definition() -> None:
    moment = noise_moments(1, 9, seed=4)[0]
    value = partial_correlation(moment.mean(axis=0)[..., None], (2, 3))
    without = np.array([partial_correlation(np.delete(moment, g, axis=0).mean(axis=0), (2, 3)) for g in range(9)])
    pseudo = 9 * value - 8 * without
    expected = [float(limit.item()) for limit in studentised_limits(pseudo[:, None], 0.95)]
    shift = value - pseudo.mean()  # the limits lie about the value, not about the mean of the pseudo-values
    found = [limit.item() for limit in _jackknife_limits(value, without[:, None], 0.95)]
    assert found == pytest.approx([max(expected[0] + shift.item(), -1.0), min(expected[1] + shift.item(), 1.0)])
    _, low, high = partial_intervals(moment[None], 400, 0, 0.95)["given length and similarity"][0]
    assert low <= found[0] <= found[1] <= high
