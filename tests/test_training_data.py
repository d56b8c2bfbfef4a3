"""Prompts and their order."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mopd.rollouts import prompt_key
from mopd.tasks import TaskItem
from mopd.tokens import ByteCodec
from mopd.verifiers import Verdict
from training.config import DataConfig
from training.data import DataError, Prompts, keep_short, load_prompts, training_order
from training.rewards import Judge, RewardError, load_function


def item(text: str, name: str = "i") -> TaskItem:
    return TaskItem(
        item_id=name,
        task="t",
        prompt=({"role": "user", "content": text},),
        verifier="choice",
        reference={"answer": "A", "options": ["A", "B"]},
    )


def test_held_out_prompts_are_never_trained_on_and_stay_when_there_are_more() -> None:
    few = load_prompts(DataConfig(prompts=8, held_out=5))
    many = load_prompts(DataConfig(prompts=40, held_out=5))
    assert few.held_out == many.held_out
    assert (len(few.train), len(many.train), len(few.held_out)) == (8, 40, 5)
    assert not {prompt_key(i.prompt) for i in many.train} & {prompt_key(i.prompt) for i in many.held_out}


def test_topics_are_filled_up() -> None:
    prompts = load_prompts(DataConfig(prompts=20, held_out=4, topics=("sum", "difference")))
    assert len(prompts.train) == 20
    assert {i.metadata["topic"] for i in (*prompts.train, *prompts.held_out)} == {"sum", "difference"}


def test_too_few_prompts_and_unknown_topics_are_refused() -> None:
    with pytest.raises(DataError, match="fewer than 100000 held out"):
        load_prompts(DataConfig(task="science", held_out=100_000))
    with pytest.raises(DataError, match="no item of the topics poetry"):
        load_prompts(DataConfig(prompts=4, held_out=2, topics=("poetry",)))


def test_long_prompts_are_refused_by_name_or_left_out_and_counted() -> None:
    prompts = Prompts(train=(item("a", "short"), item("a" * 200, "long")), held_out=(item("b", "held"),))
    with pytest.raises(DataError, match="1 prompts are longer than max_prompt_tokens = 100, the first being long"):
        keep_short(prompts, ByteCodec(), 100, drop=False)
    kept = keep_short(prompts, ByteCodec(), 100, drop=True)
    assert ([i.item_id for i in kept.train], kept.dropped) == (["short"], 1)
    with pytest.raises(DataError, match="no prompt has at most"):
        keep_short(prompts, ByteCodec(), 1, drop=True)


def test_the_order_takes_every_item_once_before_any_twice_and_a_longer_run_begins_alike() -> None:
    order = training_order(5, 12, seed=0)
    assert sorted(order[:5]) == sorted(order[5:10]) == list(range(5))
    assert Counter(order[10:]).most_common(1)[0][1] == 1
    assert order[:5] != order[5:10]
    assert training_order(5, 30, seed=0)[:12] == order
    assert training_order(5, 12, seed=1) != order


def endless(response: str, reference: Mapping[str, Any]) -> float:
    return math.inf


def endless_verdict(response: str, reference: Mapping[str, Any]) -> Verdict:
    return Verdict(reward=-math.inf)


def always_half(response: str, reference: Mapping[str, Any]) -> float:
    return 0.5


def raises(response: str, reference: Mapping[str, Any]) -> float:
    raise KeyError("gold")


def cannot_tell(response: str, reference: Mapping[str, Any]) -> Verdict | None:
    return None if response == "?" else Verdict(reward=1.0, answer=response)


def wordy(response: str, reference: Mapping[str, Any]) -> str:
    return "good"


def test_a_function_of_the_users_gives_the_reward() -> None:
    judge = Judge(f"{__name__}:always_half")
    assert [v.reward for v in judge([(item("q"), "a"), (item("q"), "b")])] == [0.5, 0.5]
    verdicts = Judge(f"{__name__}:cannot_tell")([(item("q"), "?"), (item("q"), "b")])
    assert [(v.reward, v.answer) for v in verdicts] == [(None, None), (1.0, "b")]


def test_a_verifier_that_raises_leaves_the_response_unjudged_and_is_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    judge = Judge(f"{__name__}:raises")
    assert judge([(item("q"), "a")])[0].reward is None
    assert judge.events == {"verifier_raised": 1}
    assert capsys.readouterr().err == "not judged: a response to i: KeyError: 'gold'\n"
    judge([(item("q"), "a")] * 9)
    assert judge.events == {"verifier_raised": 10}
    assert capsys.readouterr().err.count("KeyError") == 4  # five are enough to mend it


@pytest.mark.parametrize("name", ["endless", "endless_verdict"])
def test_a_reward_that_is_not_finite_judges_nothing(name: str) -> None:
    """One infinite reward would make the group's mean infinite, and with it every advantage."""
    judge = Judge(f"{__name__}:{name}")
    assert judge([(item("q"), "a")])[0].reward is None
    assert judge.events == {"unjudged": 1}


@pytest.mark.parametrize(
    ("name", "message"),
    [("no_such_module:f", "cannot import 'no_such_module'"), ("json:f", "has no 'f'"), ("json:__doc__", "no function")],
)
def test_a_reward_that_is_not_there_is_refused(name: str, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        load_function(name)


def test_a_reward_whose_module_breaks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "halfwritten.py").write_text("def reward(")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RewardError, match=r"'halfwritten' breaks while it is imported \(SyntaxError: "):
        load_function("halfwritten:reward")


def test_a_reward_of_words_is_refused() -> None:
    with pytest.raises(RewardError, match="gave a str: give a number"):
        Judge(f"{__name__}:wordy")([(item("q"), "a")])


def test_the_task_verifier_judges() -> None:
    prompts = load_prompts(DataConfig(task="science", prompts=1, held_out=1))
    verdicts = Judge()([(prompts.train[0], "I do not know.")])
    assert verdicts[0].reward in (0.0, None)
