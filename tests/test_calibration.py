"""Calibration by hand, against scikit-learn, and that nothing is judged by what it has seen."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss

from mopd.calibration import (
    CALIBRATION_TABLE,
    METHODS,
    RELIABILITY_TABLE,
    Method,
    brier,
    calibration_tables,
    cross_fitted,
    expected_calibration_error,
    reliability,
)


def logistic(groups: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Eight targets a group, whose chance of success is the sigmoid of 2 · score + 1."""
    rng = np.random.default_rng(seed)
    score = rng.normal(size=8 * groups)
    success = rng.random(8 * groups) < 1 / (1 + np.exp(-2 * score - 1))
    return score, success, np.repeat(np.arange(groups), 8)


@pytest.mark.parametrize("method", METHODS)
def test_the_planted_curve_is_found(method: Method) -> None:
    score, success, group = logistic(800)
    chance = cross_fitted(score, success, group, method)
    truth = 1 / (1 + np.exp(-2 * score - 1))
    assert np.abs(chance - truth).mean() < (0.02 if method == "platt" else 0.04)
    assert expected_calibration_error(chance, success) < 0.03


@pytest.mark.parametrize("method", METHODS)
def test_a_groups_own_labels_do_not_move_its_forecasts(method: Method) -> None:
    score, success, group = logistic(30)
    turned = success.copy()
    turned[group == 7] = ~turned[group == 7]
    before, after = (cross_fitted(score, s, group, method) for s in (success, turned))
    np.testing.assert_array_equal(before[group == 7], after[group == 7])
    assert not np.array_equal(before, after)


@pytest.mark.parametrize("method", METHODS)
def test_forecasts_rise_with_the_score_within_a_fold(method: Method) -> None:
    score, success, group = logistic(2, seed=3)
    chance = cross_fitted(score, success, group, method, folds=2)
    assert np.isfinite(chance).all()
    for g in range(2):
        order = np.argsort(score[group == g])
        assert (np.diff(chance[group == g][order]) >= -1e-12).all()


@pytest.mark.parametrize("method", METHODS)
def test_what_cannot_be_fitted_is_nan(method: Method) -> None:
    # the only failure is in group 1: for it the training folds have successes alone
    chance = cross_fitted([1.0, 2.0, 3.0, 4.0], [True, True, False, True], [0, 0, 1, 1], method, folds=2)
    assert np.isnan(chance).tolist() == [False, False, True, True]
    assert np.isnan(cross_fitted([1.0, 2.0], [True, False], [0, 0], method)).all()  # no other group
    score = np.array([1.0, np.nan, np.inf, 0.0, 1.0, 0.0])
    chance = cross_fitted(score, [1, 0, 1, 0, 1, 0], [0, 0, 0, 1, 2, 2], method, folds=3)
    assert np.isnan(chance).tolist() == [False, True, True, False, False, False]


@pytest.mark.parametrize("method", METHODS)
def test_a_constant_score_forecasts_the_base_rate_of_the_others(method: Method) -> None:
    chance = cross_fitted([5.0] * 6, [1, 0, 1, 1, 0, 0], [0, 0, 1, 1, 2, 2], method, folds=3)
    # without group 0: 2 of 4; without 1: 1 of 4; without 2: 3 of 4
    np.testing.assert_allclose(chance, [0.5, 0.5, 0.25, 0.25, 0.75, 0.75])


@pytest.mark.parametrize("levels", [4, 1000])
def test_the_curves_are_those_of_scikit_learn(levels: int) -> None:
    rng = np.random.default_rng(levels)
    score, group = rng.integers(0, levels, 90) * 0.01 - 7.0, np.repeat(np.arange(30), 3)
    success = rng.random(90) < np.where(score > np.median(score), 0.7, 0.3)
    found = {method: cross_fitted(score, success, group, method, folds=2) for method in METHODS}
    fold = np.empty(30, dtype=int)
    fold[np.random.default_rng(0).permutation(30)] = np.arange(30) % 2
    for f in range(2):
        held = fold[group] == f
        x, y, new = score[~held], success[~held], score[held]
        # C = 1 / PENALTY, of the slope of the standardised score
        logistic = LogisticRegression(C=1e6, tol=1e-12, max_iter=10_000).fit((x[:, None] - x.mean()) / x.std(), y)
        expected = logistic.predict_proba((new[:, None] - x.mean()) / x.std())[:, 1]
        np.testing.assert_allclose(found["platt"][held], expected, atol=1e-6)
        isotonic = IsotonicRegression(out_of_bounds="clip").fit(x, y)
        np.testing.assert_allclose(found["isotonic"][held], isotonic.predict(new), atol=1e-12)


