"""Tool calls, compared by name and by the values of their JSON arguments.

Reference: ``{"calls": [{"name": ..., "arguments": {...}}, ...], "ordered": true}``. The calls may also be
written as ToolAlpaca does (``{"Action": ..., "Action_Input": "<JSON>"}``). A call with ``"optional": true``,
or with ToolAlpaca's prefix ``[Optional]`` in its name, may be left out. No calls means that the right
response makes none.

Order matters by default, because a later call may need what an earlier one did; with ``"ordered": false`` any
order is right. There must be no further calls in either case, in whichever notation they are written.

Read are ``Action:`` / ``Action Input:`` lines, ``<tool_call>`` tags, OpenAI's ``tool_calls``, and bare or
fenced objects with ``name`` and ``arguments`` (or ``parameters``), the arguments an object or a text of JSON.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mopd.verifiers import extract
from mopd.verifiers.base import Verdict

__all__ = ["ToolCall", "judge", "parse_calls", "render_action", "render_json", "values_equal"]

_TAG = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|(?=<tool_call>)|\Z)", re.DOTALL)
_ACTION = re.compile(r"^[ \t>*]*Action[* \t]*:[* \t]*([^\n]*?)[* \t]*$", re.MULTILINE)
_ORPHAN_INPUT = re.compile(r"^[ \t>*]*Action[ _]Input[* \t]*:[*]*[ \t]*(?:\n?```\w*\n)?", re.MULTILINE)
_ACTION_INPUT = re.compile(r"\s*^[ \t>*]*Action[ _]Input[* \t]*:[*]*[ \t]*(?:\n?```\w*\n)?", re.MULTILINE)
_NEXT_FIELD = re.compile(r"^[ \t>*]*(?:Action|Observation|Thought|ASSISTANT Response|Final Answer)\b", re.MULTILINE)
_OPTIONAL_PREFIX = "[Optional]"
_MOST_JSON_STARTS = 500
_MOST_OPTIONAL = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolCall:
    """One call.

    Attributes:
        arguments: JSON values by name, or None if what stands there is not a JSON object.
    """

    name: str
    arguments: Mapping[str, Any] | None = field(default_factory=dict)


def judge(response: str, reference: Mapping[str, Any]) -> Verdict:
    """Compare the calls of a response with the reference's.

    Raises:
        ValueError: if the reference is malformed.
    """
    required, optional = _gold(reference)
    calls = parse_calls(response)
    answer = render_json(calls) if calls else None
    accepted = _accepted_sequences(required, optional)
    same = _same_in_order if reference.get("ordered", True) else _same_in_any_order
    if any(same(calls, sequence) for sequence in accepted):
        return Verdict(reward=1.0, answer=answer)
    return Verdict(reward=0.0, answer=answer, feedback=_feedback(calls, required))


def parse_calls(response: str) -> list[ToolCall]:
    """All tool calls of a response, in order, those in different notations together.

    An ``Action:`` without an input is a call without arguments, and one with other text in the place of its
    input is malformed, as is an input without an action. Never raises.
    """
    text = extract.after_thinking(response)
    found = [(match.start(), call) for match in _TAG.finditer(text) for call in _calls_in_tag(match[1])]
    found += _untagged_calls(_TAG.sub(lambda match: " " * len(match[0]), text))
    return [call for _, call in sorted(found, key=lambda place: place[0])]


def render_action(calls: Sequence[ToolCall]) -> str:
    """The calls as ToolAlpaca's ``Action:`` / ``Action Input:`` lines."""
    return "\n".join(
        f"Action: {call.name}\nAction Input: {json.dumps(call.arguments, ensure_ascii=False)}" for call in calls
    )


def render_json(calls: Sequence[ToolCall]) -> str:
    """The calls as a JSON list of ``{"name", "arguments"}``."""
    return json.dumps([{"name": call.name, "arguments": call.arguments} for call in calls], ensure_ascii=False)


