"""Families, equivalence and clustering: values by hand and against scipy."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from scipy import stats

from mopd.conditions import CONTROLS, DEFAULT_CONDITIONS
from mopd.contrasts import (
    CLUSTERING_TABLE,
    EQUIVALENCE_MARGIN,
    FAMILY_TABLE,
    clustering_table,
    compared_pairs,
    contrast_families,
    design_effect,
    equivalence_p_values,
    intraclass_correlation,
)
from mopd.inference import benjamini_hochberg, contrast, contrast_table, holm
from tests.test_inference import values_frame

NAN = float("nan")


def test_the_primary_family_is_declared_and_as_many_as_were_run() -> None:
    pairs = compared_pairs([*DEFAULT_CONDITIONS, *CONTROLS], "question_only")
    primary = [(a, b) for a, b, family in pairs if family == "primary"]
    assert primary == [("2s1f", b) for b in ("question_only", "shell_only", "1s", "2s", "random_peer")]
    rest = {(a, b) for a, b, family in pairs if family == "rest"}
    assert ("1s", "question_only") in rest
    assert ("2s1f", "other_prompt") in rest
    # 14 others against the reference, of which one is primary; 2s1f against 7 controls, of which one is
    assert len(rest) == 13 + 6
    assert len(pairs) == len({(a, b) for a, b, _ in pairs})
    assert compared_pairs(["2s1f", "1s"], "question_only") == [("2s1f", "1s", "primary")]
    assert compared_pairs(["1s"], "question_only") == []


def study_values(groups: int = 25, seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    names = ("question_only", "shell_only", "1s", "2s1f", "other_prompt")
    columns = {name: (rng.random(groups) * 0.5 + 0.1 * k).tolist() for k, name in enumerate(names)}
    columns["1s"][3] = None
    return values_frame(**columns)


def test_each_row_is_the_paired_contrast_and_each_family_has_its_correction() -> None:
    values = study_values()
    table = contrast_families(values)
    assert dict(table.schema) == FAMILY_TABLE
    columns = {name: part["value"].to_numpy() for (name,), part in values.group_by("condition")}
    for row in table.iter_rows(named=True):
        expected = contrast(columns[row["condition"]], columns[row["reference"]])
        assert row["difference"] == pytest.approx(expected.difference)
        assert row["p_value"] == expected.p_value
        assert (row["ci_low"], row["ci_high"]) == pytest.approx((expected.low, expected.high))
        assert row["n_groups"] == expected.n_groups == (24 if "1s" in (row["condition"], row["reference"]) else 25)
        d = (columns[row["condition"]] - columns[row["reference"]])[:]
        assert row["sd"] == pytest.approx(np.nanstd(d, ddof=1))
    for family, correct in (("primary", holm), ("rest", benjamini_hochberg)):
        part = table.filter(pl.col("family") == family)
        np.testing.assert_allclose(part["p_adjusted"], correct(part["p_value"]))
    assert set(table.filter(pl.col("family") == "primary")["reference"]) == {"question_only", "shell_only", "1s"}


def test_a_difference_to_the_reference_is_that_of_the_plain_table() -> None:
    values = study_values()
    columns = ["condition", "reference", "difference", "ci_low", "ci_high", "p_value", "n_groups", "n_pairs"]
    families = contrast_families(values).filter(pl.col("reference") == "question_only").select(columns)
    assert_frame_equal(families.sort("condition"), contrast_table(values).select(columns).sort("condition"))


def test_nothing_to_contrast_is_an_empty_table() -> None:
    assert contrast_families(values_frame(question_only=[0.5, 0.6])).schema == pl.Schema(FAMILY_TABLE)
    assert contrast_families(study_values().clear()).is_empty()


def test_two_groups_and_constant_differences_give_nulls_where_nothing_can_be_said() -> None:
    row = contrast_families(values_frame(question_only=[0.5, 0.5], **{"2s1f": [0.75, 0.75]})).row(0, named=True)
    assert (row["difference"], row["sd"], row["p_equivalence"]) == (0.25, 0.0, None)
    assert row["p_value"] == 2 / 4
    one = contrast_families(values_frame(question_only=[0.5, None], **{"2s1f": [0.75, 0.75]})).row(0, named=True)
    assert (one["difference"], one["sd"], one["ci_low"], one["p_equivalence"]) == (0.25, None, None, None)
    none = contrast_families(values_frame(question_only=[None], **{"2s1f": [0.75]})).row(0, named=True)
    assert (none["difference"], none["p_value"], none["p_adjusted"]) == (None, None, None)


def test_equivalence_is_two_one_sided_t_tests() -> None:
    d = np.random.default_rng(0).normal(0.01, 0.05, 40)
    above = stats.ttest_1samp(d, -EQUIVALENCE_MARGIN, alternative="greater").pvalue  # pyright: ignore[reportAttributeAccessIssue]
    below = stats.ttest_1samp(d, EQUIVALENCE_MARGIN, alternative="less").pvalue  # pyright: ignore[reportAttributeAccessIssue]
    found = equivalence_p_values(np.column_stack([d, -d, np.r_[d[:1], np.full(39, NAN)]]), [EQUIVALENCE_MARGIN] * 3)
    assert found[0] == pytest.approx(max(above, below))
    assert found[1] == pytest.approx(found[0])
    assert math.isnan(found[2])


def test_equivalence_by_hand() -> None:
    # mean 0, sd sqrt(4 · 0.01 / 3), error sd / 2 = 0.057735: t = 0.05 / 0.057735 = 0.866 with 3 degrees of freedom
    d = np.array([[0.1], [-0.1], [0.1], [-0.1]])
    assert equivalence_p_values(d, [0.05])[0] == pytest.approx(stats.t.sf(0.05 / math.sqrt(0.04 / 3 / 4), 3))


def test_intraclass_correlation_by_hand() -> None:
    # groups (1, 1) and (0, 0): MSB = 4 · 0.25 / 1 = 1, MSW = 0, m0 = 2: ICC = 1
    assert intraclass_correlation([1, 1, 0, 0], ["a", "a", "b", "b"]) == 1.0
    # groups (1, 0) and (1, 0): MSB = 0, MSW = 1 / 2: (0 - 1/2) / (0 + 1/2) = -1
    assert intraclass_correlation([1, 0, 1, 0], ["a", "a", "b", "b"]) == -1.0
    # groups (1, 1, 0) and (0): means 2/3, 0, all 1/2. MSB = 3/36 + 1/4 = 1/3; MSW = (2/9 + 4/9) / 2 = 1/3: ICC = 0
    assert intraclass_correlation([1, 1, 0, 0], ["a", "a", "a", "b"]) == pytest.approx(0.0, abs=1e-12)
    for value, group in (([1, 1], ["a", "a"]), ([1, 0], ["a", "b"]), ([1, 1, 1], ["a", "a", "b"]), ([], [])):
        assert math.isnan(intraclass_correlation(value, group))


def test_intraclass_correlation_finds_the_planted_one() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1, (3000, 1)) + rng.normal(0, 2, (3000, 6))  # 1 / (1 + 4)
    assert intraclass_correlation(values.ravel(), np.repeat(np.arange(3000), 6)) == pytest.approx(0.2, abs=0.02)


def test_design_effect_by_hand() -> None:
    # groups of 3 and 1: Σ m² / N = 10 / 4 = 2.5, so 1 + 1.5 · 0.2
    assert design_effect(0.2, ["a", "a", "a", "b"]) == pytest.approx(1.3)
    assert design_effect(-0.5, ["a", "a", "b"]) == 1.0
    assert math.isnan(design_effect(NAN, ["a"]))


def test_clustering_table() -> None:
    rows = [  # pairs won by group: a (1, 1), b (0, 0), as above
        {"group_id": g, "unit_id": f"{g}{u}", "rollout_id": f"{g}{u}{label}", "success": label, "teacher_mean": score}
        for g, won in (("a", True), ("b", False))
        for u in range(2)
        for label, score in ((True, 1.0 if won else 0.0), (False, 0.0 if won else 1.0))
    ]
    scored = pl.DataFrame(rows).with_columns(
        task=pl.lit("t"), condition=pl.lit("1s"), protocol=pl.lit("leave_pair_out")
    )
    other = scored.with_columns(protocol=pl.lit("split"))
    table = clustering_table(pl.concat([scored, other]), ["teacher_mean"])
    assert dict(table.schema) == CLUSTERING_TABLE
    # Σ m² / N = 8 / 4 = 2: 1 + 1 · 1
    assert table.rows() == [("t", "leave_pair_out", "1s", "teacher_mean", 1.0, 2.0, 2, 4)]
    assert clustering_table(other, ["teacher_mean"]).is_empty()


@pytest.mark.parametrize("missing", [None, NAN])
def test_a_pair_without_a_score_leaves_the_clustering_of_every_condition(missing: float | None) -> None:
    rows = [
        (condition, g, f"{g}{u}", f"{g}{u}{label}", label, float(label == (g == "a")))
        for condition in ("1s", "2s")
        for g in "ab"
        for u in range(3)
        for label in (True, False)
    ]
    names = ["condition", "group_id", "unit_id", "rollout_id", "success", "teacher_mean"]
    scored = pl.DataFrame(rows, schema=names, orient="row").with_columns(
        task=pl.lit("t"), protocol=pl.lit("leave_pair_out")
    )
    gone = (pl.col("condition") == "2s") & (pl.col("rollout_id") == "b2True")
    scored = scored.with_columns(
        teacher_mean=pl.when(gone).then(pl.lit(missing, pl.Float64)).otherwise("teacher_mean"), whole=pl.lit(0.5)
    )
    table = clustering_table(scored, ["teacher_mean", "whole"])
    # a won three pairs, b lost two of its three: 9 + 4 over 5, so 1 + (13/5 - 1) · 1
    assert table.filter(pl.col("score") == "teacher_mean").select(
        "condition", "icc", "design_effect", "n_pairs"
    ).rows() == [
        ("1s", 1.0, pytest.approx(2.6), 5),
        ("2s", 1.0, pytest.approx(2.6), 5),
    ]
    assert table.filter(pl.col("score") == "whole").select("icc", "n_pairs").rows() == [(None, 6)] * 2