def test_separable_scores_are_fitted() -> None:
    chance = cross_fitted([0.0, 1.0, 0.1, 1.1, 0.2, 0.9], [0, 1, 0, 1, 0, 1], [0, 0, 1, 1, 2, 2], "platt", folds=3)
    assert np.isfinite(chance).all()
    np.testing.assert_allclose(chance, [0, 1, 0, 1, 0, 1], atol=0.05)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="of one length, got 2, 1 and 2"):
        cross_fitted([0.1, 0.2], [True], ["a", "b"], "platt")
    with pytest.raises(ValueError, match="at least 2 folds, got 1"):
        cross_fitted([0.1], [True], ["a"], "platt", folds=1)
    with pytest.raises(ValueError, match="of one shape"):
        brier([0.1], [True, False])


def test_brier_and_its_parts_by_hand() -> None:
    # two bins of two: forecasts 0.2 (none right), 0.6 and 0.8 (one of two right)
    chance, success = [0.2, 0.2, 0.6, 0.8], [0, 0, 1, 0]
    found = brier(chance, success, bins=2)
    assert found.score == pytest.approx((0.04 + 0.04 + 0.16 + 0.64) / 4)
    assert found.score == pytest.approx(brier_score_loss(success, chance))
    assert found.reliability == pytest.approx((2 * 0.2**2 + 2 * (0.7 - 0.5) ** 2) / 4)
    assert found.resolution == pytest.approx((2 * 0.25**2 + 2 * 0.25**2) / 4)
    assert found.uncertainty == pytest.approx(0.25 * 0.75)
    # variance of the forecasts within a bin, 2 · 0.01 / 4, less twice their covariance with the outcome, -0.05 · 2 / 4
    assert found.within_bins == pytest.approx(0.005 + 0.05)
    # ECE: half the targets are off by 0.2, half by 0.2
    assert expected_calibration_error(chance, success, bins=2) == pytest.approx(0.2)


def test_nothing_to_judge_is_nan() -> None:
    assert math.isnan(brier([np.nan], [True]).score)
    assert math.isnan(expected_calibration_error([], []))
    assert [len(part) for part in reliability([], [])] == [0, 0, 0]


def test_equal_forecasts_share_a_bin() -> None:
    forecast, observed, size = reliability([0.5] * 7 + [0.9], [1, 0, 0, 0, 0, 0, 0, 1], bins=4)
    assert forecast.tolist() == [0.5, 0.9]
    assert observed.tolist() == [pytest.approx(1 / 7), 1.0]
    assert size.tolist() == [7, 1]


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=1, max_size=40), st.integers(1, 12))
def test_the_parts_add_up_and_every_target_is_in_one_bin(rows: list[tuple[int, bool]], bins: int) -> None:
    chance, success = [c / 20 for c, _ in rows], [s for _, s in rows]
    parts = brier(chance, success, bins=bins)
    whole = parts.reliability - parts.resolution + parts.uncertainty + parts.within_bins
    assert parts.score == pytest.approx(whole)
    forecast, _, size = reliability(chance, success, bins=bins)
    assert size.sum() == len(rows)
    assert (np.diff(forecast) > 0).all()
    assert 0 <= expected_calibration_error(chance, success, bins=bins) <= 1


def test_tables_leave_pairs_out_and_count_a_target_once() -> None:
    score, success, group = logistic(20)
    one = pl.DataFrame(
        {
            "group_id": [f"g{g:02d}" for g in group],
            "rollout_id": [f"r{i:03d}" for i in range(len(score))],
            "success": success,
            "teacher_mean": score,
        }
    ).with_columns(task=pl.lit("t"), condition=pl.lit("1s"))
    splits = [one.with_columns(protocol=pl.lit("split"), unit_id=pl.lit(f"split{r}")) for r in range(2)]
    pairs = one.with_columns(protocol=pl.lit("leave_pair_out"), unit_id=pl.lit("u"))
    tables = calibration_tables(pl.concat([*splits, pairs]), ["teacher_mean"])
    assert dict(tables["calibration"].schema) == CALIBRATION_TABLE
    assert dict(tables["reliability"].schema) == RELIABILITY_TABLE
    assert tables["calibration"].select("protocol", "method", "n_targets", "n_groups").rows() == [
        ("split", "isotonic", 160, 20),
        ("split", "platt", 160, 20),
    ]
    expected = brier(cross_fitted(score, success, group, "platt"), success)
    assert tables["calibration"].row(1, named=True)["brier"] == pytest.approx(expected.score)
    assert tables["reliability"].group_by("method").agg(pl.col("n_targets").sum())["n_targets"].to_list() == [160, 160]
    nothing = calibration_tables(pairs, ["teacher_mean"])
    assert nothing["calibration"].is_empty()
    assert nothing["reliability"].is_empty()
