"""Reading single values of foreign records; everything here raises ``RowError`` and nothing else.

Decisions, the same for every format:

- A missing, null or NaN reward means *unjudged* (null), not a failure.
- A reward given as text is read if the whole text is a finite number ("0.5"), and noted; "nan" is unjudged;
  any other text drops the row, for guessing what "correct" is worth is the verifier's business, not ours.
- Infinite rewards and rewards that are lists or mappings drop the row.
- Text with an unpaired surrogate cannot be stored as UTF-8 and drops the row: a response is never altered.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from mopd.importers.base import RowError
from mopd.rollouts import Message

__all__ = [
    "as_answer",
    "as_ids",
    "as_messages",
    "as_optional_text",
    "as_reward",
    "as_sampling",
    "as_step",
    "as_text",
    "has_messages",
    "kind_of",
    "message_text",
]

NUMBER_AS_TEXT = "reward was a number written as text"
INT64 = 2**63
INT32 = 2**31
ROLES = {"human": "user", "gpt": "assistant", "model": "assistant", "ai": "assistant", "developer": "system"}


def kind_of(value: object) -> str:
    """The value's type and, if short, itself, for messages."""
    text = repr(value) if isinstance(value, str | int | float | bool | None) else ""
    return f"{type(value).__name__} {text}" if text and len(text) <= 40 else type(value).__name__


def as_text(value: object, name: str) -> str:
    """``value`` as it is, if it is text that can be stored."""
    if value is None:
        raise RowError(f"field {name!r} is missing")
    if not isinstance(value, str):
        raise RowError(f"field {name!r} is not text", kind_of(value))
    return storable(value, name)


def storable(text: str, name: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowError(f"field {name!r} has an unpaired surrogate", f"at character {error.start}") from None
    return text


def as_optional_text(value: object, name: str) -> str | None:
    """Text, or None if it is missing, blank or of another type (used where nothing depends on it)."""
    if not isinstance(value, str) or not value.strip():
        return None
    return storable(value, name)


def as_answer(value: object) -> str | None:
    """An extracted answer as text: numbers and booleans are written as JSON, the rest is left out."""
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    return as_optional_text(value, "answer")


def as_reward(value: object, name: str) -> tuple[float | None, tuple[str, ...]]:
    """The reward and the notes on how it was read; see the module docstring for the rules."""
    if value is None:
        return None, ()
    notes: tuple[str, ...] = ()
    if isinstance(value, str):
        try:
            value, notes = float(value.strip()), (NUMBER_AS_TEXT,)
        except ValueError:
            raise RowError(f"field {name!r} is text that is not a number", kind_of(value)) from None
    if not isinstance(value, bool | int | float):
        raise RowError(f"field {name!r} is not a number", kind_of(value))
    try:
        number = float(value)
    except OverflowError:
        raise RowError(f"field {name!r} is infinite", "an integer beyond float64") from None
    if math.isinf(number):
        raise RowError(f"field {name!r} is infinite", str(number))
    return (None if math.isnan(number) else number), notes


def as_step(value: object, fallback: int | None = None) -> int | None:
    """A training step: a whole number, or text that is one (older TRL); ``fallback`` if there is none."""
    if value is None or value == "":
        return fallback
    number: object = value
    if isinstance(value, str):
        try:
            number = int(value.strip())
        except ValueError:
            raise RowError("field 'step' is not a whole number", kind_of(value)) from None
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int) or not -INT64 <= number < INT64:
        raise RowError("field 'step' is not a whole number", kind_of(value))
    return number


def as_ids(value: object, name: str) -> tuple[int, ...] | None:
    """Token ids, or None if there are none."""
    if value is None:
        return None
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise RowError(f"field {name!r} is not a list of token ids", kind_of(value))
    if not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < INT32 for i in value):
        raise RowError(f"field {name!r} is not a list of token ids", "an entry is no whole number of 0 to 2**31-1")
    return tuple(value) or None


