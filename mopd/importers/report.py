"""What an import did: where the rows came from, what they became, what was dropped and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Dropped", "ImportReport", "Tally"]

KEPT_PLACES = 1000
PRINTED_PLACES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Dropped:
    """One reason for which records or files were dropped.

    Attributes:
        count: all of them.
        examples: the places, by file and line, of the first 1,000.
    """

    reason: str
    count: int
    examples: tuple[str, ...]

    def shown(self) -> list[str]:
        """The first few places, and how many more there are."""
        more = self.count - min(self.count, PRINTED_PLACES)
        return [*self.examples[:PRINTED_PLACES], *([f"and {more} more"] if more else [])]


@dataclass(kw_only=True, slots=True)
class Tally:
    """Counts drops by reason while an import runs, and remembers the first 1,000 places of each."""

    counts: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, where: str, detail: str = "") -> None:
        self.counts[reason] += 1
        examples = self.places.setdefault(reason, [])
        if len(examples) < KEPT_PLACES:
            examples.append(f"{where}: {detail}" if detail else where)

    def freeze(self) -> tuple[Dropped, ...]:
        return tuple(
            Dropped(reason=reason, count=count, examples=tuple(self.places[reason]))
            for reason, count in self.counts.most_common()
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportReport:
    """Provenance of an import.

    Attributes:
        format: name in ``FORMATS``.
        files: paths below the imported folder that were read.
        rows_read: records found, good and bad.
        rows_kept: rollouts in the frame; ``rows_read - rows_kept`` were dropped.
        group_sizes: rollouts in a group -> number of such groups.
        steps: the distinct training steps, sorted; ``n_without_step`` rollouts tell none.
        success, failure, unjudged: counts of labels at ``success_threshold``.
        n_with_ids: rollouts with exact token ids. n_finished, n_cut: ended by a stop token, by the length
            limit.
        dropped: by reason, most frequent first; whole files are counted there once.
        notes: decisions taken on the way -> number of rollouts concerned.
    """

    format: str
    description: str
    files: tuple[str, ...]
    rows_read: int
    rows_kept: int
    group_sizes: Mapping[int, int]
    steps: tuple[int, ...]
    n_without_step: int
    success: int
    failure: int
    unjudged: int
    success_threshold: float
    n_with_ids: int
    n_finished: int
    n_cut: int
    prompt_as: str
    dropped: tuple[Dropped, ...]
    notes: Mapping[str, int]

    @property
    def n_groups(self) -> int:
        return sum(self.group_sizes.values())

    def render(self) -> str:
        """The report as lines of text."""
        sizes = ", ".join(f"{count} of {size}" for size, count in sorted(self.group_sizes.items()))
        unknown = self.rows_kept - self.n_finished - self.n_cut
        n_dropped = self.rows_read - self.rows_kept
        lines = [
            f"format    {self.format}: {self.description}",
            f"files     {len(self.files)}: {shortened(self.files)}",
            f"rows      {self.rows_read} read, {self.rows_kept} kept, {n_dropped} dropped",
            f"groups    {self.n_groups} ({sizes})",
            f"steps     {self.steps_text()}",
            f"labels    {self.success} success, {self.failure} failure, {self.unjudged} unjudged "
            f"(success: reward >= {self.success_threshold:g})",
            f"finished  {self.n_finished} by a stop token, {self.n_cut} cut by length, {unknown} not known",
            f"prompts   as {self.prompt_as}; {self.n_with_ids} rollouts with exact token ids",
        ]
        for drop in self.dropped:
            lines.append(f"dropped   {drop.count}: {drop.reason}")
            lines += [f"            {example}" for example in drop.shown()]
        lines += [f"note      {count}: {note}" for note, count in self.notes.items()]
        return "\n".join(lines)

    def steps_text(self) -> str:
        if not self.steps:
            return "not known"
        span = f"{self.steps[0]}" if len(self.steps) == 1 else f"{self.steps[0]} to {self.steps[-1]}"
        missing = f"; {self.n_without_step} rollouts without one" if self.n_without_step else ""
        return f"{len(self.steps)} ({span}){missing}"

    def __str__(self) -> str:
        return self.render()


def shortened(names: tuple[str, ...]) -> str:
    if len(names) <= 4:
        return ", ".join(names)
    return f"{names[0]}, {names[1]}, … {names[-1]}"
