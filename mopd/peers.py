"""Protocols: who may be a peer of whom.

A protocol turns a group and a condition into *assignments*: targets that are scored under one choice of peers. A
*unit* is a set of targets that are compared with one another, and comparing is fair only if they were scored under the
same context and that context does not know which of them succeeded.

* ``leave_pair_out`` (default): a unit is a pair (success i, failure j); the peers come from the group without i, j and
  their near-duplicates, so both are scored under one context.
* ``split``: a unit is the target half of a random split; the other half is the pool of peers.
* ``self_exclusion``: the unit is the whole group, each target's peers come from all others. As in training and in the
  paper; the context depends on the target's own label, so its metrics are confounded.

Everything here is pure and seeded: the order of peers is a hash of (seed, group, rollout), so it does not depend on
the order of the file. Near-duplicates are rollouts with the same normalised text; a peer equal to one already shown is
passed over as well, so that "2 successes" means two different ones.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from mopd.conditions import Condition
from mopd.rollouts import Group, Rollout

__all__ = [
    "CONFOUNDED",
    "PROTOCOLS",
    "Assignment",
    "Peer",
    "Protocol",
    "choose_peers",
    "in_line",
    "leave_pair_out",
    "normalise",
    "self_exclusion",
    "split",
    "usable",
]

SPLITS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Peer:
    """A rollout shown to the teacher, in the role that its heading gives it; ``feedback`` is what the verifier said of
    it."""

    rollout_id: str
    role: Literal["success", "failure", "feedback"]

    @property
    def key(self) -> str:
        """Key of the text that is shown: the rollout's id, or its feedback's."""
        return f"feedback:{self.rollout_id}" if self.role == "feedback" else self.rollout_id


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """Targets of one unit that share one choice of peers; ``peers`` is None if the slots cannot be filled."""

    unit_id: str
    targets: tuple[str, ...]
    peers: tuple[Peer, ...] | None


Protocol = Callable[[Group, Condition, int], Iterator[Assignment]]
"""``(group, condition, seed) -> assignments``. The units and their targets must not depend on the condition."""


def normalise(text: str) -> str:
    """Text by which near-duplicates are known: Unicode NFKC, case folded, runs of white space as one space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def usable(group: Group) -> tuple[Rollout, ...]:
    """Rollouts that can be a target or a peer: judged, and not empty."""
    return tuple(r for r in group.rollouts if r.success is not None and r.response.strip())


def _rank(seed: int, group_id: str, key: str) -> str:
    return hashlib.sha256(f"{seed}\x1f{group_id}\x1f{key}".encode("utf-8", "surrogatepass")).hexdigest()


def in_line(group: Group, seed: int) -> list[tuple[Rollout, str]]:
    """Usable rollouts in the group's seeded order, each with its normalised text."""
    line = sorted(usable(group), key=lambda r: _rank(seed, group.group_id, r.rollout_id))
    return [(r, normalise(r.response)) for r in line]


def choose_peers(
    condition: Condition, line: Sequence[tuple[Rollout, str]], banned: Collection[str]
) -> tuple[Peer, ...] | None:
    """Fill the slots of a condition from a line of (rollout, normalised text).

    Args:
        condition: which slots there are and who may fill them (``condition.source`` decides nothing here: the line
            is the source).
        line: candidates in the order in which they are taken.
        banned: normalised texts that must not be shown.

    Returns:
        Those under the headings of successes first, then failures, then feedback, unless the condition orders them
        otherwise; headings swapped if it says so. None if there are not enough.
    """
    seen = set(banned)
    candidates: list[Rollout] = []
    for rollout, text in line:
        if text not in seen:
            seen.add(text)
            candidates.append(rollout)
    chosen = _BY_CHOICE[condition.choice](condition, candidates)
    if chosen is None:
        return None
    good, bad = chosen
    up, down = ("success", "failure") if condition.headings == "kept" else ("failure", "success")
    peers = [Peer(rollout_id=r.rollout_id, role=up) for r in good]
    peers += [Peer(rollout_id=r.rollout_id, role=down) for r in bad]
    if condition.order == "failures_first":
        peers = peers[len(good) :] + peers[: len(good)]
    elif condition.order == "mixed":
        place = {r.rollout_id: i for i, r in enumerate(candidates)}
        peers.sort(key=lambda peer: place[peer.rollout_id])
    if condition.feedback:
        peers += [Peer(rollout_id=r.rollout_id, role="feedback") for r in bad]
    return tuple(peers)


