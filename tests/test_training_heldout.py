"""Held-out metrics by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from mopd.generation.base import Completion
from mopd.tasks import TaskItem
from mopd.verifiers import Verdict
from training.groups import Judged
from training.heldout import summarise

ITEM = TaskItem(item_id="i", task="t", prompt="p", verifier="v", reference={})


def answered(rewards: Sequence[float | None], tokens: int) -> list[Judged]:
    """Responses of ``tokens`` tokens each with these rewards."""
    completion = Completion(text="x", ids=tuple(range(tokens)), finished=True)
    return [Judged(item=ITEM, completion=completion, verdict=Verdict(reward=r)) for r in rewards]


def test_mean_and_pass_are_over_the_prompts_that_were_judged_to_the_end() -> None:
    found = [answered([1, 0, 0, 0.5], 10), answered([0, 0, 0, 0], 20), answered([1, 1, None, 1], 30)]
    # mean (1/4 + 0) / 2; pass@4 (1 + 0) / 2; length (10 + 20 + 30) / 3; 1 of 12 not judged
    assert summarise(found, 4, 1.0) == {
        "length": 20.0,
        "unjudged_fraction": pytest.approx(1 / 12),
        "prompts": 2.0,
        "mean@4": 0.125,
        "pass@4": 0.5,
    }


def test_without_a_judged_prompt_there_is_no_mean() -> None:
    assert "mean@2" not in summarise([answered([None, None], 5)], 2, 1.0)
