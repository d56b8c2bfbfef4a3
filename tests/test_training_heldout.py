"""Held-out metrics by hand."""

from __future__ import annotations

import pytest

from training.heldout import summarise


def test_mean_and_pass_are_over_the_prompts_that_were_judged_to_the_end() -> None:
    found = [(0, 4, 1, 10.0), (1, 4, 0, 20.0), (2, 3, 3, 30.0)]  # the third has an unjudged response
    # mean (1/4 + 0) / 2; pass@4 (1 + 0) / 2; length (10 + 20 + 30) / 3; 1 of 12 not judged
    assert summarise(found, 4) == {
        "length": 20.0,
        "unjudged_fraction": pytest.approx(1 / 12),
        "prompts": 2.0,
        "mean@4": 0.125,
        "pass@4": 0.5,
    }


def test_without_a_judged_prompt_there_is_no_mean() -> None:
    assert "mean@2" not in summarise([(0, 0, 0, 5.0)], 2)