def values_equal(one: Any, other: Any) -> bool:
    """Equality of JSON values: 1 equals 1.0 but not true; names may come in any order, list items may not."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return one == other
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(values_equal(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(values_equal(*pair) for pair in zip(one, other, strict=True))
    return type(one) is type(other) and one == other


def _gold(reference: Mapping[str, Any]) -> tuple[list[ToolCall], list[bool]]:
    """The calls of the reference, and for each whether it may be left out."""
    listed = reference.get("calls")
    if not isinstance(listed, Sequence) or isinstance(listed, str):
        raise ValueError(f'a tool_call reference is {{"calls": [...]}}, got {type(listed).__name__} for its calls')
    calls, optional = [], []
    for index, item in enumerate(listed):
        read = _calls_of(item)
        if len(read) != 1 or read[0].arguments is None:
            raise ValueError(
                f"call {index} of the reference has no name, or its arguments are no JSON object: {item!r}"
            )
        name = read[0].name.removeprefix(_OPTIONAL_PREFIX).strip()
        calls.append(ToolCall(name=name, arguments=read[0].arguments))
        optional.append(bool(item.get("optional")) or read[0].name.startswith(_OPTIONAL_PREFIX))
    if sum(optional) > _MOST_OPTIONAL:
        raise ValueError(f"at most {_MOST_OPTIONAL} calls of a reference may be optional, got {sum(optional)}")
    return calls, optional


def _accepted_sequences(calls: Sequence[ToolCall], optional: Sequence[bool]) -> Iterator[list[ToolCall]]:
    for kept in itertools.product(*((True, False) if may_go else (True,) for may_go in optional)):
        yield [call for call, keep in zip(calls, kept, strict=True) if keep]


def _same_call(one: ToolCall, other: ToolCall) -> bool:
    return one.name == other.name and one.arguments is not None and values_equal(one.arguments, other.arguments)


def _same_in_order(calls: Sequence[ToolCall], wanted: Sequence[ToolCall]) -> bool:
    return len(calls) == len(wanted) and all(_same_call(*pair) for pair in zip(calls, wanted, strict=True))


def _same_in_any_order(calls: Sequence[ToolCall], wanted: Sequence[ToolCall]) -> bool:
    left = list(wanted)
    for call in calls:
        position = next((index for index, other in enumerate(left) if _same_call(call, other)), None)
        if position is None:
            return False
        del left[position]
    return not left


def _feedback(calls: Sequence[ToolCall], gold: Sequence[ToolCall]) -> str:
    """What is wrong, naming only what the response itself says."""
    if not calls:
        return "The response makes no tool call that can be read."
    broken = [call.name for call in calls if call.arguments is None]
    if broken:
        return f"The arguments of the call to {broken[0]!r} are not a JSON object."
    if len(calls) != len(gold):
        return f"The response makes {len(calls)} tool calls, which is not the right number."
    by_name = {call.name for call in gold}
    wrong = [call.name for call in calls if call.name not in by_name]
    if wrong:
        return f"The tool {wrong[0]!r} is not the right one."
    return "The right tools are called, but with wrong arguments or in the wrong order."


def _calls_in_tag(body: str) -> list[ToolCall]:
    """Calls of one ``<tool_call>``; what cannot be read counts as one call without arguments."""
    calls = [call for _, call in sorted(_untagged_calls(body), key=lambda place: place[0])]
    if calls:
        return calls
    name = re.search(r'"name"\s*:\s*"([^"]*)"', body)
    return [ToolCall(name=name[1] if name else "", arguments=None)]


def _untagged_calls(text: str) -> list[tuple[int, ToolCall]]:
    """The calls outside of tags with their places; what was read as an action is not read as JSON again."""
    actions = list(_action_calls(text))
    found, rest, position = [(start, call) for start, _, call in actions], "", 0
    for start, end, _ in actions:
        rest += text[position:start] + " " * (end - start)
        position = end
    rest += text[position:]
    return found + [(start, call) for start, value in _json_values(rest) for call in _calls_of(value)]


def _action_calls(text: str) -> Iterator[tuple[int, int, ToolCall]]:
    """Start, end and call of every action, and of every input that belongs to none."""
    position = 0
    while (action := _next_action(text, position)) is not None:
        start, position, call = action
        if call is not None:
            yield start, position, call


def _next_action(text: str, position: int) -> tuple[int, int, ToolCall | None] | None:
    """The first action or input from ``position`` on: its start, its end, and its call (None: a bare heading)."""
    action = _ACTION.search(text, position)
    orphan = _ORPHAN_INPUT.search(text, position, action.start() if action else len(text))
    if orphan is not None:
        return orphan.start(), orphan.end(), ToolCall(name="", arguments=None)
    if action is None:
        return None
    name = action[1].strip().strip("`\"'").removesuffix("()")
    given = _ACTION_INPUT.match(text, action.end())
    start = action.end() if given is None else given.end()
    following = _NEXT_FIELD.search(text, start)
    written = text[start : following.start() if following else len(text)].strip()
    if given is None:
        call = ToolCall(name=name, arguments=None if written else {}) if name else None
        return action.start(), start, call
    value, end = _first_json(text, start, written)
    return action.start(), end, ToolCall(name=name, arguments=_arguments(value) if name else None)


def _first_json(text: str, start: int, written: str) -> tuple[Any, int]:
    """The JSON value at ``start`` and its end; no input at all stands for no arguments."""
    if not written:
        return {}, start
    position = start + len(text[start:]) - len(text[start:].lstrip())
    value = _decode(text, position)
    return (None, position + len(written)) if value is None else value


def _arguments(value: Any) -> Mapping[str, Any] | None:
    """Arguments as an object, from an object or from a text that holds one."""
    if isinstance(value, str):
        decoded = _decode(value.strip(), 0) if value.strip() else ({}, 0)
        value = decoded[0] if decoded is not None and decoded[1] == len(value.strip()) else None
    return value if isinstance(value, dict) else None


def _json_values(text: str) -> Iterator[tuple[int, Any]]:
    """JSON objects and lists in a text with their places, outermost first, from left to right."""
    position = 0
    for _ in range(_MOST_JSON_STARTS):
        start = re.compile(r"[\[{]").search(text, position)
        if start is None:
            return
        decoded = _decode(text, start.start())
        position = start.end() if decoded is None else decoded[1]
        if decoded is not None:
            yield start.start(), decoded[0]


def _calls_of(value: Any) -> list[ToolCall]:
    """The calls that a JSON value writes down; none if it is something else."""
    if isinstance(value, list):
        return [call for item in value for call in _calls_of(item)] if _shallow(value) else []
    if not isinstance(value, Mapping):
        return []
    if isinstance(value.get("tool_calls"), list):
        return [call for item in value["tool_calls"] if isinstance(item, Mapping) for call in _calls_of(item)]
    if isinstance(value.get("function"), Mapping):
        return _calls_of(value["function"])
    for name, arguments in (
        ("name", "arguments"),
        ("name", "parameters"),
        ("Action", "Action_Input"),
        ("Action", "Action Input"),
        ("action", "action_input"),
    ):
        if isinstance(value.get(name), str) and arguments in value:
            return [ToolCall(name=value[name], arguments=_arguments(value[arguments]))]
    return []


def _shallow(value: list[Any]) -> bool:
    """A list of calls holds objects; a list of lists is data."""
    return all(isinstance(item, Mapping) for item in value)


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def _decode(text: str, position: int) -> tuple[Any, int] | None:
    """The JSON value that starts at ``position`` and its end, or None."""
    try:
        return _DECODER.raw_decode(text, position)
    except (ValueError, RecursionError):
        return None
