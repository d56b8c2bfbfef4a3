"""Groups of a step, the contexts that their teacher reads, and why some responses have none."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from mopd.conditions import condition
from mopd.controls import Pool
from mopd.generation.base import Completion
from mopd.peers import PROTOCOLS
from mopd.rollouts import Group
from mopd.study import StudyConfig, plan_groups
from mopd.tasks import TaskItem
from mopd.teachers.scripted import ScriptedTeacher
from mopd.tokens import ByteCodec
from mopd.verifiers import Verdict
from tests.helpers import make_group, make_rollouts
from training.config import RunConfig, read_config
from training.groups import PROTOCOL, Judged, Row, group_rows, make_groups, planner_of, preference_order, rollout_rows

CODEC = ByteCodec()


def settings(name: str, **changes: Any) -> RunConfig:
    return read_config(None, {"condition": name, "group_size": 8, **changes})


def rows_of(group: Group, name: str, window: int | None = None, **changes: Any) -> list[Row]:
    planner = planner_of(settings(name, **changes), CODEC, window)
    assert planner is not None
    return group_rows(planner.serve(with_ids(group)), condition(name))


def with_ids(group: Group) -> Group:
    """The group as a sampler gives it: with the exact ids of each response."""
    ids = [[*CODEC.encode_text(r.response), CODEC.END] for r in group.rollouts]
    labels = "".join({True: "s", False: "f", None: "?"}[r.success] for r in group.rollouts)
    return make_group(
        labels,
        responses=[r.response for r in group.rollouts],
        response_ids=[tuple(i) for i in ids],
        finished=[True] * len(ids),
    )


@pytest.mark.parametrize("name", ["question_only", "1s", "2s1f", "label_swapped", "success_only", "random_peer"])
def test_contexts_are_those_of_the_study_to_the_last_token(name: str) -> None:
    labels = "sffssfsf"
    config = StudyConfig(conditions=[name], protocols=[PROTOCOL])
    plans, _ = plan_groups(
        make_rollouts({"g": labels}), ScriptedTeacher("noise"), config, {PROTOCOL: PROTOCOLS[PROTOCOL]}
    )
    (plan,) = plans
    want = {
        t.rollout_id: plan.contexts[t.context_id][1].token_ids.tolist()
        for t in plan.targets
        if t.context_id and t.supported
    }
    texts = [r.response for r in plan.group.rollouts]
    rows = rows_of(make_group(labels, responses=texts), name)
    got = {row.rollout_id: row.context_ids.tolist() for row in rows if row.context_ids is not None}
    assert got == want
    assert len(got) == 8


@pytest.mark.parametrize(
    ("labels", "name", "reasons"),
    [
        ("ffffffff", "1s", ["all_failed"] * 8),
        ("sfffffff", "1s", ["lone_success"] + [None] * 7),
        # Two successes: each has one other only, a failure has both.
        ("ssffffff", "2s1f", ["too_few_peers"] * 2 + [None] * 6),
        ("ssssssss", "2s1f", ["too_few_peers"] * 8),
        ("ss?fffff", "1s", [None, None, "unjudged"] + [None] * 5),
    ],
)
def test_a_response_without_a_context_says_why(labels: str, name: str, reasons: list[str | None]) -> None:
    rows = rows_of(make_group(labels), name)
    assert [row.reason for row in rows] == reasons
    assert [row.context_ids is None for row in rows] == [reason is not None for reason in reasons]


def test_an_empty_response_is_taught_nothing() -> None:
    texts = ["", *(f"attempt {i}" for i in range(7))]
    group = make_group("fsssffff", responses=texts, response_ids=[(), *(tuple(t.encode()) for t in texts[1:])])
    planner = planner_of(settings("1s"), CODEC, None)
    assert planner is not None
    rows = group_rows(planner.serve(group), condition("1s"))
    assert [row.reason for row in rows] == ["empty_response"] + [None] * 7


def test_a_context_over_its_budget_is_shortened_in_the_peers_and_keeps_the_question() -> None:
    group = make_group("ssffffff", responses=["right " * 60 + str(i) for i in range(8)])
    whole = rows_of(group, "1s")[7].context_ids
    cut = rows_of(group, "1s", max_context_tokens=300)[7].context_ids
    assert whole is not None
    assert cut is not None
    assert len(cut) <= 300 < len(whole)
    told = CODEC.decode(cut.tolist())
    assert "What is 2 + 2?" in told
    assert "[... shortened ...]" in told


def test_a_context_that_cannot_be_shortened_enough_is_left_out_by_name() -> None:
    rows = rows_of(make_group("ssffffff"), "1s", max_context_tokens=20)
    assert {row.reason for row in rows} == {"context_overflow"}


def test_peers_of_another_prompt_come_from_the_step() -> None:
    groups = [
        with_ids(make_group("ssfff")),
        make_group("ssfff", group_id="h", prompt="And 3 + 3?", responses=[f"other {i}" for i in "abcde"]),
    ]
    planner = planner_of(settings("other_prompt", group_size=5, micro_batch=5), CODEC, None)
    assert planner is not None
    lending = dataclasses.replace(planner, pool=Pool(groups, planner.seed))
    rows = group_rows(lending.serve(groups[0]), condition("other_prompt"))
    for row in rows:
        assert row.context_ids is not None
        told = CODEC.decode(row.context_ids.tolist())
        assert "other " in told
        assert not any(f"attempt {i}" in told for i in range(5))


def test_methods_without_a_context_plan_nothing() -> None:
    assert planner_of(read_config(None, {"method": "grpo"}), CODEC, None) is None


def judged(text: str, reward: float | None) -> Judged:
    item = TaskItem(
        item_id="sums-1",
        task="sums",
        prompt=({"role": "user", "content": "?"},),
        verifier="choice",
        reference={"answer": "A"},
    )
    completion = Completion(text=text, ids=tuple(text.encode()), finished=True)
    return Judged(item=item, completion=completion, verdict=Verdict(reward=reward, feedback=None))


def test_groups_of_different_steps_are_never_one() -> None:
    sampled = [judged("a", 1.0), judged("b", 0.5), judged("c", None), judged("d", 0.0)]
    (first, second), (later, _) = (make_groups(sampled, 2, step=s, first=4, threshold=0.5) for s in (0, 1))
    assert [r.success for g in (first, second) for r in g.rollouts] == [True, True, None, False]
    assert len({first.group_id, second.group_id, later.group_id}) == 3
    rows = rollout_rows([first, second], step=0, policy="p", sampling={"temperature": 1.0}, source="s")
    assert [row["rollout_id"] for row in rows] == [f"{g.group_id}/{i:02d}" for g in (first, second) for i in (0, 1)]


@pytest.mark.parametrize(
    ("labels", "order", "paired"),
    [
        ("fsfs", [1, 0, 3, 2], 4),
        ("fffs", [3, 0, 1, 2], 2),  # one success makes one pair
        ("ffff", [0, 1, 2, 3], 0),
        ("?s?f", [1, 3, 0, 2], 2),
    ],
)
def test_pairs_of_a_success_and_a_failure_come_first(labels: str, order: list[int], paired: int) -> None:
    assert preference_order(make_group(labels)) == (order, paired)
