"""One prompt of a task with what its verifier needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mopd.rollouts import Prompt

__all__ = ["TaskItem"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskItem:
    """One prompt and its reference.

    Attributes:
        item_id: unique within the task, stable between runs.
        task: name of the suite, as given to ``--task``.
        prompt: chat messages (or plain text) as the student sees them.
        verifier: key of ``mopd.verifiers.VERIFIERS``.
        reference: what that verifier needs to judge a response (gold answer, tests, ...), as JSON values.
        metadata: difficulty, topic, source: whatever helps to read the results, as JSON values.
    """

    item_id: str
    task: str
    prompt: Prompt
    verifier: str
    reference: Mapping[str, Any]
    metadata: Mapping[str, Any] = field(default_factory=dict)
