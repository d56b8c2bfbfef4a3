from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import permutations

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from mopd.metrics import METRICS, Units, auc, group_values, measure, metrics_for

NAN = float("nan")


def reference(name: str, score: np.ndarray, success: np.ndarray) -> float:
    """The metric by its textbook definition or by scipy and scikit-learn, one unit at a time."""
    if success.all() or not success.any():
        return NAN
    differences = score[success][:, None] - score[~success][None, :]
    right, wrong = (differences > 0).sum(), (differences < 0).sum()
    constant = len(set(score.tolist())) == 1
    match name:
        case "auc":
            return float(roc_auc_score(success, score))
        case "margin":
            return float(differences.mean())
        case "auprc_lift":
            return float(average_precision_score(success, score) - success.mean())
        case "top1":
            return float(success[score == score.max()].mean())
        case "goodman_kruskal_gamma":
            return float((right - wrong) / (right + wrong)) if right + wrong else NAN
        case "spearman":
            return NAN if constant else float(np.asarray(stats.spearmanr(score, success))[0])
        case "kendall_tau_b":
            return NAN if constant else float(np.asarray(stats.kendalltau(score, success))[0])
        case "point_biserial":
            return NAN if constant else float(np.asarray(stats.pointbiserialr(success, score))[0])
    raise AssertionError(f"no reference for {name}")


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("levels", [2, 4, 1000])
def test_all_units_at_once_agree_with_the_reference_one_at_a_time(name: str, levels: int) -> None:
    rng = np.random.default_rng(levels)
    unit = rng.integers(0, 200, 900)  # units of 0 to about 12 targets
    score, success = rng.integers(0, levels, 900) * 0.3 - 7.0, rng.random(900) < 0.4
    values = METRICS[name].function(Units.of(score, success, unit, 201))
    expected = [reference(name, score[unit == u], success[unit == u]) if u in unit else NAN for u in range(201)]
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-12)
    assert 50 < np.isfinite(values).sum() < 200  # both defined and undefined units were compared


# Scores 3 > 2 = 2 > 1 with labels S, S, F, F. Pairs: S3>F2, S3>F1, S2=F2, S2>F1: 3 right, 0 wrong, 1 tied.
SCORE, SUCCESS = [3.0, 2.0, 2.0, 1.0], [True, True, False, False]
BY_HAND = {
    "auc": 3.5 / 4,
    "margin": 2.5 - 1.5,
    # Ranks 4, 2.5, 2.5, 1 against labels 1, 1, 0, 0: means 2.5 and 0.5; covariance sum 1.5·½ + 0 + 0 + 1.5·½;
    # sums of squares 4.5 and 1.
    "spearman": 1.5 / math.sqrt(4.5 * 1.0),
    # 6 pairs, 1 tied in score; 4 untied in label.
    "kendall_tau_b": 3 / math.sqrt(5 * 4),
    "goodman_kruskal_gamma": 3 / 3,
    # At 3: recall ½, precision 1; at 2: recall 1, precision 2/3; at 1: no recall gained.
    "auprc_lift": (0.5 * 1 + 0.5 * 2 / 3) - 0.5,
    # Scores minus 2: 1, 0, 0, -1; covariance sum ½ + ½; sums of squares 2 and 1.
    "point_biserial": 1 / math.sqrt(2 * 1),
    "top1": 1.0,
}


@pytest.mark.parametrize("name", METRICS)
def test_values_worked_by_hand(name: str) -> None:
    assert measure(name, SCORE, SUCCESS) == pytest.approx(BY_HAND[name], abs=1e-15)


def test_top1_shares_a_tied_first_place() -> None:
    assert measure("top1", [1.0, 1.0, 1.0, 0.0], [True, False, False, True]) == pytest.approx(1 / 3)


def test_auprc_lift_of_a_random_order_is_the_documented_chance() -> None:
    n, wins = 5, 2
    success = [True] * wins + [False] * (n - wins)
    mean = np.mean([measure("auprc_lift", order, success) for order in permutations(range(n))])
    harmonic = sum(1 / k for k in range(1, n + 1))
    assert mean == pytest.approx((harmonic + (n - harmonic) * (wins - 1) / (n - 1)) / n - wins / n)
    assert mean > 0.15  # far from 0, which is why METRICS names no chance for it


def test_infinite_scores_rank_but_have_no_margin() -> None:
    score, success = [-math.inf, 0.0, 1.0], [False, True, False]
    assert measure("auc", score, success) == 0.5  # above one failure, below the other
    assert math.isnan(measure("margin", score, success))
    assert math.isnan(measure("point_biserial", score, success))


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_point_biserial_survives_extreme_scales(scale: float) -> None:
    scores = [s * scale for s in SCORE]
    assert measure("point_biserial", scores, SUCCESS) == pytest.approx(BY_HAND["point_biserial"])


def test_units_refuse_nan_and_unequal_lengths() -> None:
    with pytest.raises(ValueError, match="NaN"):
        measure("auc", [1.0, NAN], [True, False])
    with pytest.raises(ValueError, match="one length"):
        Units.of([1.0, 2.0], [True], [0, 0], 1)


def test_pairs_report_only_auc_and_margin() -> None:
    assert [m.name for m in metrics_for("leave_pair_out")] == ["auc", "margin"]
    assert [m.name for m in metrics_for("split")] == list(METRICS)
    with pytest.raises(ValueError, match=r"unknown metric 'AUC'.*auc, margin"):
        metrics_for("split", ["AUC"])


