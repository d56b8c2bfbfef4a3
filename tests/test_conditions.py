"""The table of conditions and the family of names around it."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mopd.conditions import (
    CONDITIONS,
    CONTROLS,
    DEFAULT_CONDITIONS,
    MAX_SLOTS,
    Condition,
    condition,
    parse_conditions,
)


def test_the_table_is_that_of_the_design_in_its_order() -> None:
    # (successes, failures, successes passed over, shell, the paper's label): design section 4
    assert {
        c.name: (c.success_slots, c.failure_slots, c.success_offset, c.shell, c.paper_label)
        for c in map(condition, DEFAULT_CONDITIONS)
    } == {
        "question_only": (0, 0, 0, False, "Question Only"),
        "shell_only": (0, 0, 0, True, ""),
        "1s": (1, 0, 0, True, "Primary Sol."),
        "second_s": (1, 0, 1, True, "Second Sol."),
        "1f": (0, 1, 0, True, "Failure Sol."),
        "1s1f": (1, 1, 0, True, "Sol. + Failure"),
        "2s": (2, 0, 0, True, "All Solutions"),
        "2s1f": (2, 1, 0, True, "2 Suc. + 1 Failure"),
    }
    assert list(DEFAULT_CONDITIONS) == ["question_only", "shell_only", "1s", "second_s", "1f", "1s1f", "2s", "2s1f"]
    assert all(condition(name).of_family for name in DEFAULT_CONDITIONS)
    others = ["feedback", "summary_2", "failure_when_no_success"]
    assert list(CONDITIONS) == [*DEFAULT_CONDITIONS, *others, *CONTROLS]
    assert all(c.label for c in CONDITIONS.values())


def test_a_control_differs_from_2s1f_in_one_thing() -> None:
    plain = CONDITIONS["2s1f"]
    fields = ("success_slots", "failure_slots", "show_question", "choice", "source", "headings", "shown")
    assert {
        name: {f: getattr(condition(name), f) for f in fields if getattr(condition(name), f) != getattr(plain, f)}
        for name in CONTROLS
    } == {
        "random_peer": {"choice": "random"},
        "score_ordered": {"choice": "agreement"},
        "other_prompt": {"source": "other_prompt"},
        "label_swapped": {"headings": "swapped"},
        "shuffled_peer": {"shown": "shuffled"},
        "success_only": {"success_slots": 3, "failure_slots": 0},
        "peers_only": {"show_question": False},
    }
    assert all(condition(name).slots == 3 and condition(name).control_of == "2s1f" for name in CONTROLS)


@pytest.mark.parametrize(
    ("name", "needs", "slots"),
    [
        ("question_only", 0, 0),
        ("1s", 1, 1),
        ("second_s", 2, 1),
        ("1f", 0, 1),
        ("2s1f", 2, 3),
        ("random_peer", 0, 3),
        ("failure_when_no_success", 0, 1),
        ("summary_2", 2, 2),
    ],
)
def test_what_must_stand_in_line(name: str, needs: int, slots: int) -> None:
    assert (condition(name).needs_successes, condition(name).slots) == (needs, slots)


@given(successes=st.integers(0, MAX_SLOTS), failures=st.integers(0, MAX_SLOTS))
def test_any_member_of_the_family_is_known_by_each_way_to_write_it(successes: int, failures: int) -> None:
    full = f"{successes}s{failures}f"
    if not successes and not failures:
        with pytest.raises(ValueError, match="shows no peer; ask for shell_only"):
            condition(full)
        return
    found = condition(full)
    assert (found.success_slots, found.failure_slots, found.success_offset) == (successes, failures, 0)
    assert condition(found.name) == found
    assert found.name == full.replace("s0f", "s").removeprefix("0s")
    assert found.label


def test_a_zero_part_is_left_out_of_the_canonical_name() -> None:
    assert condition("1s0f") is CONDITIONS["1s"]
    assert condition("0s1f") is CONDITIONS["1f"]
    assert condition("03s").name == "3s"
    assert condition("2s2f").label == "2 successes + 2 failures"


@pytest.mark.parametrize("name", ["", "s", "2", "1f1s", "2S1F", "-1s", "1s ", "all", "second", "²s", "1.5s"])
def test_an_unknown_name_raises_and_lists_the_known(name: str) -> None:
    with pytest.raises(ValueError, match="unknown condition.*question_only, shell_only, 1s.*3s or 2s2f"):
        condition(name)


def test_too_many_slots() -> None:
    with pytest.raises(ValueError, match="success_slots must be from 0 to 16, got 17 in condition '17s'"):
        condition("17s")


@pytest.mark.parametrize("field", ["success_slots", "failure_slots", "success_offset"])
def test_negative_slots(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} must be from 0 to 16, got -1"):
        dataclasses.replace(CONDITIONS["2s1f"], **{field: -1})


def test_peers_need_the_shell() -> None:
    with pytest.raises(ValueError, match="needs the shell"):
        Condition(name="x", failure_slots=1, shell=False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"show_question": False}, "shows neither question nor peers"),
        ({"success_slots": 1, "feedback": True}, "shows feedback, which failures have"),
        ({"success_slots": 1, "failure_slots": 1, "fallback": True}, "falls back from successes to failures"),
        ({"success_slots": 1, "success_offset": 1, "choice": "random"}, "takes peers by random, which goes with no"),
    ],
)
def test_a_condition_that_contradicts_itself(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Condition(name="x", **fields)


def test_summaries_are_a_family() -> None:
    assert condition("summary_2") is condition("summary_02") is CONDITIONS["summary_2"]
    three = condition("summary_3")
    assert (three.name, three.success_slots, three.shown, three.label) == ("summary_3", 3, "summary", "3 summaries")
    with pytest.raises(ValueError, match="unknown condition 'summary_0'"):
        condition("summary_0")


def test_names_that_stand_for_several() -> None:
    found = parse_conditions(["controls", "2s1f", "default", "random_peer"])
    assert tuple(c.name for c in found) == (*DEFAULT_CONDITIONS, *CONTROLS)


def test_parsing_orders_by_the_table_and_drops_repeats() -> None:
    names = ["3s", "2s1f", "2s2f", "1s", "1s0f", "question_only", "0s3f"]
    assert [c.name for c in parse_conditions(names)] == ["question_only", "1s", "2s1f", "3f", "2s2f", "3s"]


@given(st.permutations(["question_only", "1s", "3s", "2s2f", "5f"]))
def test_the_order_asked_for_does_not_matter(names: list[str]) -> None:
    assert [c.name for c in parse_conditions(names)] == ["question_only", "1s", "5f", "2s2f", "3s"]


def test_none_at_all() -> None:
    with pytest.raises(ValueError, match="no condition given"):
        parse_conditions([])
