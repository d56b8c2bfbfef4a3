"""Task suites: prompts with what their verifiers need.

``TASKS`` is the only place that lists the suites. ``load(name)`` gives the items of one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from mopd.tasks.arithmetic import load_arithmetic
from mopd.tasks.base import TaskItem

__all__ = ["TASKS", "Suite", "TaskItem", "load"]


class SuiteLoader(Protocol):
    """Gives the items of one suite: all of them or its default number, or ``limit`` of them."""

    def __call__(self, *, limit: int | None = None, seed: int = 0) -> list[TaskItem]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite:
    """A row of ``TASKS``."""

    name: str
    description: str
    load: SuiteLoader


TASKS: Mapping[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite(
            name="arithmetic",
            description="sums and products of one and two digits, for the smallest models and the quick start",
            load=load_arithmetic,
        ),
    )
}
"""Every suite by name, in the order in which they are shown."""


def load(name: str, *, limit: int | None = None, seed: int = 0) -> list[TaskItem]:
    """The items of suite ``name``, the same for the same seed on every machine.

    Raises:
        ValueError: for an unknown name, with the known ones.
    """
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; known tasks: {', '.join(TASKS)}")
    return TASKS[name].load(limit=limit, seed=seed)
