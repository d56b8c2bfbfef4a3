from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mopd.verifiers.tool_call import ToolCall, judge, parse_calls, render_action, render_json, values_equal

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "benchmarks" / "toolalpaca_rows.jsonl"
WEATHER = ToolCall(name="weather", arguments={"city": "Rome", "days": 2})


@pytest.mark.parametrize(
    "response",
    [
        'Thought: look it up\nAction: weather\nAction Input: {"city": "Rome", "days": 2}',
        'Action: weather\nAction Input: {"days": 2.0, "city": "Rome"}\nObservation: sunny',
        '**Action:** `weather`\n**Action Input:** {"city": "Rome",\n "days": 2}',
        'Action: weather\nAction Input:\n```json\n{"city": "Rome", "days": 2}\n```',
        'Action: weather\nAction_Input: {"city": "Rome", "days": 2}',
        '{"name": "weather", "arguments": {"city": "Rome", "days": 2}}',
        '{"name": "weather", "arguments": "{\\"city\\": \\"Rome\\", \\"days\\": 2}"}',
        '[{"name": "weather", "parameters": {"city": "Rome", "days": 2}}]',
        'Here:\n```json\n{"name": "weather", "arguments": {"city": "Rome", "days": 2}}\n```\nDone.',
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome", "days": 2}}\n</tool_call>',
        '<tool_call>{"name": "weather", "arguments": {"city": "Rome", "days": 2}}',
        '{"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": '
        '{"name": "weather", "arguments": "{\\"city\\": \\"Rome\\", \\"days\\": 2}"}}]}',
        '<think>{"name": "other", "arguments": {}}</think>'
        '{"name": "weather", "arguments": {"city": "Rome", "days": 2}}',
    ],
)
def test_every_format_gives_the_same_call(response: str) -> None:
    (call,) = parse_calls(response)
    assert call.name == "weather"
    assert values_equal(call.arguments, WEATHER.arguments)
    assert judge(response, {"calls": [{"name": "weather", "arguments": {"city": "Rome", "days": 2}}]}).reward == 1.0


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (1, 1.0, True),
        (True, 1, False),
        (False, 0, False),
        ("1", 1, False),
        (None, None, True),
        (None, False, False),
        ({"a": 1, "b": [1, {"c": 2.0}]}, {"b": [1.0, {"c": 2}], "a": 1}, True),
        ([1, 2], [2, 1], False),
        ({"a": None}, {}, False),
        (0.1 + 0.2, 0.3, False),
    ],
)
def test_values_are_compared_as_json(one: object, other: object, equal: bool) -> None:
    assert values_equal(one, other) is equal
    assert values_equal(other, one) is equal


FIRST, SECOND = {"name": "a", "arguments": {"x": 1}}, {"name": "b", "arguments": {}}


@pytest.mark.parametrize(
    ("calls", "gold", "ordered", "reward"),
    [
        ([FIRST, SECOND], [FIRST, SECOND], True, 1.0),
        ([SECOND, FIRST], [FIRST, SECOND], True, 0.0),
        ([SECOND, FIRST], [FIRST, SECOND], False, 1.0),
        ([FIRST], [FIRST, SECOND], False, 0.0),
        ([FIRST, FIRST], [FIRST, SECOND], False, 0.0),
        ([FIRST, SECOND, SECOND], [FIRST, SECOND], True, 0.0),
        ([FIRST], [FIRST, {**SECOND, "optional": True}], True, 1.0),
        ([FIRST, SECOND], [FIRST, {**SECOND, "name": "[Optional]b"}], True, 1.0),
        ([SECOND], [FIRST, {**SECOND, "optional": True}], True, 0.0),
        ([], [], True, 1.0),
        ([FIRST], [], True, 0.0),
    ],
)
def test_several_calls(calls: list[object], gold: list[object], ordered: bool, reward: float) -> None:
    assert judge(json.dumps(calls), {"calls": gold, "ordered": ordered}).reward == reward


def test_broken_arguments_are_a_failure_that_says_so() -> None:
    for response in (
        'Action: weather\nAction Input: {"city": "Rome"',
        '<tool_call>{"name": "weather", "arg</tool_call>',
        '{"name": "weather", "arguments": "Rome"}',
        '{"name": "weather", "arguments": [1]}',
    ):
        (call,) = parse_calls(response)
        assert call.arguments is None
        verdict = judge(response, {"calls": [{"name": "weather", "arguments": {}}]})
        assert verdict.reward == 0.0
        assert "not a JSON object" in str(verdict.feedback)