def as_sampling(value: object) -> dict[str, float | int | None] | None:
    """Temperature, top-p, max tokens and seed from a settings mapping; None if it tells none of them."""
    if not isinstance(value, Mapping):
        return None
    names = {"max_tokens": ("max_tokens", "max_completion_tokens", "max_new_tokens")}
    found: dict[str, float | int | None] = {}
    for name, kind in (("temperature", float), ("top_p", float), ("max_tokens", int), ("seed", int)):
        number = next((value[key] for key in names.get(name, (name,)) if value.get(key) is not None), None)
        usable = isinstance(number, int | float) and not isinstance(number, bool) and -INT64 < number < INT64
        found[name] = kind(number) if usable and number is not None else None
    return found if any(v is not None for v in found.values()) else None


def has_messages(value: object) -> bool:
    """Is this a list of chat messages?"""
    return (
        isinstance(value, list | tuple) and bool(value) and all(isinstance(m, Mapping) and "role" in m for m in value)
    )


def as_messages(value: object, name: str) -> tuple[Message, ...]:
    """Chat messages with a role and text."""
    if not has_messages(value):
        raise RowError(f"field {name!r} is not a list of chat messages", kind_of(value))
    assert isinstance(value, list | tuple)  # for the type checker: has_messages said so
    return tuple(Message(role=role_of(m, name), content=message_text(m, name)) for m in value)


def role_of(message: Mapping[str, Any], name: str) -> str:
    role = as_text(message.get("role"), f"{name}.role")
    return ROLES.get(role, role)


def message_text(message: Mapping[str, Any], name: str) -> str:
    """The whole text of a message: reasoning in ``<think>`` tags, then the content, then tool calls as JSON.

    What a server took apart is put together again, since a rollout is all that was sampled. Tool calls are
    written as a JSON list of ``{"name", "arguments"}``.
    """
    reasoning, text = content_text(message.get("content"), name)
    reasoning = reasoning or as_optional_text(message.get("reasoning_content") or message.get("reasoning"), name)
    calls = message.get("tool_calls")
    if calls:
        text = "\n".join(filter(None, (text, tool_calls_text(calls, name))))
    return f"<think>\n{reasoning}\n</think>\n\n{text}" if reasoning else text


def content_text(content: object, name: str) -> tuple[str | None, str]:
    """Reasoning and text of a content field, which is text or a list of parts."""
    if content is None:
        return None, ""
    if isinstance(content, str):
        return None, storable(content, name)
    if not isinstance(content, list | tuple):
        raise RowError(f"field {name!r} has a message without text", kind_of(content))
    reasoning, texts = [], []
    for part in content:
        part = {"type": "text", "text": part} if isinstance(part, str) else part
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "reasoning":
            reasoning.append(as_text(part.get("reasoning"), f"{name}.reasoning"))
        elif kind in ("text", "output_text", "input_text"):
            texts.append(as_text(part.get("text"), f"{name}.text"))
        else:
            raise RowError(f"field {name!r} has a part that is not text", str(kind)[:40])
    return "\n".join(reasoning) or None, "\n".join(texts)


def tool_calls_text(calls: object, name: str) -> str:
    """Tool calls as a JSON list, from the OpenAI form, its flattened form, or a list of JSON texts."""
    if not isinstance(calls, list | tuple):
        raise RowError(f"field {name!r} has tool calls that are not a list", kind_of(calls))
    written = []
    for call in calls:
        if isinstance(call, str):
            call = parsed(call)
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if isinstance(function, str):  # inspect_ai: {"function": "name", "arguments": {...}}
            function = {"name": function, "arguments": call.get("arguments")}
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise RowError(f"field {name!r} has a tool call without a name", kind_of(call))
        written.append({"name": function["name"], "arguments": parsed(function.get("arguments"))})
    try:
        return storable(json.dumps(written, ensure_ascii=False), name)
    except (TypeError, ValueError, RecursionError):
        raise RowError(f"field {name!r} has tool calls that are not JSON values") from None


def parsed(value: object) -> Any:
    """The JSON value in a text, or the value itself if it is no JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
