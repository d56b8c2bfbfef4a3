"""Judging responses: the task's verifier, or a function of the user's.

A verifier that raises leaves the response unjudged, which is not a failure; it is counted, and the first few messages
are printed so that a person can mend it. So does a reward that is not finite: it would make every advantage of its
group infinite.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

from mopd.tasks import TaskItem
from mopd.verifiers import Verdict, check_sandbox, verify_many

__all__ = ["Judge", "RewardError", "load_function"]

UNJUDGED = "Not judged: "
TOLD = 5
"""Messages of verifiers that raised which are printed."""


class RewardError(ValueError):
    """The reward cannot be used; the message says why and what to do."""


def load_function(name: str) -> Callable[[str, Mapping[str, Any]], Any]:
    """The function that ``module:function`` names; the current folder counts, as under ``python -m``.

    Raises:
        RewardError: the module cannot be imported or has no such function.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except ImportError as error:
        raise RewardError(
            f"reward {name!r}: cannot import {module!r} ({error}); start where it can be imported"
        ) from error
    except AttributeError as error:
        raise RewardError(f"reward {name!r}: module {module!r} has no {function!r}") from error
    except Exception as error:  # whatever the user's own module does while it is imported
        raise RewardError(
            f"reward {name!r}: {module!r} breaks while it is imported ({type(error).__name__}: {error}): mend it"
        ) from error
    if not callable(found):
        raise RewardError(f"reward {name!r} is a {type(found).__name__}, and no function")
    return found


class Judge:
    """Verdicts on responses, and counts of what went wrong.

    Args:
        reward: ``task``, or ``module:function``.
        allow_unsandboxed: run generated code without bubblewrap.
    """

    def __init__(self, reward: str = "task", *, allow_unsandboxed: bool = False) -> None:
        self.function = None if reward == "task" else load_function(reward)
        self.name = reward
        self.allow_unsandboxed = allow_unsandboxed
        self.events: Counter[str] = Counter()
        self.told = 0

    def check(self, items: Sequence[TaskItem]) -> None:
        """Refuse before the first step what cannot be judged on this machine.

        Raises:
            mopd.verifiers.VerifierUnavailable: bubblewrap is missing for items with code.
        """
        if self.function is None and not self.allow_unsandboxed and any(i.verifier == "code" for i in items):
            check_sandbox()

    def __call__(self, pairs: Sequence[tuple[TaskItem, str]]) -> list[Verdict]:
        """A verdict on each response, in order."""
        if self.function is None:
            verdicts = verify_many(
                [(item.verifier, text, item.reference) for item, text in pairs],
                allow_unsandboxed=self.allow_unsandboxed,
            )
        else:
            verdicts = [self._ask(item, text) for item, text in pairs]
        for (item, _), verdict in zip(pairs, verdicts, strict=True):
            if verdict.reward is None:
                self._count(item, verdict.feedback or "")
        return verdicts

    def _count(self, item: TaskItem, why: str) -> None:
        raised = why.startswith(UNJUDGED)
        self.events["verifier_raised" if raised else "unjudged"] += 1
        if raised and self.told < TOLD:
            self.told += 1
            print(f"not judged: a response to {item.item_id}: {why.removeprefix(UNJUDGED)}", file=sys.stderr)

    def _ask(self, item: TaskItem, text: str) -> Verdict:
        function = self.function
        if function is None:
            raise RuntimeError("no function of the user's")
        try:
            found = function(text, item.reference)
        except Exception as error:
            return Verdict(reward=None, feedback=f"{UNJUDGED}{type(error).__name__}: {error}"[:1000])
        if found is None:
            return Verdict(reward=None)
        if isinstance(found, Verdict):
            known = found.reward is None or math.isfinite(found.reward)
            return found if known else dataclasses.replace(found, reward=None)
        if not isinstance(found, Real):
            raise RewardError(
                f"reward {self.name!r} gave a {type(found).__name__}: give a number, a mopd.verifiers.Verdict, or None"
            )
        value = float(found)
        return Verdict(reward=value if math.isfinite(value) else None)
