"""Task items from the generators of reasoning-gym (https://github.com/open-thought/reasoning-gym).

A suite of generated problems is a list of ``Puzzle``: a generator, its settings, and how hard we call it. Problems
are drawn in turn from each puzzle, so every prefix of a suite is an even mix, and a longer suite begins with the
shorter one. The same seed gives the same items on every machine.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mopd.rollouts import Prompt, content_id
from mopd.tasks.base import TaskItem

__all__ = ["Puzzle", "generate"]

_DRAWS = 100_000  # how far a generator may be read; entries are made on access, so this costs nothing
_PATIENCE = 1_000  # so many repeats or unwanted entries in a row, and a puzzle counts as used up


@dataclass(frozen=True, kw_only=True, slots=True)
class Puzzle:
    """One generator with its settings.

    Attributes:
        name: how the suite calls it, in item ids and in the metadata.
        dataset: name of the reasoning-gym data set, which is also the name of its scorer.
        difficulty: 1 (easiest) to 5, our own grading of the settings.
        settings: keyword arguments of the data set's configuration, without size and seed.
        keep: which of the generator's entries to take, where its settings cannot say it.
    """

    name: str
    dataset: str
    difficulty: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    keep: Callable[[Mapping[str, Any]], bool] = lambda entry: True


def generate(
    task: str,
    puzzles: Sequence[Puzzle],
    ask: Callable[[str], Prompt],
    *,
    size: int,
    seed: int,
) -> list[TaskItem]:
    """``size`` items with distinct questions, drawn in turn from each puzzle.

    Args:
        task: name of the suite.
        puzzles: what to draw from. One that has no new question left is passed over from then on.
        ask: turns the generator's question into the prompt.
        size: number of items.
        seed: any integer; with it each puzzle gets its own stream.

    Raises:
        ValueError: if ``size`` is negative, or all puzzles together have fewer distinct questions.
    """
    if size < 0:
        raise ValueError(f"the number of prompts must be at least 0, got {size}")
    items: list[TaskItem] = []
    streams = {p.name: _fresh_entries(p, seed) for p in puzzles}
    for puzzle in itertools.cycle(puzzles):
        if len(items) == size:
            return items
        if not streams:
            break
        entry = next(streams[puzzle.name], None) if puzzle.name in streams else None
        if entry is None:
            streams.pop(puzzle.name, None)
            continue
        items.append(_item(task, puzzle, entry, ask, seed))
    raise ValueError(f"task {task!r} has only {len(items)} distinct prompts with seed {seed}, {size} were asked for")


def _fresh_entries(puzzle: Puzzle, seed: int) -> Iterator[dict[str, Any]]:
    """The generator's entries as JSON values, each question once; ends when it only repeats itself."""
    import reasoning_gym

    # With one seed for all, generators of one family draw the same numbers: 4 - 1 here, 4 * 1 there.
    own_seed = int(content_id(puzzle.name, seed)[:7], 16)
    entries = reasoning_gym.create_dataset(puzzle.dataset, size=_DRAWS, seed=own_seed, **puzzle.settings)
    seen: set[str] = set()
    misses = 0
    for index in range(_DRAWS):
        entry = json.loads(json.dumps(entries[index], default=str))
        if entry["question"] in seen or not puzzle.keep(entry):
            misses += 1
            if misses == _PATIENCE:
                return
            continue
        seen.add(entry["question"])
        misses = 0
        yield entry


def _item(
    task: str,
    puzzle: Puzzle,
    entry: dict[str, Any],
    ask: Callable[[str], Prompt],
    seed: int,
) -> TaskItem:
    return TaskItem(
        item_id=f"{task}-{puzzle.name}-{content_id(entry['question'])[:10]}",
        task=task,
        prompt=ask(entry["question"]),
        verifier="reasoning_gym",
        reference={"dataset": puzzle.dataset, "entry": entry},
        metadata={
            "difficulty": puzzle.difficulty,
            "topic": puzzle.name,
            "source": f"reasoning-gym:{puzzle.dataset}",
            "seed": seed,
        },
    )
