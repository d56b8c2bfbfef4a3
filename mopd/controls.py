"""What the controls need besides a group: peers of another prompt, and words in another order.

A control shows that a gain is due to what we say it is due to. ``other_prompt`` shows peers of another prompt of the
same task: what they still give is format and style, not help with the question. ``shuffled_peer`` shows the peers'
words without their order. Both keep the number of blocks and the headings of ``2s1f``.
"""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from mopd.conditions import Condition, condition
from mopd.peers import Assignment, Peer, Protocol, choose_peers, in_line, normalise
from mopd.rollouts import Group, Rollout, content_id, prompt_key

__all__ = ["Pool", "assign", "excerpt", "shown_texts", "shuffle_words", "summary_of"]

UNITS = condition("question_only")
EXCERPT = 400
"""Most characters of a peer that has no tagged summary."""
_SUMMARY = re.compile(r"<summary>(.*?)</summary>", re.DOTALL | re.IGNORECASE)


class Pool:
    """Groups that can lend their rollouts to groups of other prompts of the same task.

    The groups of a task stand in a seeded ring; a group borrows from the next ones after it, so that each lends about
    as often as any other.

    Args:
        groups: those of the study, each once.
        seed: of the ring.
    """

    def __init__(self, groups: Iterable[Group], seed: int = 0) -> None:
        self.seed = seed
        self.rollouts: dict[str, Rollout] = {}
        by_task: dict[str, list[Group]] = {}
        for group in groups:
            self.rollouts |= group.by_id
            by_task.setdefault(group.task, []).append(group)
        self._rings = {task: sorted(ring, key=self._place) for task, ring in by_task.items()}
        self._lenders: dict[tuple[str, str], tuple[list[str], list[tuple[Group, list[tuple[Rollout, str]]]]]] = {}

    def peers(self, group: Group, cond: Condition, targets: Sequence[str]) -> tuple[Peer, ...] | None:
        """Peers for ``targets`` of ``group`` from the nearest group on the ring that has another prompt and can fill
        the slots without a near-duplicate of a target; None if no group can."""
        banned = {normalise(group.by_id[t].response) for t in targets}
        own = prompt_key(group.prompt)
        for lender, line in self._after(group, cond):
            if prompt_key(lender.prompt) == own:
                continue
            peers = choose_peers(cond, line, banned)
            if peers is not None:
                return peers
        return None

    def _after(self, group: Group, cond: Condition) -> Iterator[tuple[Group, list[tuple[Rollout, str]]]]:
        """Lenders from ``group`` on around the ring; found once a condition, as most groups may be unable to lend."""
        key = (group.task, cond.name)
        if key not in self._lenders:
            lines = ((lender, in_line(lender, self.seed)) for lender in self._rings.get(group.task, ()))
            able = [(g, line) for g, line in lines if choose_peers(cond, line, ()) is not None]
            self._lenders[key] = [self._place(g) for g, _ in able], able
        places, lenders = self._lenders[key]
        first = bisect.bisect_right(places, self._place(group))
        for i in range(len(lenders)):
            yield lenders[(first + i) % len(lenders)]

    def _place(self, group: Group) -> str:
        return hashlib.sha256(f"ring\x1f{self.seed}\x1f{group.group_id}".encode("utf-8", "surrogatepass")).hexdigest()


def assign(
    protocol: Protocol, group: Group, cond: Condition, seed: int, pool: Pool | None = None
) -> Iterator[Assignment]:
    """A protocol's assignments, with peers from ``pool`` where the condition takes them from another prompt.

    Raises:
        ValueError: the condition needs a pool and there is none.
    """
    if cond.source == "group":
        yield from protocol(group, cond, seed)
        return
    if pool is None:
        raise ValueError(f"condition {cond.name} shows peers of another prompt: give a Pool of the study's groups")
    for unit in protocol(group, UNITS, seed):
        yield dataclasses.replace(unit, peers=pool.peers(group, cond, unit.targets))


def shown_texts(
    cond: Condition, peers: Sequence[Peer], rollouts: Mapping[str, Rollout], seed: int = 0
) -> dict[str, str]:
    """What is shown of each peer before any budget, by ``Peer.key``."""
    texts: dict[str, str] = {}
    for peer in peers:
        rollout = rollouts[peer.rollout_id]
        if peer.role == "feedback":
            texts[peer.key] = rollout.feedback or ""
        elif cond.shown == "shuffled":
            texts[peer.key] = shuffle_words(rollout.response, f"{seed}\x1f{peer.rollout_id}")
        elif cond.shown == "summary":
            texts[peer.key] = summary_of(rollout.response)
        else:
            texts[peer.key] = rollout.response
    return texts


def shuffle_words(text: str, key: str) -> str:
    """The words of a text in an order that ``key`` decides, with the white space between them where it was."""
    pieces = re.split(r"(\s+)", text)
    words = [piece for piece in pieces[::2] if piece]
    rng = random.Random(content_id(key))
    rng.shuffle(words)
    following = iter(words)
    return "".join(next(following) if i % 2 == 0 and piece else piece for i, piece in enumerate(pieces))


def summary_of(text: str) -> str:
    """The last ``<summary>`` of a response, or an excerpt of one that has none."""
    tagged = [found.strip() for found in _SUMMARY.findall(text) if found.strip()]
    return tagged[-1] if tagged else excerpt(text)


def excerpt(text: str, limit: int = EXCERPT) -> str:
    """The text, or its beginning and end, cut between words, in at most ``limit`` characters."""
    text = text.strip()
    if len(text) <= limit:
        return text
    room = limit - len(" [...] ")
    head, tail = text[: room - room // 2], text[len(text) - room // 2 :]
    head = head.rsplit(maxsplit=1)[0] if re.search(r"\s", head) else head
    tail = tail.split(maxsplit=1)[-1] if re.search(r"\s", tail) else tail
    return f"{head.rstrip()} [...] {tail.lstrip()}"
