"""Context conditions: what the teacher is shown besides the question.

``CONDITIONS`` is the only place that lists names; ``DEFAULT_CONDITIONS`` and ``CONTROLS`` are read off it. A family
member that is not in the table (``3s``, ``2s2f``, ``summary_3``, ``2s1f_mixed``) is made from its name. Labels of the
paper (arXiv 2605.12652) stand beside ours.

A control differs from ``2s1f`` in one thing and has as many blocks: who the peers are, what their headings say, what
is shown of them, or whether the question is there.

Deviation from the paper: ``shell_only`` (the re-prompt wording without any peer) is added as a format control, since
a difference between ``question_only`` and a peer condition mixes the peers with the wording around them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

__all__ = [
    "CONDITIONS",
    "CONTROLS",
    "DEFAULT_CONDITIONS",
    "ORDERS",
    "Condition",
    "condition",
    "parse_conditions",
    "rank",
]

MAX_SLOTS = 16
ORDERS: dict[str, str] = {"failures_first": "failures first", "mixed": "in seeded order"}
"""Orders of the blocks besides successes first, with their words for labels."""
_FAMILY = re.compile(rf"(?:([0-9]+)s)?(?:([0-9]+)f)?(?:_({'|'.join(ORDERS)}))?")
_SUMMARY = re.compile(r"summary_([0-9]+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Condition:
    """A recipe for a context.

    Attributes:
        name: canonical name, as asked for on the command line.
        success_slots: how many peers stand under the heading of a success.
        failure_slots: how many peers stand under the heading of a failure.
        success_offset: how many successes in line are passed over before the first is shown.
        shell: whether the question stands inside the re-prompt wording; false leaves the prompt as it was.
        show_question: whether the question is there at all.
        choice: who fills a slot. ``label``: a peer whom the verifier gave that label. ``random``: the next in line,
            whatever its label. ``agreement``: success slots take the peers whose answer most candidates share,
            failure slots those whose answer fewest share; peers without an answer are passed over.
        source: whose rollouts the peers are: of the target's ``group``, or of an ``other_prompt`` of the same task.
        headings: ``kept``, or ``swapped``: each peer under the other heading, in the same place.
        shown: what is shown of a peer: its ``response``, the response with its words ``shuffled``, or a ``summary``.
        feedback: whether the verifier's feedback on each failure follows the failures; only failures with feedback
            are taken.
        fallback: if there are not enough successes, as many failures are shown in their place.
        order: of the blocks: ``successes_first``, ``failures_first``, or ``mixed``: as the peers stand in the group's
            seeded line, which knows no label.
        control_of: the condition that a control is compared with and matched to, or "".
        label: words for charts and tables.
        paper_label: name in the paper, or "" for a condition that the paper does not run.
    """

    name: str
    success_slots: int = 0
    failure_slots: int = 0
    success_offset: int = 0
    shell: bool = True
    show_question: bool = True
    choice: Literal["label", "random", "agreement"] = "label"
    source: Literal["group", "other_prompt"] = "group"
    headings: Literal["kept", "swapped"] = "kept"
    shown: Literal["response", "shuffled", "summary"] = "response"
    feedback: bool = False
    fallback: bool = False
    order: Literal["successes_first", "failures_first", "mixed"] = "successes_first"
    control_of: str = ""
    label: str = ""
    paper_label: str = ""

    def __post_init__(self) -> None:
        for slot in ("success_slots", "failure_slots", "success_offset"):
            value = getattr(self, slot)
            if not 0 <= value <= MAX_SLOTS:
                raise ValueError(f"{slot} must be from 0 to {MAX_SLOTS}, got {value} in condition {self.name!r}")
        if self.slots and not self.shell:
            raise ValueError(f"condition {self.name!r} shows peers, so it needs the shell: set shell=True")
        if not self.show_question and not self.slots:
            raise ValueError(f"condition {self.name!r} shows neither question nor peers: give it a slot")
        if self.feedback and not self.failure_slots:
            raise ValueError(f"condition {self.name!r} shows feedback, which failures have: give it a failure slot")
        if self.fallback and (self.failure_slots or not self.success_slots):
            raise ValueError(
                f"condition {self.name!r} falls back from successes to failures: give it success slots only"
            )
        if self.choice != "label" and (self.success_offset or self.feedback or self.fallback):
            raise ValueError(
                f"condition {self.name!r} takes peers by {self.choice}, which goes with no offset, feedback or fallback"
            )
        if self.order != "successes_first" and (not self.success_slots or not self.failure_slots or self.feedback):
            raise ValueError(
                f"condition {self.name!r} is ordered {self.order}, which takes a success and a failure slot and goes "
                "with no feedback"
            )

    @property
    def slots(self) -> int:
        """Number of peers shown."""
        return self.success_slots + self.failure_slots

    @property
    def needs_successes(self) -> int:
        """Successes that must stand in line for the slots to be filled."""
        if self.choice != "label" or self.fallback or not self.success_slots:
            return 0
        return self.success_offset + self.success_slots

    @property
    def of_family(self) -> bool:
        """Whether slots, offset and shell say all of it, as for every condition that the paper runs."""
        return self == Condition(
            name=self.name,
            success_slots=self.success_slots,
            failure_slots=self.failure_slots,
            success_offset=self.success_offset,
            shell=self.shell,
            label=self.label,
            paper_label=self.paper_label,
            control_of=self.control_of,
        )


def _control(name: str, label: str, *, successes: int = 2, failures: int = 1, **differs: Any) -> Condition:
    """A condition of three peers that differs from ``2s1f`` in one thing."""
    return Condition(
        name=name, success_slots=successes, failure_slots=failures, control_of="2s1f", label=label, **differs
    )


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
    Condition(name="feedback", failure_slots=1, feedback=True, label="1 failure + its feedback"),
    Condition(name="summary_2", success_slots=2, shown="summary", label="2 summaries"),
    Condition(name="failure_when_no_success", success_slots=1, fallback=True, label="1 success, else 1 failure"),
    _control("random_peer", "3 peers, label-blind", choice="random"),
    _control("score_ordered", "3 peers by agreement of answers", choice="agreement"),
    _control("other_prompt", "3 peers of another prompt", source="other_prompt"),
    _control("label_swapped", "2s1f under swapped headings", headings="swapped"),
    _control("shuffled_peer", "2s1f, words shuffled", shown="shuffled"),
    _control("success_only", "3 successes", successes=3, failures=0),
    _control("peers_only", "2s1f without the question", show_question=False),
)
CONDITIONS: dict[str, Condition] = {c.name: c for c in _TABLE}
"""The named conditions, in the order in which tables and charts show them."""
DEFAULT_CONDITIONS = tuple(c.name for c in _TABLE if c.of_family and not c.control_of)
"""Those of the paper and ``shell_only``: what a study compares if it is not told."""
CONTROLS = tuple(c.name for c in _TABLE if c.control_of)
"""The controls matched to ``2s1f``."""
SETS = {"default": DEFAULT_CONDITIONS, "controls": CONTROLS}
"""Names that stand for several conditions, for ``parse_conditions``."""


def condition(name: str) -> Condition:
    """The condition of that name.

    Any ``"{k}s{m}f"`` with small k and m is known, with a part of zero left out or not (``1s`` is ``1s0f``), any
    ``"{k}s{m}f_{order}"`` of ``ORDERS``, which is matched to ``"{k}s{m}f"`` as a control is, and any ``"summary_{k}"``.

    Raises:
        ValueError: the name is not known; the message lists those that are.
    """
    if name in CONDITIONS:
        return CONDITIONS[name]
    summary = _SUMMARY.fullmatch(name)
    if summary is not None and int(summary[1]):
        k = int(summary[1])
        label = _count(k, "summary", "summaries")
        return CONDITIONS.get(f"summary_{k}") or Condition(
            name=f"summary_{k}", success_slots=k, shown="summary", label=label
        )
    match = _FAMILY.fullmatch(name) if name else None
    if match is None:
        raise ValueError(
            f"unknown condition {name!r}; known are {', '.join(CONDITIONS)} and any '{{k}}s{{m}}f' such as 3s or 2s2f, "
            f"(also _{' or _'.join(ORDERS)}), any 'summary_{{k}}', and default and controls, which stand for several"
        )
    successes, failures = (int(part or 0) for part in match.groups()[:2])
    if not successes and not failures:
        raise ValueError(f"condition {name!r} shows no peer; ask for shell_only (the wording alone) or question_only")
    canonical = (f"{successes}s" if successes else "") + (f"{failures}f" if failures else "")
    if match[3]:
        base = condition(canonical)
        name, label = f"{canonical}_{match[3]}", f"{base.label}, {ORDERS[match[3]]}"
        return dataclasses.replace(base, name=name, order=match[3], control_of=canonical, label=label, paper_label="")
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

    ``default`` and ``controls`` stand for ``DEFAULT_CONDITIONS`` and ``CONTROLS``.

    Raises:
        ValueError: a name is unknown, or there is none.
    """
    if isinstance(names, str):
        names = [names]  # a single name: its letters are none
    found = {c.name: c for given in names for c in map(condition, SETS.get(given, (given,)))}
    if not found:
        raise ValueError(f"no condition given; known are {', '.join(CONDITIONS)}")
    return tuple(sorted(found.values(), key=rank))


def rank(condition: Condition) -> tuple[int, int, int, str]:
    """Sort key that puts conditions into table order, with the rest of the family after it."""
    names = list(CONDITIONS)
    place = names.index(condition.name) if condition.name in CONDITIONS else len(names)
    return place, condition.success_slots, condition.failure_slots, condition.name
