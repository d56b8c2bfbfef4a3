"""Plans: power against published values, simulation and its own inverse."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from analysis.tables import power_text
from mopd.contrasts import contrast_families
from mopd.power import POWER_TABLE, detectable_difference, groups_needed, plan, power_of
from mopd.study import StudyConfig, run_study
from mopd.teachers.scripted import ScriptedTeacher
from tests.test_inference import values_frame
from tests.test_study import labelled_rollouts


def test_groups_needed_for_the_textbook_effects() -> None:
    # paired t-test, two-sided 5%, 80% power: Cohen, Statistical Power Analysis: 34 for d = 0.5, 199 for d = 0.2
    assert groups_needed(0.5, 1.0) == 34
    assert groups_needed(-0.2, 1.0) == 199
    assert groups_needed(0.1, 0.5) == 199
    assert groups_needed(0.0, 1.0) is None
    assert groups_needed(1e-9, 1.0) is None


def test_no_plan_is_smaller_than_what_lets_sign_flips_reject() -> None:
    # the smallest p-value of G groups is 2^(1-G): 1/32 of 6 is below 5%, 1/16 of 5 is not; 1/128 of 8 is below 1%
    assert groups_needed(100.0, 1.0) == 6
    assert groups_needed(100.0, 1.0, alpha=0.01) == 8
    rng = np.random.default_rng(0)
    columns = {name: rng.random(7).tolist() for name in ("question_only", "shell_only", "1s", "2s", "2s1f")}
    four = plan(contrast_families(values_frame(**columns)))  # at 5% / 4 it takes 8 groups
    assert four["detectable"].null_count() == four.height == 4
    assert four["groups_needed"].min() >= 8  # pyright: ignore[reportOperatorIssue]
    one = plan(contrast_families(values_frame(**{name: columns[name] for name in ("question_only", "2s1f")})))
    assert one["detectable"].null_count() == 0


def test_power_is_what_simulation_finds() -> None:
    rng = np.random.default_rng(0)
    p = np.asarray(stats.ttest_1samp(rng.normal(0.4, 1.0, (20, 20000)), 0.0)[1])
    # standard error of a share of 20,000: 0.0035
    assert power_of(0.4, 1.0, 20) == pytest.approx((p <= 0.05).mean(), abs=0.014)
    assert power_of(0.0, 1.0, 20) == pytest.approx(0.05)


def test_what_is_detectable_needs_the_groups_that_are_there() -> None:
    for groups in (6, 40, 300):
        found = detectable_difference(0.3, groups)
        assert power_of(found, 0.3, groups) == pytest.approx(0.8, abs=1e-6)
        assert groups_needed(found * 1.0001, 0.3) == groups


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="got 1 groups and sd 1"):
        power_of(0.1, 1.0, 1)
    with pytest.raises(ValueError, match="positive standard deviation"):
        power_of(0.1, 0.0, 10)


def test_a_plan_divides_the_level_among_the_primary_differences() -> None:
    rng = np.random.default_rng(1)
    columns = {name: rng.random(30).tolist() for name in ("question_only", "1s", "2s1f")}
    table = plan(contrast_families(values_frame(**columns)))
    assert dict(table.schema) == POWER_TABLE
    assert table["reference"].to_list() == ["1s", "question_only"]
    row = table.row(0, named=True)
    assert row["alpha"] == 0.025
    assert row["detectable"] == pytest.approx(detectable_difference(row["sd"], 30, alpha=0.025))
    assert row["groups_needed"] == groups_needed(row["difference"], row["sd"], alpha=0.025)


def test_a_pilot_without_spread_plans_nothing() -> None:
    table = plan(contrast_families(values_frame(question_only=[0.5, 0.5], **{"2s1f": [0.75, 0.75]})))
    assert table.select("detectable", "groups_needed").rows() == [(None, None)]
    assert plan(contrast_families(values_frame(question_only=[0.5, 0.5]))).is_empty()
    plain = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]  # 0.3 below the other side but for rounding: 0.4 - 0.1 is not 0.5 - 0.2
    rounded = contrast_families(values_frame(question_only=plain, **{"2s1f": [round(v + 0.3, 1) for v in plain]}))
    assert rounded["sd"].to_list() == [0.0]
    assert plan(rounded).select("detectable", "groups_needed").rows() == [(None, None)]


def test_the_plan_in_words_says_its_level_and_what_it_cannot_tell() -> None:
    config = StudyConfig(conditions=["question_only", "shell_only", "2s1f"], draws=200)
    few, many = (run_study(labelled_rollouts([[1, 1, 1, 0, 0]] * n), ScriptedTeacher("noise"), config) for n in (3, 12))
    text = power_text(many, "teacher_mean").splitlines()
    assert text[0].endswith("AUC of teacher_mean, 80% power, two-sided level 0.025 (0.05 / 2 differences)")
    assert [line.split()[:4] for line in text[3:]] == [
        ["2s1f", "-", "question_only", "12"],
        ["2s1f", "-", "shell_only", "12"],
    ]
    assert "undefined" not in "".join(text)
    # 3 groups: the smallest p-value is 1/4
    assert [line.split()[5] for line in power_text(few, "teacher_mean").splitlines()[3:]] == ["undefined"] * 2
    alone = run_study(labelled_rollouts([[1, 0]] * 3), ScriptedTeacher("noise"), StudyConfig(conditions=["shell_only"]))
    assert power_text(alone, "teacher_mean").endswith("(2s1f against question_only, shell_only, 1s, 2s, random_peer)")
