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
    "leave_pair_out",
    "normalise",
    "self_exclusion",
    "split",
    "usable",
]

SPLITS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Peer:
    """A rollout shown to the teacher, in the role that its heading gives it."""

    rollout_id: str
    role: Literal["success", "failure"]


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


def _in_line(group: Group, seed: int) -> list[tuple[Rollout, str]]:
    """Usable rollouts in the group's seeded order, each with its normalised text."""
    line = sorted(usable(group), key=lambda r: _rank(seed, group.group_id, r.rollout_id))
    return [(r, normalise(r.response)) for r in line]


def choose_peers(
    condition: Condition, line: Sequence[tuple[Rollout, str]], banned: Collection[str]
) -> tuple[Peer, ...] | None:
    """Fill the slots of a condition from a line of (rollout, normalised text).

    Args:
        condition: how many successes and failures are wanted, and how many successes are passed over first.
        line: candidates in the order in which they are taken.
        banned: normalised texts that must not be shown.

    Returns:
        Successes first, then failures; None if there are not enough.
    """
    seen = set(banned)
    successes: list[Peer] = []
    failures: list[Peer] = []
    for rollout, text in line:
        if text in seen:
            continue
        seen.add(text)
        if rollout.success:
            successes.append(Peer(rollout_id=rollout.rollout_id, role="success"))
        else:
            failures.append(Peer(rollout_id=rollout.rollout_id, role="failure"))
    if len(successes) < condition.needs_successes or len(failures) < condition.failure_slots:
        return None
    first = condition.success_offset
    return (*successes[first : first + condition.success_slots], *failures[: condition.failure_slots])


def leave_pair_out(group: Group, condition: Condition, seed: int) -> Iterator[Assignment]:
    """A unit for each pair (success i, failure j), with peers from the group without i, j and their duplicates."""
    line = _in_line(group, seed)
    failures = [(r, text) for r, text in line if not r.success]
    for success, success_text in ((r, text) for r, text in line if r.success):
        for failure, failure_text in failures:
            yield Assignment(
                unit_id=f"{success.rollout_id}|{failure.rollout_id}",
                targets=(success.rollout_id, failure.rollout_id),
                peers=choose_peers(condition, line, {success_text, failure_text}),
            )


def split(group: Group, condition: Condition, seed: int, *, splits: int = SPLITS) -> Iterator[Assignment]:
    """Units of targets from ``splits`` random halvings of the group; every target of a unit shares one context.

    Rollouts with the same normalised text stay on one side. A halving whose target side lacks a class is kept: its
    metrics are undefined and counted.
    """
    line = _in_line(group, seed)
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
    line = _in_line(group, seed)
    for rollout, text in line:
        yield Assignment(unit_id="group", targets=(rollout.rollout_id,), peers=choose_peers(condition, line, {text}))


PROTOCOLS: dict[str, Protocol] = {
    "leave_pair_out": leave_pair_out,
    "split": split,
    "self_exclusion": self_exclusion,
}
CONFOUNDED = frozenset({"self_exclusion", "published"})
"""Protocols whose contexts depend on the target's own label."""
