from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from scipy import stats

from analysis import benchmark
from mopd.inference import (
    CONTRAST_TABLE,
    METRIC_TABLE,
    benjamini_hochberg,
    bootstrap_intervals,
    contrast,
    contrast_table,
    expanded_tail,
    fewest_groups,
    holm,
    interval,
    metric_table,
    sign_flip_p_values,
    studentised_limits,
)
from mopd.metrics import group_values

NAN = float("nan")


def covered(values_GK: np.ndarray, mean: float) -> float:
    _, low, high, _ = bootstrap_intervals(values_GK, draws=1000, seed=1)
    return float(((low <= mean + 1e-12) & (high >= mean - 1e-12)).mean())


@pytest.mark.parametrize("groups", [12, 20, 60])
@pytest.mark.parametrize("name", benchmark.GROUP_VALUES)
def test_intervals_cover_the_true_mean(name: str, groups: int) -> None:
    # 2,000 simulated studies: the standard error of a coverage of 0.93 is 0.006.
    mean, draw = benchmark.GROUP_VALUES[name]
    assert covered(draw(np.random.default_rng(groups), (groups, 2000)).astype(float), mean) >= 0.92


def test_the_plain_percentile_would_fail_where_ours_holds() -> None:
    # The reason for the method: 12 groups with one pair each, right with probability 0.7.
    rng = np.random.default_rng(3)
    values_GK = rng.binomial(1, 0.7, (12, 2000)).astype(float)
    means = values_GK[rng.integers(0, 12, (1000, 12))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    assert ((low <= 0.7) & (high >= 0.7)).mean() < 0.92 < covered(values_GK, 0.7)


@pytest.mark.parametrize("condition", range(3))
def test_noise_scores_cover_chance_through_the_whole_path(condition: int) -> None:
    # 200 studies of 40 groups of 8 rollouts, 1 to 7 of them successes, scored with noise; a task each.
    rng = np.random.default_rng([2026, condition])
    studies, groups, size = 200, 40, 8
    wins = np.repeat(rng.integers(1, size, studies * groups), size)
    row = np.arange(studies * groups * size)
    scored = pl.DataFrame(
        {
            "task": (row // (groups * size)).astype(str),
            "group_id": (row // size).astype(str),
            "unit_id": np.zeros(len(row), dtype=int),
            "rollout_id": (row % size).astype(str),
            "success": row % size < wins,
            "teacher_mean": rng.normal(size=len(row)),
        }
    ).with_columns(condition=pl.lit("1s"), protocol=pl.lit("split"))
    table = metric_table(group_values(scored, metrics=["auc"]), draws=500).filter(pl.col("task") != "all")
    assert table.height == studies
    n_covered = table.filter(pl.lit(0.5).is_between("ci_low", "ci_high")).height
    assert n_covered >= 0.92 * studies


def test_interval_counts_undefined_groups_and_leaves_them_out() -> None:
    with_gaps = interval([0.2, NAN, 0.4, 0.9, NAN])
    assert with_gaps.value == pytest.approx(0.5)
    assert (with_gaps.n_groups, with_gaps.n_undefined) == (3, 2)
    without = interval([0.2, 0.4, 0.9])
    assert (with_gaps.low, with_gaps.high) == (without.low, without.high)


@pytest.mark.parametrize("value", [1.0, 0.1])
def test_equal_values_give_a_point(value: float) -> None:
    flat = interval([value] * 12)
    assert (flat.value, flat.low, flat.high) == (value, value, value)


@pytest.mark.parametrize(("values", "mean", "n"), [([], None, 0), ([NAN], None, 0), ([0.7, NAN], 0.7, 1)])
def test_too_few_groups_have_no_interval(values: list[float], mean: float | None, n: int) -> None:
    few = interval(values)
    assert (few.value, few.low, few.high, few.n_groups) == (mean, None, None, n)


def test_interval_stays_within_the_values_and_widens_with_confidence() -> None:
    values = [0.0, 1.0, 0.25, 1.0, 0.5, 0.75, 0.5, 1.0, 0.75, 0.0, 0.5, 1.0]
    narrow, wide = interval(values, confidence=0.8), interval(values, confidence=0.99)
    bounds = np.array([0.0, wide.low, narrow.low, narrow.value, narrow.high, wide.high, 1.0], dtype=float)
    assert (np.diff(bounds) >= 0).all()
    assert bounds[1] < bounds[2]


def test_the_studentised_limit_inverts_halls_transformation() -> None:
    values = np.random.default_rng(1).exponential(size=(15, 1))
    kurtosis = float(stats.kurtosis(values[:, 0], bias=False))
    assert kurtosis > 0
    t = float(stats.t.ppf(0.975, max(14 * 2 / (2 + kurtosis), 2)))
    skewness = float(stats.skew(values[:, 0], bias=False))
    limits = studentised_limits(values, 0.95)
    for limit, side in zip(limits, (1, -1), strict=True):
        x = (values.mean() - limit.item()) / values.std(ddof=1)
        g = x + skewness * x**2 / 3 + skewness**2 * x**3 / 27 + skewness / (6 * 15)
        assert g == pytest.approx(side * t / math.sqrt(15))
    # without skewness it is Student's: of -1, 0 and 1, mean 0 and sd 1, reach t / sqrt(3), kept within the values
    low, high = studentised_limits(np.array([[-1.0], [0.0], [1.0]]), 0.6)
    reach = stats.t.ppf(0.8, 2) / math.sqrt(3)
    assert (low.item(), high.item()) == pytest.approx((-reach, reach))
    assert [limit.item() for limit in studentised_limits(np.array([[-1.0], [0.0], [1.0]]), 0.95)] == [-1.0, 1.0]


def test_a_long_tail_is_covered_where_the_percentile_alone_falls_short() -> None:
    # Average precision less prevalence of 4 targets with one success: 3/4, 1/4, 1/12 and 0, mean 13/48. The standard
    # error of a coverage of 0.95 over 4,000 studies is 0.0034.
    values = np.random.default_rng(5).choice([3 / 4, 1 / 4, 1 / 12, 0.0], (12, 4000))
    assert covered(values, 13 / 48) >= 0.94


def test_the_expanded_quantile_by_hand() -> None:
    # 20 groups: t of 19 degrees of freedom at 2.5% is -2.093; times sqrt(20 / 19) = 1.02598 it is -2.1474, and the
    # normal distribution has 0.01588 below that
    assert expanded_tail(20, 0.95) == pytest.approx(0.01588, abs=2e-5)
    assert expanded_tail(10**6, 0.95) == pytest.approx(0.025, abs=1e-6)


def test_the_interval_is_that_of_all_resamples_or_halls() -> None:
    values = np.array([0.0, 0.1, 0.4, 0.5, 0.9, 1.0])
    means = np.array([np.mean(picks) for picks in product(values, repeat=6)])  # all 6^6 of them
    # the quantile of t_5 at 2.5% is -2.5706; times sqrt(6 / 5) it is -2.8159
    tail = stats.norm.cdf(-2.5706 * math.sqrt(6 / 5))
    low, high = np.quantile(means, [tail, 1 - tail])
    hall = [limit.item() for limit in studentised_limits(values[:, None], 0.95)]
    found = interval(values, draws=100_000)
    assert found.low == pytest.approx(min(low, hall[0]), abs=0.01)
    assert found.high == pytest.approx(max(high, hall[1]), abs=0.01)


def test_large_samples_agree_with_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 2000)
    got = interval(values, draws=4000)
    half = 1.96 * values.std() / math.sqrt(2000)
    assert got.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert got.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match="draws must be at least 200"):
        interval([0.1, 0.2], draws=10)
    with pytest.raises(ValueError, match="confidence must lie between"):
        interval([0.1, 0.2], confidence=95)


def test_another_column_never_changes_an_interval() -> None:
    values = np.random.default_rng(0).random((20, 3))
    values[4, 2] = NAN
    alone = bootstrap_intervals(values[:, :1])
    together = bootstrap_intervals(values)
    for one, all_of_them in zip(alone, together, strict=True):
        np.testing.assert_allclose(one[0], all_of_them[0], rtol=1e-14)


def test_exact_sign_flips_are_the_enumeration() -> None:
    difference = np.array([0.5, 0.25, -0.1, 0.3, 0.0])
    means = [abs(np.dot(signs, difference)) for signs in product([1, -1], repeat=5)]
    expected = np.mean(np.array(means) >= abs(difference.sum()) - 1e-12)
    assert sign_flip_p_values(difference[:, None])[0] == expected


def test_sign_flip_p_values_worked_by_hand() -> None:
    # All 6 positive: the two patterns of equal signs reach the sum: 2 / 64. All zero: every pattern does.
    assert sign_flip_p_values(np.full((6, 1), 0.1))[0] == 2 / 64
    assert sign_flip_p_values(np.zeros((6, 1)))[0] == 1.0
    # 30 positive: none of 9,999 draws reaches the sum, and the observed pattern counts: 1 / 10,000.
    assert sign_flip_p_values(np.full((30, 1), 0.1))[0] == 1e-4
    assert math.isnan(sign_flip_p_values(np.full((3, 1), NAN))[0])


@pytest.mark.parametrize("groups", [10, 25])
def test_sign_flip_p_values_are_valid_under_the_null(groups: int) -> None:
    differences = np.random.default_rng(groups).normal(size=(groups, 2000))
    p_values = sign_flip_p_values(differences, flips=999)
    for level in (0.05, 0.2, 0.5):
        assert (p_values <= level).mean() == pytest.approx(level, abs=4 * math.sqrt(level * (1 - level) / 2000))


def test_contrast_pairs_groups_that_define_both() -> None:
    got = contrast([0.9, 0.8, NAN, 0.5], [0.4, NAN, 0.1, 0.25])
    assert got.difference == pytest.approx((0.5 + 0.25) / 2)
    assert (got.n_groups, got.n_undefined) == (2, 2)
    assert got.p_value == 2 / 4  # both positive: the two patterns of equal signs, of four
    with pytest.raises(ValueError, match="same groups on both sides"):
        contrast([0.1, 0.2], [0.1])


def test_pairing_takes_out_what_groups_have_in_common() -> None:
    rng = np.random.default_rng(0)
    hardness = rng.random(30)
    a, b = hardness + 0.05 + rng.normal(0, 0.01, 30), hardness
    paired = contrast(a, b)
    assert paired.low == pytest.approx(0.04, abs=0.01)
    assert paired.high == pytest.approx(0.06, abs=0.01)
    assert paired.p_value == 1e-4


def test_holm_and_benjamini_hochberg_worked_by_hand() -> None:
    p = [0.01, NAN, 0.04, 0.03]
    # Holm: 0.01·3, 0.03·2, then max(0.04·1, 0.06). BH: 0.04·3/3, min(0.03·3/2, 0.04), min(0.01·3/1, 0.04).
    np.testing.assert_allclose(holm(p), [0.03, NAN, 0.06, 0.06])
    np.testing.assert_allclose(benjamini_hochberg(p), [0.03, NAN, 0.04, 0.04])
    assert holm([0.6, 0.9]).tolist() == [1.0, 1.0]
    assert holm([]).tolist() == []
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        holm([1.5])


def test_benjamini_hochberg_agrees_with_scipy() -> None:
    p = np.random.default_rng(0).random(40) ** 2
    np.testing.assert_allclose(benjamini_hochberg(p), stats.false_discovery_control(p))


def values_frame(**conditions: Sequence[float | None]) -> pl.DataFrame:
    """Group values of one task, metric and score; group g has g + 1 pairs."""
    return pl.concat(
        pl.DataFrame(
            {
                "group_id": [f"g{g:02d}" for g in range(len(values))],
                "value": pl.Series(values, dtype=pl.Float64),
                "n_pairs": [0 if value is None else g + 1 for g, value in enumerate(values)],
            }
        ).with_columns(
            task=pl.lit("sums"),
            protocol=pl.lit("leave_pair_out"),
            condition=pl.lit(condition),
            score=pl.lit("teacher_mean"),
            metric=pl.lit("auc"),
        )
        for condition, values in conditions.items()
    )


TABLE_INPUT = values_frame(question_only=[0.5, 0.25, 0.5, None], one=[1.0, 0.5, 1.0, 1.0], two=[0.5, 0.25, None, 0.0])


def test_metric_table_holds_means_and_counts() -> None:
    table = metric_table(TABLE_INPUT)
    assert dict(table.schema) == METRIC_TABLE
    rows = table.select("condition", "value", "n_groups", "n_pairs", "n_undefined").rows()
    assert rows == [
        ("one", 3.5 / 4, 4, 10, 0),  # pairs 1 + 2 + 3 + 4
        ("question_only", pytest.approx(1.25 / 3), 3, 6, 1),
        ("two", 0.25, 3, 7, 1),
    ]
    one = interval([1.0, 0.5, 1.0, 1.0])
    assert table.row(0, named=True)["ci_low"] == one.low


def test_contrast_table_pairs_and_adjusts() -> None:
    table = contrast_table(TABLE_INPUT)
    assert dict(table.schema) == CONTRAST_TABLE
    columns = ("condition", "reference", "difference", "p_value", "p_adjusted", "n_groups", "n_pairs")
    assert table.select(columns).rows() == [
        # 0.5, 0.25, 0.5: 2 of 8 patterns reach the sum; Holm doubles it.
        ("one", "question_only", pytest.approx(1.25 / 3), 0.25, 0.5, 3, 6),
        ("two", "question_only", 0.0, 1.0, 1.0, 2, 3),
    ]
    expected = contrast([1.0, 0.5, 1.0], [0.5, 0.25, 0.5])
    row = table.row(0, named=True)
    assert (row["ci_low"], row["ci_high"]) == (expected.low, expected.high)


def test_undefined_everywhere_is_null_and_not_zero() -> None:
    table = metric_table(values_frame(question_only=[None, None]))
    assert table.select("value", "ci_low", "ci_high", "n_groups", "n_undefined").row(0) == (
        None,
        None,
        None,
        0,
        2,
    )
    nothing = contrast_table(values_frame(question_only=[0.1, None], one=[None, 0.1])).row(0, named=True)
    assert (nothing["difference"], nothing["p_value"], nothing["p_adjusted"]) == (None, None, None)


def test_several_tasks_are_also_pooled_by_group() -> None:
    # The same group ids under another task are other groups.
    other = values_frame(question_only=[1.0], one=[0.0]).with_columns(task=pl.lit("products"))
    both = pl.concat([TABLE_INPUT, other])
    means = {(row["task"], row["condition"]): row for row in metric_table(both).iter_rows(named=True)}
    assert means["all", "question_only"]["value"] == pytest.approx((0.5 + 0.25 + 0.5 + 1.0) / 4)
    assert means["all", "question_only"]["n_groups"] == 4
    assert means["products", "one"]["value"] == 0.0
    pooled = contrast_table(both).filter(pl.col("task") == "all", pl.col("condition") == "one")
    assert pooled["difference"].item() == pytest.approx((0.5 + 0.25 + 0.5 - 1.0) / 4)


def test_tables_do_not_depend_on_the_order_of_rows_and_follow_the_seed() -> None:
    values = values_frame(
        **{name: np.random.default_rng(len(name)).random(20).tolist() for name in ("question_only", "b")}
    )
    shuffled = values.sample(fraction=1.0, shuffle=True, seed=3)
    for table in (metric_table, contrast_table):
        assert_frame_equal(table(values, seed=4), table(shuffled, seed=4), check_exact=True)
        assert not table(values, seed=4).equals(table(values, seed=5))


def test_bad_tables_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'question_only' has no values under sums, leave_pair_out.*b, c"):
        contrast_table(values_frame(b=[0.1], c=[0.2]))
    with pytest.raises(ValueError, match=r"lack the columns \['value'\]"):
        metric_table(TABLE_INPUT.drop("value"))
    with pytest.raises(ValueError, match="two rows for one"):
        metric_table(pl.concat([TABLE_INPUT, TABLE_INPUT]))


def test_empty_group_values_give_empty_tables() -> None:
    assert metric_table(TABLE_INPUT.clear()).is_empty()
    assert contrast_table(TABLE_INPUT.clear()).schema == contrast_table(TABLE_INPUT).schema


def test_benchmark_prints_a_table_and_one_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main(["metrics", "--groups", "20", "--conditions", "3", "--draws", "200"])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    # 20 groups x 3 conditions x (16 pairs of 2 + 4 splits of 8)
    assert report["scored_rows"] == 20 * 3 * (32 + 32)
    assert report["total_seconds"] == pytest.approx(sum(report["seconds"].values()), abs=0.01)


@pytest.mark.parametrize(("confidence", "groups"), [(0.5, 2), (0.75, 3), (0.9, 5), (0.95, 6), (0.99, 8)])
def test_an_interval_needs_groups_enough(confidence: float, groups: int) -> None:
    # 1 - 2^(1-G): 0.5, 0.75, 0.875, 0.9375, 0.96875, 0.984, 0.992 for 2 to 8 groups
    assert fewest_groups(confidence) == groups
    values = np.linspace(0.0, 1.0, groups)[:, None]
    _, low, high, n = bootstrap_intervals(values, confidence=confidence)
    assert low[0] < 0.5 < high[0]
    value, low, high, n = bootstrap_intervals(values[:-1], confidence=confidence)
    assert np.isnan([low[0], high[0]]).all()
    assert np.isfinite(value[0])
    assert n[0] == groups - 1