def frame(rows: Sequence[tuple[str, str, str, bool, float | None]], **columns: str) -> pl.DataFrame:
    """Rows (group, unit, rollout, success, teacher_mean) under one condition and protocol."""
    names = ["group_id", "unit_id", "rollout_id", "success", "teacher_mean"]
    base = pl.DataFrame(rows, schema=names, orient="row", schema_overrides={"teacher_mean": pl.Float64})
    labels = {"condition": "1s", "protocol": "leave_pair_out", **columns}
    return base.with_columns(**{name: pl.lit(value) for name, value in labels.items()})


PAIRS = [
    ("g1", "a", "s1", True, -1.0),
    ("g1", "a", "f1", False, -2.0),  # right: 1, margin 1
    ("g1", "b", "s2", True, -3.0),
    ("g1", "b", "f1", False, -3.0),  # tie: ½, margin 0
    ("g2", "a", "s1", True, -5.0),
    ("g2", "a", "f1", False, -2.0),  # wrong: 0, margin -3
    ("g3", "a", "s1", True, -5.0),
    ("g3", "a", "s2", True, -2.0),  # one class: undefined
]


def test_group_values_are_means_over_defined_units() -> None:
    values = group_values(frame(PAIRS))
    assert values.select("group_id", "metric", "value", "n_units", "n_undefined", "n_pairs").rows() == [
        ("g1", "auc", 0.75, 2, 0, 2),
        ("g1", "margin", 0.5, 2, 0, 2),
        ("g2", "auc", 0.0, 1, 0, 1),
        ("g2", "margin", -3.0, 1, 0, 1),
        ("g3", "auc", None, 0, 1, 0),
        ("g3", "margin", None, 0, 1, 0),
    ]
    assert values["task"].unique().to_list() == ["all"]


@pytest.mark.parametrize("missing", [None, NAN])
def test_a_missing_score_drops_the_target_under_every_condition_and_is_counted(missing: float | None) -> None:
    broken = [(*row[:4], missing if row[:3] == ("g1", "b", "s2") else row[4]) for row in PAIRS]
    values = group_values(pl.concat([frame(PAIRS), frame(broken, condition="2s")]), metrics=["auc"])
    g1 = values.filter(pl.col("group_id") == "g1")
    columns = ("condition", "value", "n_units", "n_undefined", "n_pairs", "n_dropped")
    assert g1.select(columns).rows() == [("1s", 1.0, 1, 1, 1, 1), ("2s", 1.0, 1, 1, 1, 1)]


def test_tasks_protocols_and_scores_are_kept_apart() -> None:
    split = frame([row for row in PAIRS if row[1] == "a"], protocol="split", task="sums")
    scored = pl.concat([frame(PAIRS, task="sums"), frame(PAIRS, task="products"), split])
    scored = scored.with_columns(delta_mean=-pl.col("teacher_mean"))
    values = group_values(scored, ["teacher_mean", "delta_mean"])
    # Three groups; 2 metrics under leave_pair_out in two tasks, 8 under split in one; two scores.
    assert values.height == 3 * (2 * 2 + 8) * 2
    g2 = values.filter(pl.col("group_id") == "g2", pl.col("metric") == "auc", pl.col("protocol") == "split")
    assert dict(g2.select("score", "value").rows()) == {"teacher_mean": 0.0, "delta_mean": 1.0}


def test_group_values_do_not_depend_on_the_order_of_rows() -> None:
    rng = np.random.default_rng(5)
    rows = [
        (f"g{g}", f"u{u}", f"r{r}", bool(r < 3), float(rng.normal()))
        for g in range(9)
        for u in (0, 1)
        for r in range(8)
    ]
    scored = frame(rows, protocol="split")
    assert_frame_equal(
        group_values(scored),
        group_values(scored.sample(fraction=1.0, shuffle=True, seed=1)),
        check_exact=True,
    )


def test_an_empty_frame_gives_an_empty_table_of_the_same_columns() -> None:
    scored = frame(PAIRS)
    assert group_values(scored.clear()).schema == group_values(scored).schema


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (frame(PAIRS).drop("unit_id"), r"lacks the columns \['unit_id'\]"),
        (frame(PAIRS).with_columns(success=pl.lit(None, pl.Boolean)), r"nulls in \['success'\]"),
        (pl.concat([frame(PAIRS), frame(PAIRS[:1])]), "two rows for one"),
        (
            pl.concat([frame(PAIRS), frame(PAIRS[1:], condition="2s")]),
            "common support: target 's1' of unit 'a'",
        ),
    ],
)
def test_a_frame_that_cannot_be_compared_is_refused(broken: pl.DataFrame, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        group_values(broken)


def test_codes_with_many_distinct_ids_agree_with_few() -> None:
    # Unit ids that are hashes make the code range too large for a table look-up.
    rng = np.random.default_rng(0)
    rows = [
        (f"g{g}", f"{g}-{u}", f"{g}-{u}-{r}", r == 0, float(rng.normal()))
        for g in range(60)
        for u in range(9)
        for r in (0, 1)
    ]
    short = [(g, unit.split("-")[1], rollout.split("-")[2], s, x) for g, unit, rollout, s, x in rows]
    assert_frame_equal(group_values(frame(rows)), group_values(frame(short)))


def test_auc_is_a_plain_function_of_units() -> None:
    assert auc(Units.of([1, 2, 5, 4], [0, 1, 1, 0], [1, 1, 0, 0], 2)).tolist() == [1.0, 1.0]
