"""What a verifier gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Verdict", "Verifier"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The judgement of one response.

    Attributes:
        reward: in [0, 1], 1.0 being right; None where the verifier cannot tell (*unjudged*, which is not a
            failure).
        answer: the answer as extracted from the response, or None if there is none.
        feedback: for a failed or unjudged response, what was wrong, in words fit to be shown to a model that does
            not give the gold answer away; None for a success.
    """

    reward: float | None
    answer: str | None = None
    feedback: str | None = None


Verifier = Callable[[str, Mapping[str, Any]], Verdict]
"""``(response, reference) -> Verdict``; ``reference`` is the ``reference`` of a ``mopd.tasks.base.TaskItem``."""