Chosen = tuple[Sequence[Rollout], Sequence[Rollout]]
"""Peers for the success slots and for the failure slots."""


def _by_label(condition: Condition, candidates: Sequence[Rollout]) -> Chosen | None:
    successes = [r for r in candidates if r.success]
    failures = [r for r in candidates if not r.success and (not condition.feedback or (r.feedback or "").strip())]
    n = condition.success_slots
    if condition.fallback and len(successes) < n:
        return ((), failures[:n]) if len(failures) >= n else None
    if len(successes) < condition.needs_successes or len(failures) < condition.failure_slots:
        return None
    first = condition.success_offset
    return successes[first : first + n], failures[: condition.failure_slots]


def _by_place(condition: Condition, candidates: Sequence[Rollout]) -> Chosen | None:
    if len(candidates) < condition.slots:
        return None
    n = condition.success_slots
    return candidates[:n], candidates[n : condition.slots]


def _by_agreement(condition: Condition, candidates: Sequence[Rollout]) -> Chosen | None:
    """As a majority vote among the candidates would rank them; the targets are not among the candidates, so the
    ranking cannot depend on them."""
    answers = [(r, normalise(r.answer or "")) for r in candidates]
    votes = Counter(answer for _, answer in answers if answer)
    ranked = sorted(((r, a) for r, a in answers if a), key=lambda entry: -votes[entry[1]])
    if len(ranked) < condition.slots:
        return None
    rollouts = [r for r, _ in ranked]
    return rollouts[: condition.success_slots], rollouts[len(rollouts) - condition.failure_slots :]


_BY_CHOICE: dict[str, Callable[[Condition, Sequence[Rollout]], Chosen | None]] = {
    "label": _by_label,
    "random": _by_place,
    "agreement": _by_agreement,
}


def leave_pair_out(group: Group, condition: Condition, seed: int) -> Iterator[Assignment]:
    """A unit for each pair (success i, failure j), with peers from the group without i, j and their duplicates."""
    line = in_line(group, seed)
    failures = [(r, text) for r, text in line if not r.success]
    for success, success_text in ((r, text) for r, text in line if r.success):
        for failure, failure_text in failures:
            yield Assignment(
                unit_id=_pair_id(success.rollout_id, failure.rollout_id),
                targets=(success.rollout_id, failure.rollout_id),
                peers=choose_peers(condition, line, {success_text, failure_text}),
            )


def _pair_id(success: str, failure: str) -> str:
    """``success|failure``, with the bars of an id itself escaped, so that two pairs never share a name."""
    return "|".join(name.replace("\\", "\\\\").replace("|", "\\|") for name in (success, failure))


def split(group: Group, condition: Condition, seed: int, *, splits: int = SPLITS) -> Iterator[Assignment]:
    """Units of targets from ``splits`` random halvings of the group; every target of a unit shares one context.

    Rollouts with the same normalised text stay on one side. A halving whose target side lacks a class is kept: its
    metrics are undefined and counted.
    """
    line = in_line(group, seed)
    texts = sorted({text for _, text in line})
    for r in range(splits):
        shuffled = sorted(texts, key=lambda text, r=r: _rank(seed, group.group_id, f"split {r}\x1f{text}"))
        pool = set(shuffled[: (len(shuffled) + 1) // 2])
        targets = tuple(rollout.rollout_id for rollout, text in line if text not in pool)
        if targets:
            peers = choose_peers(condition, [entry for entry in line if entry[1] in pool], ())
            yield Assignment(unit_id=f"split{r}", targets=targets, peers=peers)


def self_exclusion(group: Group, condition: Condition, seed: int) -> Iterator[Assignment]:
    """One unit, the group; each target's peers come from all rollouts that are not its duplicates."""
    line = in_line(group, seed)
    for rollout, text in line:
        yield Assignment(unit_id="group", targets=(rollout.rollout_id,), peers=choose_peers(condition, line, {text}))


PROTOCOLS: dict[str, Protocol] = {
    "leave_pair_out": leave_pair_out,
    "split": split,
    "self_exclusion": self_exclusion,
}
CONFOUNDED = frozenset({"self_exclusion", "published"})
"""Protocols whose contexts depend on the target's own label."""
