"""Task suites: prompts with what their verifiers need.

``TASKS`` is the only place that lists the suites: the embedded ones, which need neither network nor files, and the
benchmarks of ``mopd.tasks.benchmarks``. ``load(name)`` gives the items of one of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mopd.tasks.arithmetic import load_arithmetic
from mopd.tasks.base import TaskItem
from mopd.tasks.benchmarks import BENCHMARKS, load_benchmark
from mopd.tasks.embedded import load_code, load_science, load_tools
from mopd.tasks.mathematics import load_math

__all__ = ["ALL", "TASKS", "Suite", "TaskItem", "load"]

log = logging.getLogger(__name__)

ALL = "all"
"""Name that stands for the four embedded suites of the paper's domains: math, code, science, tools."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite:
    """A row of ``TASKS``.

    Attributes:
        max_tokens: most tokens of a response, where the caller names no number.
        load: gives the items, as ``load(limit=..., seed=...)``; None for a benchmark.
        in_all: whether the suite is one of the four that ``all`` stands for.
    """

    name: str
    description: str
    max_tokens: int
    load: Callable[..., list[TaskItem]] | None
    in_all: bool = False


TASKS: Mapping[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite(
            name="arithmetic",
            description="sums, differences and products of small numbers, for the smallest models and the quick start",
            max_tokens=64,
            load=load_arithmetic,
        ),
        Suite(
            name="math",
            description="sums, products, equations, divisors, fractions and word problems from reasoning-gym",
            max_tokens=256,
            load=load_math,
            in_all=True,
        ),
        Suite(name="code", description="Python functions with tests", max_tokens=384, load=load_code, in_all=True),
        Suite(
            name="science",
            description="four-option questions on biology, chemistry, physics, earth science and materials",
            max_tokens=128,
            load=load_science,
            in_all=True,
        ),
        Suite(
            name="tools",
            description="requests to answer with calls of small APIs",
            max_tokens=256,
            load=load_tools,
            in_all=True,
        ),
        *(Suite(name=b.name, description=b.description, max_tokens=4096, load=None) for b in BENCHMARKS.values()),
    )
}
"""Every suite by name, in the order in which they are shown."""


def load(
    name: str,
    *,
    limit: int | None = None,
    seed: int = 0,
    source: str | Path | None = None,
    strict: bool = False,
) -> list[TaskItem]:
    """The items of suite ``name``, the same for the same seed on every machine.

    Args:
        name: key of ``TASKS``, or ``all`` for the four embedded suites.
        limit: number of prompts of each suite (generated suites make as many as asked for, others have at most what
            they have); None for the default number of a generated suite and everything of the others.
        seed: draws the prompts. A smaller limit gives a prefix of a larger one in the embedded suites.
        source: file or hub id of a benchmark, instead of its own place on the hub.
        strict: refuse a benchmark that has a bad row, instead of dropping the row with a warning in the log.

    Raises:
        ValueError: for an unknown name, with the known ones, or a source for a suite that has none.
        mopd.tasks.rows.TaskDataError: if a benchmark cannot be read.
    """
    if name == ALL:
        names = [suite.name for suite in TASKS.values() if suite.in_all]
        return [item for each in names for item in load(each, limit=limit, seed=seed, source=source, strict=strict)]
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; known tasks: {ALL}, {', '.join(TASKS)}")
    suite = TASKS[name]
    if suite.load is None:
        loaded = load_benchmark(name, source=source, limit=limit, seed=seed, strict=strict)
        for row in loaded.bad:
            log.warning("dropped: %s", row)
        return list(loaded.items)
    if source is not None:
        raise ValueError(f"task {name!r} is embedded and takes no source, got {str(source)!r}")
    return suite.load(limit=limit, seed=seed)
