"""Context conditions: what the teacher is shown besides the question.

``CONDITIONS`` is the only place that lists names. A family member that is not in the table (``3s``, ``2s2f``) is made
from its name. Labels of the paper (arXiv 2605.12652) stand beside ours.

Deviation from the paper: ``shell_only`` (the re-prompt wording without any peer) is added as a format control, since
a difference between ``question_only`` and a peer condition mixes the peers with the wording around them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["CONDITIONS", "Condition", "condition", "parse_conditions"]

MAX_SLOTS = 16
_FAMILY = re.compile(r"(?:([0-9]+)s)?(?:([0-9]+)f)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Condition:
    """A recipe for a context.

    Attributes:
        name: canonical name, as asked for on the command line.
        success_slots: how many successful peers are shown.
        failure_slots: how many failed peers are shown.
        success_offset: how many successes in line are passed over before the first is shown.
        shell: whether the question stands inside the re-prompt wording; false leaves the prompt as it was.
        label: words for charts and tables.
        paper_label: name in the paper, or "" for a condition that the paper does not run.
    """

    name: str
    success_slots: int = 0
    failure_slots: int = 0
    success_offset: int = 0
    shell: bool = True
    label: str = ""
    paper_label: str = ""

    def __post_init__(self) -> None:
        for slot in ("success_slots", "failure_slots", "success_offset"):
            value = getattr(self, slot)
            if not 0 <= value <= MAX_SLOTS:
                raise ValueError(f"{slot} must be from 0 to {MAX_SLOTS}, got {value} in condition {self.name!r}")
        if self.slots and not self.shell:
            raise ValueError(f"condition {self.name!r} shows peers, so it needs the shell: set shell=True")

    @property
    def slots(self) -> int:
        """Number of peers shown."""
        return self.success_slots + self.failure_slots

    @property
    def needs_successes(self) -> int:
        """Successes that must stand in line for the slots to be filled."""
        return self.success_offset + self.success_slots if self.success_slots else 0


_TABLE = (
    Condition(name="question_only", shell=False, label="question only", paper_label="Question Only"),
    Condition(name="shell_only", label="shell only"),
    Condition(name="1s", success_slots=1, label="1 success", paper_label="Primary Sol."),
    Condition(name="second_s", success_slots=1, success_offset=1, label="second success", paper_label="Second Sol."),
    Condition(name="1f", failure_slots=1, label="1 failure", paper_label="Failure Sol."),
    Condition(
        name="1s1f",
        success_slots=1,
        failure_slots=1,
        label="1 success + 1 failure",
        paper_label="Sol. + Failure",
    ),
    Condition(name="2s", success_slots=2, label="2 successes", paper_label="All Solutions"),
    Condition(
        name="2s1f",
        success_slots=2,
        failure_slots=1,
        label="2 successes + 1 failure",
        paper_label="2 Suc. + 1 Failure",
    ),
)
CONDITIONS: dict[str, Condition] = {c.name: c for c in _TABLE}
"""The named conditions, in the order in which tables and charts show them."""


def condition(name: str) -> Condition:
    """The condition of that name.

    Any ``"{k}s{m}f"`` with small k and m is known, with a part of zero left out or not (``1s`` is ``1s0f``).

    Raises:
        ValueError: the name is not known; the message lists those that are.
    """
    if name in CONDITIONS:
        return CONDITIONS[name]
    match = _FAMILY.fullmatch(name) if name else None
    if match is None:
        raise ValueError(
            f"unknown condition {name!r}; known are {', '.join(CONDITIONS)} and any '{{k}}s{{m}}f' such as 3s or 2s2f"
        )
    successes, failures = (int(part or 0) for part in match.groups())
    if not successes and not failures:
        raise ValueError(f"condition {name!r} shows no peer; ask for shell_only (the wording alone) or question_only")
    canonical = (f"{successes}s" if successes else "") + (f"{failures}f" if failures else "")
    if canonical in CONDITIONS:
        return CONDITIONS[canonical]
    parts = [_count(successes, "success", "successes"), _count(failures, "failure", "failures")]
    return Condition(
        name=canonical,
        success_slots=successes,
        failure_slots=failures,
        label=" + ".join(part for part in parts if part),
    )


def _count(n: int, one: str, many: str) -> str:
    return "" if n == 0 else f"{n} {one if n == 1 else many}"


def parse_conditions(names: Iterable[str] | str) -> tuple[Condition, ...]:
    """Conditions by name (or one name), without repeats, in table order with the rest of the family after it.

    Raises:
        ValueError: a name is unknown, or there is none.
    """
    if isinstance(names, str):
        names = [names]  # a single name: its letters are none
    found = {c.name: c for c in map(condition, names)}
    if not found:
        raise ValueError(f"no condition given; known are {', '.join(CONDITIONS)}")
    order = {name: i for i, name in enumerate(CONDITIONS)}
    ranked = sorted(found.values(), key=lambda c: (order.get(c.name, len(order)), c.success_slots, c.failure_slots))
    return tuple(ranked)
