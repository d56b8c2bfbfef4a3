"""Rollouts and groups: the input of everything else.

A *rollout* is one sampled answer; a *group* is all rollouts of one prompt, sampled from one policy at one
training step. The table has one row per rollout (``ROLLOUT_SCHEMA``), is checked once when it enters
(``validate_rollouts``), and after that nothing downstream checks again.

Null means "not known" everywhere: a rollout that could not be judged has ``success = null``, which is not a
failure.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict

import polars as pl

__all__ = [
    "MESSAGE",
    "ROLLOUT_SCHEMA",
    "Group",
    "Message",
    "Prompt",
    "Rollout",
    "RolloutError",
    "content_id",
    "groups_of",
    "prompt_key",
    "read_rollouts",
    "validate_rollouts",
]


class Message(TypedDict):
    """One chat message."""

    role: str
    content: str


Prompt = tuple[Message, ...] | str
"""Chat messages for a chat model, plain text for a base model."""

MESSAGE = pl.Struct({"role": pl.String, "content": pl.String})

ROLLOUT_SCHEMA: dict[str, Any] = {
    "group_id": pl.String(),
    "rollout_id": pl.String(),
    "task": pl.String(),
    "prompt": pl.List(MESSAGE),  # or pl.String for plain-text prompts: one kind a file
    "response": pl.String(),
    "response_ids": pl.List(pl.Int32),  # exact if the sampler gave them, else null
    "finished": pl.Boolean(),  # true: ended by an end token; false: cut by the length limit; null: not known
    "reward": pl.Float64(),
    "success": pl.Boolean(),  # null: could not be judged
    "answer": pl.String(),  # what the verifier extracted
    "feedback": pl.String(),  # what the verifier has to say about a failure
    "policy": pl.String(),  # the model that sampled it
    "step": pl.Int64(),  # the training step it was sampled at
    "sampling": pl.Struct(
        {"temperature": pl.Float64, "top_p": pl.Float64, "max_tokens": pl.Int64, "seed": pl.Int64}
    ),
    "source": pl.String(),  # the tool, suite or file it came from
}
"""Columns and types of ``rollouts.parquet``."""

REQUIRED = ("group_id", "prompt", "response")
SUCCESS_THRESHOLD = 1.0


class RolloutError(ValueError):
    """The rollout table is not one that can be studied; the message says what came and how to mend it."""


def content_id(*parts: object) -> str:
    """Hash of the parts' JSON form, as 16 hex digits: equal content gives an equal id on every machine."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def prompt_key(prompt: Prompt) -> str:
    """A string equal for equal prompts, for grouping and for comparing."""
    if isinstance(prompt, str):
        return prompt
    return json.dumps([[m["role"], m["content"]] for m in prompt], ensure_ascii=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """One sampled answer. ``success`` is ``reward >= threshold``, or None if it could not be judged."""

    rollout_id: str
    group_id: str
    response: str
    response_ids: tuple[int, ...] | None = None
    finished: bool | None = None
    reward: float | None = None
    success: bool | None = None
    answer: str | None = None
    feedback: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """All rollouts of one prompt, from one policy at one step, in file order."""

    group_id: str
    task: str
    prompt: Prompt
    rollouts: tuple[Rollout, ...]
    by_id: Mapping[str, Rollout] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_id", {r.rollout_id: r for r in self.rollouts})

    @property
    def successes(self) -> tuple[Rollout, ...]:
        return tuple(r for r in self.rollouts if r.success is True)

    @property
    def failures(self) -> tuple[Rollout, ...]:
        return tuple(r for r in self.rollouts if r.success is False)
