"""What must hold for every metric, and a check that none is forgotten."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mopd.metrics import METRICS, measure

# What becomes of the value when labels are swapped.
LABEL_FLIP: dict[str, Callable[[float], float]] = {
    "auc": lambda value: 1 - value,
    "margin": lambda value: -value,
    "spearman": lambda value: -value,
    "kendall_tau_b": lambda value: -value,
    "goodman_kruskal_gamma": lambda value: -value,
    "point_biserial": lambda value: -value,
    "top1": lambda value: 1 - value,
}
NO_LABEL_FLIP_RULE = {"auprc_lift"}  # precision looks at successes only
# What becomes of the value when the scores' signs are swapped.
SCORE_FLIP = {name: flip for name, flip in LABEL_FLIP.items() if name != "top1"}
NO_SCORE_FLIP_RULE = {"auprc_lift", "top1"}  # both look at the upper end

RANK_METRICS = {"auc", "spearman", "kendall_tau_b", "goodman_kruskal_gamma", "auprc_lift", "top1"}
# Under a positive linear map: unchanged, or scaled along with the score.
AFFINE_INVARIANT, SCALED = {"point_biserial"}, {"margin"}

CONSTANT_SCORE_VALUE = {"auc": 0.5, "margin": 0.0, "auprc_lift": 0.0, "top1": 3 / 8}
UNDEFINED_AT_CONSTANT_SCORE = {"spearman", "kendall_tau_b", "goodman_kruskal_gamma", "point_biserial"}

# Successes strictly above failures: the best that a ranking can do, for 3 successes and 5 failures.
BEST_RANKING_VALUE = {
    "auc": 1.0,
    "kendall_tau_b": math.sqrt(15 / 28),  # 15 right pairs of 28, none tied in score: 15 / sqrt(28 · 15)
    # Ranks 6, 7, 8 of 8 against the label: 3 · (7 - 4.5) / sqrt(42 · 15/8)
    "spearman": 7.5 / math.sqrt(42 * 15 / 8),
    "goodman_kruskal_gamma": 1.0,
    "auprc_lift": 1 - 3 / 8,
    "top1": 1.0,
}


def test_every_metric_is_in_every_family() -> None:
    names = set(METRICS)
    assert LABEL_FLIP.keys() | NO_LABEL_FLIP_RULE == names
    assert SCORE_FLIP.keys() | NO_SCORE_FLIP_RULE == names
    assert names == RANK_METRICS | AFFINE_INVARIANT | SCALED
    assert CONSTANT_SCORE_VALUE.keys() | UNDEFINED_AT_CONSTANT_SCORE == names
    assert set(BEST_RANKING_VALUE) == RANK_METRICS


@pytest.fixture(params=[3, 100], ids=["many ties", "few ties"])
def unit(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    return rng.integers(0, request.param, 20) / 4 - 9.0, rng.random(20) < 0.4


Unit = tuple[np.ndarray, np.ndarray]


@pytest.mark.parametrize("name", METRICS)
def test_order_of_rows_does_not_matter(name: str, unit: Unit) -> None:
    score, success = unit
    order = np.random.default_rng(1).permutation(20)
    assert measure(name, score[order], success[order]) == measure(name, score, success)


@pytest.mark.parametrize("name", LABEL_FLIP)
def test_label_flip(name: str, unit: Unit) -> None:
    score, success = unit
    expected = LABEL_FLIP[name](measure(name, score, success))
    assert measure(name, score, ~success) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", SCORE_FLIP)
def test_score_flip(name: str, unit: Unit) -> None:
    score, success = unit
    expected = SCORE_FLIP[name](measure(name, score, success))
    assert measure(name, -score, success) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", sorted(RANK_METRICS))
@pytest.mark.parametrize("rise", [np.exp, lambda s: 5 * s - 2, lambda s: s**3], ids=["exp", "linear", "cube"])
def test_rank_metrics_see_only_the_order(name: str, unit: Unit, rise: Callable) -> None:
    score, success = unit
    assert measure(name, rise(score), success) == measure(name, score, success)


@pytest.mark.parametrize("name", sorted(AFFINE_INVARIANT | SCALED))
def test_value_metrics_follow_linear_maps_and_see_others(name: str, unit: Unit) -> None:
    score, success = unit
    value = measure(name, score, success)
    factor = 5.0 if name in SCALED else 1.0
    assert measure(name, 5 * score - 2, success) == pytest.approx(factor * value, abs=1e-12)
    assert measure(name, np.exp(score), success) != pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("level", [0.0, -0.1, 1e300])
def test_constant_score(name: str, level: float) -> None:
    value = measure(name, [level] * 8, [True] * 3 + [False] * 5)
    if name in UNDEFINED_AT_CONSTANT_SCORE:
        assert math.isnan(value)
    else:
        # A mean of 0.1s may be off by a rounding; margin is a difference of two such means.
        assert value == pytest.approx(CONSTANT_SCORE_VALUE[name], abs=1e-15 * max(1.0, abs(level)))


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("label", [True, False])
@pytest.mark.parametrize("size", [0, 1, 5])
def test_one_class_is_undefined(name: str, label: bool, size: int) -> None:
    assert math.isnan(measure(name, np.arange(size) * 1.0, [label] * size))


@pytest.mark.parametrize("name", sorted(RANK_METRICS))
def test_the_best_ranking_has_the_best_value(name: str) -> None:
    success = np.array([False] * 5 + [True] * 3)
    value = measure(name, np.arange(8.0), success)
    assert value == pytest.approx(BEST_RANKING_VALUE[name], abs=1e-12)
    assert all(
        measure(name, np.random.default_rng(seed).permutation(8) * 1.0, success) <= value + 1e-12 for seed in range(50)
    )


@pytest.mark.parametrize("name", METRICS)
@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(st.integers(-3, 3), st.booleans()), max_size=12))
def test_values_lie_in_the_declared_range(name: str, rows: list[tuple[int, bool]]) -> None:
    value = measure(name, [float(score) for score, _ in rows], [success for _, success in rows])
    low, high = METRICS[name].range
    assert math.isnan(value) or low <= value <= high


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if metric.chance is not None])
def test_noise_is_at_the_declared_chance(name: str) -> None:
    rng = np.random.default_rng(11)
    success = np.array([True] * 3 + [False] * 5)
    values = [measure(name, rng.normal(size=8), success) for _ in range(2000)]
    standard_error = float(np.std(values)) / math.sqrt(len(values))
    assert np.mean(values) == pytest.approx(METRICS[name].chance, abs=4 * standard_error)