GET = [{"name": "get", "arguments": {}}]
TAGGED = '<tool_call>{"name": "get", "arguments": {}}</tool_call>'


@pytest.mark.parametrize(
    ("response", "gold", "reward"),
    [
        ("Action: get\nAction Input: {}", GET, 1.0),
        ("Action: get", GET, 1.0),
        ("Action: get\nAction Input:\nThought: done", GET, 1.0),
        (f"Action:\n{TAGGED}", GET, 1.0),
        ("Action: delete_all\nAction: get\nAction Input: {}", GET, 0.0),
        ("Action: get\nAction Input: {}\nAction: delete_all", GET, 0.0),
        ("Action: x", [], 0.0),
        ("Action:\nAction Input: {}", [], 0.0),
        ("Action Input: {}", [], 0.0),
        ('Action: get\n{"city": "Rome"}', GET, 0.0),
        ('Action: get\nfor Rome\nAction Input: {"city": "Rome"}', GET, 0.0),
        (f"{TAGGED}\nAction: delete\nAction Input: {{}}", GET, 0.0),
        (f"Action: delete\nAction Input: {{}}\n{TAGGED}", GET, 0.0),
        (f"{TAGGED[:-12]}\nAction: delete\nAction Input: {{}}", GET, 0.0),
        (f'{TAGGED}\n{{"name": "delete", "arguments": {{}}}}', GET, 0.0),
        ('Action: get\nAction Input: {}\n{"name": "delete", "arguments": {}}', GET, 0.0),
    ],
)
def test_no_call_is_overlooked(response: str, gold: list[object], reward: float) -> None:
    assert judge(response, {"calls": gold}).reward == reward


def test_calls_in_two_notations_keep_their_order() -> None:
    text = f'Action: a\nAction Input: {{"name": "x", "arguments": {{}}}}\n{TAGGED}\n{{"name": "b", "arguments": {{}}}}'
    assert [call.name for call in parse_calls(text)] == ["a", "get", "b"]


def test_many_actions_are_read_in_time() -> None:
    assert len(parse_calls("Action: a\n" * 5000)) == 5000


def test_feedback_names_no_gold_value() -> None:
    gold = {"calls": [{"name": "weather", "arguments": {"city": "Rome"}}]}
    for response in (
        "",
        '{"name": "x", "arguments": {}}',
        '{"name": "weather", "arguments": {"city": "Oslo"}}',
    ):
        assert "Rome" not in str(judge(response, gold).feedback)


@pytest.mark.parametrize(
    "reference",
    [{}, {"calls": "x"}, {"calls": [{"name": "a"}]}, {"calls": [{"name": "a", "arguments": "no"}]}],
)
def test_a_malformed_reference_is_refused(reference: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="reference"):
        judge("", reference)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
CALLS = st.lists(
    st.builds(
        ToolCall,
        name=st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_.-]{0,10}", fullmatch=True),
        arguments=st.dictionaries(st.text(max_size=5), JSON_VALUES, max_size=3),
    ),
    max_size=3,
)


@given(CALLS)
def test_what_is_rendered_is_read_back(calls: list[ToolCall]) -> None:
    gold = {"calls": [{"name": call.name, "arguments": call.arguments} for call in calls]}
    for text in (render_action(calls), render_json(calls)):
        assert parse_calls(text) == calls
        assert judge(text, gold).reward == 1.0


@given(st.text(max_size=200) | st.text(alphabet='{}[]",:\\ antrue1.-<tol_cal>Action: Input\n', max_size=200))
def test_no_text_makes_the_parser_raise(text: str) -> None:
    for call in parse_calls(text):
        assert isinstance(call.name, str)


def test_deep_nesting_and_many_braces_are_read_in_time() -> None:
    assert parse_calls("[" * 100_000) == []
    assert parse_calls('{"a":' * 50_000) == []


@pytest.mark.skipif(not SHARED.exists(), reason="the ToolAlpaca rows are not beside this checkout")
def test_toolalpaca_gold_calls_pass_in_both_formats() -> None:
    rows = [json.loads(line) for line in SHARED.read_text().splitlines()]
    for row in rows:
        gold = json.loads(row["answer"])
        calls = parse_calls(row["answer"])
        assert len(calls) == len(gold)
        assert judge(render_action(calls).replace("[Optional]", ""), {"calls": gold}).reward == 1.0
