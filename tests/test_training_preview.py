"""What ``--dry-run`` says, where no model can be read."""

from __future__ import annotations

from typing import Any

import pytest

from mopd import tasks
from mopd.tokens import ByteCodec, Codec
from training.config import read_config
from training.data import Prompts
from training.preview import describe


def plan(codec: Codec | None = None, **changes: object) -> list[str]:
    items = tasks.load("arithmetic", limit=5)
    prompts = Prompts(train=tuple(items[1:]), held_out=tuple(items[:1]))
    config = read_config("cpu-smoke", {"model": "/no/such", **changes})
    return describe(config, prompts, codec, config.run.processes).splitlines()


def line(plan: list[str], begin: str) -> str:
    (found,) = [line for line in plan if line.startswith(begin)]
    return found.removeprefix(begin)


def test_one_of_a_thing_is_not_several() -> None:
    told = plan(prompts_per_step=1, group_size=4, micro_batch=4)
    assert line(told, "effective batch: ") == (
        "1 group of 4 = 4 rollouts a step; 1 process, 4 rollouts a forward, 1 forward a step"
    )
    told = plan(prompts_per_step=2, group_size=4, micro_batch=1, processes=2)
    assert line(told, "effective batch: ") == (
        "2 groups of 4 = 8 rollouts a step; 2 processes, 1 rollout a forward, 4 forwards a step"
    )


def test_passes_are_counted_in_prompts() -> None:
    """4 steps of 3 prompts each are 12, three times the 4 there are; a pass need not end with a step."""
    assert line(plan(steps=4, prompts_per_step=3), "steps: ") == "4 on 48 rollouts, 3.00 passes over the prompts"
    # two updates on each batch: half as many rollouts
    told = plan(steps=4, prompts_per_step=3, updates_per_batch=2, save_every=2, evaluate_every=2)
    assert line(told, "steps: ") == "4 on 24 rollouts, 1.50 passes over the prompts"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "generalised JSD, alpha 0.5, over the top 100 tokens and a tail bucket, token mean"),
        (
            {"updates_per_batch": 2, "save_every": 2, "evaluate_every": 2, "distillation_weight": 0.75},
            "generalised JSD, alpha 0.5, over the top 100 tokens and a tail bucket, token mean, 2 updates on a batch "
            "with importance clip 2; 0.75 of it and 0.25 of the policy gradient",
        ),
        ({"method": "grpo", "average": "sequence"}, "policy gradient, sequence mean"),
        ({"method": "rft"}, "negative log-likelihood of the successes, token mean"),
        ({"method": "dpo"}, "preference of a success over a failure, beta 0.1, mean over pairs"),
    ],
)
def test_the_loss_is_told_as_it_is_taken(changes: dict[str, Any], told: str) -> None:
    assert line(plan(**changes), "loss: ") == told


def test_without_a_tokenizer_the_context_is_told_in_words_and_no_length_is_claimed() -> None:
    told = plan()
    assert line(told, "prompts: ") == "4 of arithmetic to train on, 1 held out, their lengths not known"
    context = told[told.index("first teacher context, with stand-ins for the responses:") + 1 :]
    assert context[0] == "[user]"
    assert "A correct solution to this problem:" in context
    assert context[-1] == "Now give your own solution to the original problem."


def test_a_context_that_cannot_be_cut_to_its_budget_is_told() -> None:
    told = plan(ByteCodec(), max_context_tokens=20)[-1]
    assert told.startswith("(none: the context 2s1f of group arithmetic-")
    assert told.endswith("over the budget of 20, even with no word of its peers; raise max_context_tokens)")
