"""Plans: which rows take part, decided for all conditions at once and before any score."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mopd.conditions import CONDITIONS, parse_conditions
from mopd.contexts import Templates
from mopd.controls import Pool
from mopd.peers import PROTOCOLS
from mopd.planning import GroupPlan, Planner, assignment_frame
from mopd.rollouts import Message
from mopd.store import SCHEMAS
from mopd.tokens import ByteCodec
from tests.helpers import PROMPT, make_group

SHORT = Templates(
    first_success="S{response}",
    further_success="S{response}",
    failure="F{response}",
    closing="C",
    separator="|",
    cut_marker="~",
)
ASK = (Message(role="user", content="q"),)
HEAD = 1 + 4 + 1 + 1 + 1 + 1 + 9 + 1  # turn, "user", role end, "q", end; turn, "assistant", role end: 19 tokens


def planner(*names: str, protocols: tuple[str, ...] = ("leave_pair_out",), **options: Any) -> Planner:
    return Planner(
        codec=ByteCodec(),
        conditions=parse_conditions(names),
        protocols={name: PROTOCOLS[name] for name in protocols},
        **options,
    )


def rows(plan: GroupPlan, condition: str) -> set[tuple[str, str, str]]:
    """(protocol, unit, rollout) that are compared under a condition."""
    return {(t.protocol, t.unit_id, t.rollout_id) for t in plan.targets if t.condition == condition and t.supported}


def reasons(plan: GroupPlan, condition: str) -> Counter[str | None]:
    return Counter(t.reason for t in plan.targets if t.condition == condition)


@given(
    labels=st.text("sf?", max_size=8),
    names=st.lists(st.sampled_from([*CONDITIONS, "3s", "2s2f"]), min_size=1, max_size=4),
    protocols=st.lists(st.sampled_from(sorted(PROTOCOLS)), min_size=1, unique=True),
    seed=st.integers(0, 99),
    match=st.sampled_from(["blocks", "tokens"]),
)
def test_the_rows_are_the_same_for_every_condition(
    labels: str, names: list[str], protocols: list[str], seed: int, match: str
) -> None:
    n = len(labels)
    group = make_group(labels, answer=[str(i % 2) for i in range(n)], feedback=["no"] * n)
    lender = make_group("ssff", group_id="h", prompt="another question")
    p = planner(*names, protocols=tuple(protocols), seed=seed, pool=Pool([group, lender], seed), match=match)
    plan = p.plan(group)
    kept = [rows(plan, c.name) for c in p.conditions]
    assert all(k == kept[0] for k in kept)
    assert plan.supported == bool(kept[0])
    for t in plan.targets:
        assert t.supported == (t.reason is None)
        assert t.context_id is not None or t.reason not in (None, "one_class", "undefined_elsewhere")
        assert not t.supported or t.context_id in plan.contexts
    assert set(plan.contexts) == {t.context_id for t in plan.targets if t.supported}
    units: dict[tuple[str, str], set[bool | None]] = {}
    for protocol, unit_id, rollout_id in kept[0]:
        units.setdefault((protocol, unit_id), set()).add(group.by_id[rollout_id].success)
    assert all(classes == {True, False} for classes in units.values())


@pytest.mark.parametrize("extra", ["1s", "2s", "2s1f", "second_s"])
def test_a_condition_only_takes_rows_away(extra: str) -> None:
    group = make_group("sssff")
    alone = rows(planner("question_only", "1f").plan(group), "1f")
    assert rows(planner("question_only", "1f", extra).plan(group), "1f") <= alone


def test_support_by_hand() -> None:
    # two successes and two failures: a pair leaves one of each. 1s1f serves all 4 pairs; 2s none.
    group = make_group("ssff")
    plan = planner("question_only", "1s1f").plan(group)
    assert len(rows(plan, "1s1f")) == len(rows(plan, "question_only")) == 4 * 2
    with_2s = planner("question_only", "1s1f", "2s").plan(group)
    assert not with_2s.supported
    assert with_2s.contexts == {}
    assert reasons(with_2s, "2s") == {"unfilled": 4 * 2}
    assert reasons(with_2s, "1s1f") == {"undefined_elsewhere": 4 * 2}  # it could be served: another condition could not


def test_distinct_contexts_are_few() -> None:
    # "ssff", 1s: without success i the peer is the other success, whatever the failure: 2 contexts for 4 pairs
    plan = planner("question_only", "1s").plan(make_group("ssff"))
    assert Counter(context.condition for _, context in plan.contexts.values()) == {"question_only": 1, "1s": 2}


def test_both_targets_of_a_pair_are_read_under_one_context_without_them() -> None:
    plan = planner("2s1f").plan(make_group("ssssfff"))
    pairs: dict[str, set[str | None]] = {}
    for t in plan.targets:
        pairs.setdefault(t.unit_id, set()).add(t.context_id)
        assert t.context_id is not None
        assert t.rollout_id not in {p.rollout_id for p in plan.contexts[t.context_id][1].peers}
    assert len(pairs) == 4 * 3
    assert all(len(contexts) == 1 for contexts in pairs.values())


def test_question_only_is_read_under_the_students_own_ids() -> None:
    plan = planner("question_only").plan(make_group("sf", prompt=PROMPT))
    ((protocol, context),) = plan.contexts.values()
    assert protocol == "leave_pair_out"
    assert context.messages is PROMPT
    assert np.array_equal(context.token_ids, plan.student_ids)
    assert plan.student_ids.tolist() == ByteCodec().encode_prompt(PROMPT)


@pytest.mark.parametrize(
    ("labels", "dropped"),
    [
        ("sf", {}),
        ("ssss", {"group_all_success": 1}),
        ("ffff", {"group_all_failure": 1}),
        ("??", {"unjudged": 2, "group_unjudged": 1}),
        ("s?", {"unjudged": 1, "group_all_success": 1}),
        ("sf??", {"unjudged": 2}),
        ("s", {"group_of_one": 1}),
        ("?", {"unjudged": 1, "group_of_one": 1}),
    ],
)
def test_what_is_dropped_is_counted_by_reason(labels: str, dropped: dict[str, int]) -> None:
    plan = planner("question_only").plan(make_group(labels))
    assert plan.dropped == dropped
    assert plan.supported == (not any(reason.startswith("group") for reason in dropped))
    assert plan.targets == () or plan.supported


def test_an_empty_response_is_dropped_and_never_scored() -> None:
    # design section 8.8: it scored 0.0, the best possible
    plan = planner("question_only").plan(make_group("ssf", responses=["a", " ", "b"]))
    assert plan.dropped == {"empty_response": 1}
    assert set(plan.responses) == {"g-0", "g-2"}
    assert {t.rollout_id for t in plan.targets} == {"g-0", "g-2"}


def test_an_empty_unjudged_response_is_counted_once() -> None:
    assert planner("question_only").plan(make_group("sf?", responses=["a", "b", ""])).dropped == {"unjudged": 1}


def test_a_response_that_does_not_fit_is_refused_by_name() -> None:
    # window 30, the prompt has 19 tokens: 11 bytes fit, 12 do not
    group = make_group("sfs", responses=["a" * 11, "b", "c" * 12], prompt=ASK)
    plan = planner("question_only", window=HEAD + 11).plan(group)
    assert plan.dropped == {"response_overflow": 1}
    assert set(plan.responses) == {"g-0", "g-1"}
    # the pairs are 0|1 and 2|1: without 2, 1 stands alone in the second
    assert reasons(plan, "question_only") == {None: 2, "one_class": 1, "response_overflow": 1}
    assert rows(plan, "question_only") == {("leave_pair_out", "g-0|g-1", r) for r in ("g-0", "g-1")}


def test_the_end_token_counts_against_the_window() -> None:
    group = make_group("sf", responses=["a" * 11, "b"], prompt=ASK, finished=[True, True])
    assert planner("question_only", window=HEAD + 11).plan(group).dropped == {"response_overflow": 1}
    assert planner("question_only", window=HEAD + 12).plan(group).dropped == {}


def test_the_budget_leaves_room_for_the_longest_response_and_is_common() -> None:
    group = make_group("ssff", responses=["a" * 30, "b" * 20, "c" * 25, "d" * 5], prompt=ASK)
    window = 75
    plan = planner("question_only", "1s1f", window=window, templates=SHORT).plan(group)
    assert plan.supported
    shown = [c for _, c in plan.contexts.values() if c.condition == "1s1f"]
    assert all(len(c.token_ids) <= window - 30 for c in shown)
    assert any(c.cuts for c in shown)


def test_max_context_tokens_never_cuts_the_students_prompt() -> None:
    group = make_group("ssff", prompt=ASK)
    plan = planner("question_only", "1s", max_context_tokens=HEAD, templates=SHORT).plan(group)
    assert reasons(plan, "question_only") == {"undefined_elsewhere": 8}
    assert reasons(plan, "1s") == {"context_overflow": 8}
    assert not plan.supported


@pytest.mark.parametrize(("window", "max_context_tokens"), [(70, None), (None, 40), (70, 90)])
def test_the_tighter_limit_holds(window: int | None, max_context_tokens: int | None) -> None:
    group = make_group("ssff", responses=["a" * 30, "b" * 30, "c" * 30, "d" * 30], prompt=ASK)
    plan = planner("1s", templates=SHORT, window=window, max_context_tokens=max_context_tokens).plan(group)
    # a window of 70 leaves 40 beside a response of 30; the whole context has 54
    assert max(len(c.token_ids) for _, c in plan.contexts.values()) <= 40


def test_on_overflow_error_ends_the_plan_with_the_way_out() -> None:
    p = planner("1s", max_context_tokens=25, templates=SHORT, on_overflow="error")
    with pytest.raises(ValueError, match="1s of group g has .* over the budget of 25; give a larger"):
        p.plan(make_group("ssff", prompt=ASK))


def test_a_prompt_without_a_user_message_at_the_end() -> None:
    prompt = (*ASK, Message(role="assistant", content="Let me"))
    with pytest.raises(ValueError, match="must end with a user message"):
        planner("1s").plan(make_group("ssff", prompt=prompt))
    assert planner("question_only").plan(make_group("ssff", prompt=prompt)).supported


def test_a_one_class_split_is_not_compared() -> None:
    # split r of "sff": one text of three is the target set, which so has one class only
    plan = planner("question_only", protocols=("split",)).plan(make_group("sff"))
    assert plan.targets
    assert not plan.supported


def test_protocols_do_not_share_context_ids() -> None:
    plan = planner("question_only", protocols=tuple(PROTOCOLS)).plan(make_group("ssssffff"))
    assert {protocol for protocol, _ in plan.contexts.values()} == set(PROTOCOLS)
    assert all(key.startswith(f"{protocol}-") for key, (protocol, _) in plan.contexts.items())
    assert len({c.context_id for _, c in plan.contexts.values()}) == 1  # of one content, read three times


def test_the_plan_is_the_same_every_time_and_whatever_the_order_of_the_file() -> None:
    group = make_group("sssfff")
    p = planner("question_only", "2s1f", protocols=tuple(PROTOCOLS), seed=7)
    backwards = dataclasses.replace(group, rollouts=group.rollouts[::-1])
    assert p.plan(group).targets == p.plan(group).targets == p.plan(backwards).targets
    assert list(p.plan(group).contexts) == list(p.plan(backwards).contexts)


def test_controls_matched_in_tokens_show_as_many() -> None:
    # peers of 10, 20, 30, 40, 50 and 60 bytes; every unit's contexts come down to its shortest
    group = make_group("ssssff", responses=["abcdef"[i] * 10 * (i + 1) for i in range(6)], prompt=ASK)
    names = ("2s1f", "random_peer", "success_only", "1s")
    plain, level = (planner(*names, match=match, templates=SHORT).plan(group) for match in ("blocks", "tokens"))
    tokens: dict[str, set[int]] = {}
    fewest: dict[str, int] = {}
    for t in plain.targets:
        assert t.context_id is not None
        if t.condition != "1s":
            n = plain.contexts[t.context_id][1].peer_tokens
            fewest[t.unit_id] = min(n, fewest.get(t.unit_id, n))
    for t in level.targets:
        assert t.context_id is not None
        if t.condition != "1s":
            tokens.setdefault(t.unit_id, set()).add(level.contexts[t.context_id][1].peer_tokens)
    assert tokens == {unit: {n} for unit, n in fewest.items()}
    one = [c for _, c in level.contexts.values() if c.condition == "1s"]
    assert one
    assert not any(c.cuts for c in one)  # not matched to 2s1f, so left alone


def test_a_condition_that_borrows_needs_a_pool() -> None:
    with pytest.raises(ValueError, match="other_prompt shows peers of another prompt: give a Pool"):
        planner("other_prompt").plan(make_group("ssff"))


def test_the_assignment_table() -> None:
    plan = planner("question_only", "1s").plan(make_group("ssf"))
    frame = assignment_frame([plan])
    assert dict(frame.schema) == SCHEMAS["assignments"]
    assert frame.height == 2 * 2 * 2  # two conditions, two pairs, two targets
    assert frame["supported"].all()
    row = frame.filter(pl.col("condition") == "1s", pl.col("rollout_id") == "g-0").row(0, named=True)
    assert row["task"] == "sums"
    assert row["success"] is True
    assert row["unit_id"] == "g-0|g-2"
    assert row["context_id"] in plan.contexts
    assert assignment_frame([]).schema == frame.schema
