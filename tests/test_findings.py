"""What a report says, by its rules: every sentence here follows from numbers that stand beside it."""

from __future__ import annotations

import polars as pl
import pytest

from analysis.reporting.findings import _placed as placed
from analysis.reporting.findings import primary_findings, verdict
from mopd.contrasts import FAMILY_TABLE


def rows(*differences: dict[str, object]) -> pl.DataFrame:
    """Rows of the primary family, 2s1f against a reference, 20 groups unless told."""
    usual = {
        "task": "sums",
        "condition": "2s1f",
        "protocol": "leave_pair_out",
        "score": "delta_mean",
        "metric": "auc",
        "family": "primary",
        "n_groups": 20,
        "n_pairs": 200,
        "sd": 0.2,
        "equivalence_margin": 0.05,
        "ci_low": 0.02,
        "ci_high": 0.18,
        "p_value": 0.01,
    }
    return pl.DataFrame([usual | row for row in differences], schema=FAMILY_TABLE)


@pytest.mark.parametrize(
    ("p", "p_equivalence", "expected"),
    [
        (0.05, None, "found"),
        (0.049, 0.001, "found"),
        (0.0501, 0.05, "equivalent"),
        (0.9, 0.0501, "open"),
        (0.9, None, "open"),
        (None, 0.001, "undefined"),
        (None, None, "undefined"),
    ],
)
def test_a_verdict_follows_from_two_p_values(p: float | None, p_equivalence: float | None, expected: str) -> None:
    assert verdict(p, p_equivalence) == expected


def test_each_difference_is_said_by_its_rule() -> None:
    table = rows(
        {"reference": "question_only", "difference": 0.1, "p_adjusted": 0.02, "p_equivalence": 0.9},
        {"reference": "1s", "difference": -0.1, "p_adjusted": 0.03, "p_equivalence": 0.9},
        {"reference": "2s", "difference": 0.01, "p_adjusted": 0.6, "p_equivalence": 0.01},
        {"reference": "shell_only", "difference": 0.04, "p_adjusted": 0.3, "p_equivalence": 0.4},
        {"reference": "random_peer", "difference": None, "p_adjusted": None, "p_equivalence": None, "n_groups": 0},
    )
    head, *said = primary_findings(table, "delta_mean", 0.95)
    assert [f.kind for f in said] == ["found", "open", "found", "equivalent", "undefined"]  # as the family was declared
    assert "2 of the 5 declared differences of AUC are significant at 0.05 (Holm)" in head.text
    assert "1 of the others is shown to be equivalent" in head.text
    assert "too small" not in head.text
    numbers = "+0.100 [+0.020, +0.180] (95% interval), adjusted p 0.020"
    assert said[0].text == f"2s1f against question_only: the AUC is higher ({numbers})."
    assert "the AUC is lower (-0.100" in said[2].text
    # Holm over the four equivalence tests that there are: 0.01 * 4 = 0.04
    assert "equivalent within ±0.05" in said[3].text
    assert "equivalence test, adjusted p 0.040" in said[3].text
    assert "neither a difference nor equivalence was shown" in said[1].text
    # sd 0.2, 20 groups, level 0.05 / 5: about (t_0.995 + t_0.8) * 0.2 / √20 = (2.861 + 0.861) * 0.0447 = 0.166,
    # which the noncentral t makes 0.168
    assert "A true difference of 0.168 would be found with 80% power." in said[1].text
    assert said[4].text == "2s1f against random_peer: undefined, since no group allows the comparison."


def test_an_equivalence_that_holm_undoes_is_not_claimed() -> None:
    # 0.03 passes alone; with two members Holm makes it 0.06
    table = rows(
        {"reference": "1s", "difference": 0.01, "p_adjusted": 0.6, "p_equivalence": 0.03},
        {"reference": "2s", "difference": 0.01, "p_adjusted": 0.6, "p_equivalence": 0.5},
    )
    assert [f.kind for f in primary_findings(table, "delta_mean", 0.95)[1:]] == ["open", "open"]


def test_a_small_difference_that_is_found_is_called_small() -> None:
    table = rows({"reference": "1s", "difference": 0.01, "p_adjusted": 0.001, "p_equivalence": 0.001})
    assert primary_findings(table, "delta_mean", 0.95)[1].text.endswith(
        "The difference is shown to lie within ±0.05, so it is small."
    )


@pytest.mark.parametrize(("groups", "too_small"), [(7, True), (8, False)])
def test_a_study_that_cannot_find_anything_says_so(groups: int, too_small: bool) -> None:
    # five differences: 5 * 2 / 2^7 = 0.078 does not pass 0.05, 5 * 2 / 2^8 = 0.039 does
    names = ("question_only", "shell_only", "1s", "2s", "random_peer")
    table = rows(
        *(
            {"reference": n, "difference": 0.1, "p_adjusted": 0.08, "p_equivalence": 0.9, "n_groups": groups}
            for n in names
        )
    )
    head = primary_findings(table, "delta_mean", 0.95)[0].text
    assert ("this study is too small to find anything" in head) is too_small
    assert "none of the 5 declared differences of AUC is significant" in head


def test_the_same_difference_everywhere_is_no_evidence() -> None:
    table = rows({"reference": "1s", "difference": 0.0, "p_adjusted": 1.0, "p_equivalence": None, "sd": 0.0})
    assert "so there is no spread to judge by" in primary_findings(table, "delta_mean", 0.95)[1].text


def test_a_family_that_was_not_run_claims_nothing() -> None:
    (only,) = primary_findings(rows(), "delta_mean", 0.95)
    assert only.kind == "note"
    assert "so nothing is claimed" in only.text


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.51, 0.7, "0.600 [0.510, 0.700], which lies above 0.5"),
        (0.5, 0.7, "0.600 [0.500, 0.700], which lies across 0.5"),
        (0.3, 0.49, "0.600 [0.300, 0.490], which lies below 0.5"),
        (0.6, 0.6, "0.600 in every group, so there is no spread to judge by"),
        (None, None, "0.600 without an interval (too few groups)"),
    ],
)
def test_an_interval_is_placed(low: float | None, high: float | None, words: str) -> None:
    assert placed({"value": 0.6, "ci_low": low, "ci_high": high}, 0.5) == words
