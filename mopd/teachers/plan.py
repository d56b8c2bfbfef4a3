"""What must go through the model to score a group, and in which order.

To score ``response`` after ``context`` a model reads ``context + response[:-1]``: the hidden state of the last
context token predicts the first response token, and nothing follows the last. The distinct sequences of a group in
lexicographic order, with the length that each shares with the one before it, are its prefix trie: the part of a
sequence that is not shared is read once, right after the path that it continues.

Two layouts of that reading are offered. ``packed_segments`` has every distinct prefix token exactly once, for models
whose attention can look back along a path. ``branches`` is for models that carry a state from token to token: a
prefix is read apart only where that saves more than another forward costs, and what remains is read in batches.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Branch",
    "Readout",
    "Segment",
    "Trie",
    "branches",
    "build_trie",
    "chunks",
    "leaf_batches",
    "packed_segments",
    "readout",
]

Ids = NDArray[np.int32]
Pair = tuple[Ids, Ids]
"""Context [S] and response [T] ids."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Trie:
    """The prefix trie of a group's requests.

    Attributes:
        sequences: N distinct sequences to read, in lexicographic order.
        shared: [N] tokens that each has in common with the one before it; 0 for the first.
        pairs: D distinct requests.
        sequence_of: [D] the sequence that each distinct request reads.
        request_of: for every request asked, its place in ``pairs``.
    """

    sequences: tuple[Ids, ...]
    shared: NDArray[np.int64]
    pairs: tuple[Pair, ...]
    sequence_of: NDArray[np.int64]
    request_of: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[N] tokens of each sequence."""
        return np.array([len(s) for s in self.sequences], dtype=np.int64)

    @property
    def bound(self) -> int:
        """Distinct prefix tokens: no exact scorer forwards fewer."""
        return int((self.lengths - self.shared).sum())

    @property
    def alone(self) -> int:
        """Tokens to forward when every distinct request is read by itself."""
        return int(self.lengths[self.sequence_of].sum())

    @property
    def longest(self) -> int:
        """Tokens of the longest path."""
        return int(self.lengths.max(initial=0))


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """Tokens ``start:end`` of a sequence, read when the path holds its first ``start`` tokens."""

    sequence: int
    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, kw_only=True, slots=True)
class Branch:
    """A shared prefix and what continues it.

    Attributes:
        stem: the tokens that all below have in common; empty at the root.
        leaves: what is read to the end of a sequence; empty for a sequence that ends with the stem.
        branches: further shared prefixes.
    """

    stem: Segment
    leaves: tuple[Segment, ...]
    branches: tuple[Branch, ...]

    def segments(self) -> Iterator[Segment]:
        """All of them, in the order of reading."""
        yield self.stem
        yield from self.leaves
        for branch in self.branches:
            yield from branch.segments()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Readout:
    """Where in the stream of tokens read, one segment after the other, the predictions are.

    Attributes:
        row: [M] places in the stream, ascending; several responses may be read off one place.
        target: [M] the token predicted there.
        order: [M] where each belongs in the concatenation of all distinct responses.
    """

    row: NDArray[np.int64]
    target: NDArray[np.int64]
    order: NDArray[np.int64]


def build_trie(pairs: Iterable[Pair]) -> Trie:
    """The trie of (context, response) requests; equal ones are kept once.

    Raises:
        ValueError: a context or a response is empty.
    """
    places: dict[tuple[bytes, bytes], int] = {}
    distinct: list[Pair] = []
    request_of: list[int] = []
    for context, response in pairs:
        if not len(context) or not len(response):
            raise ValueError(
                f"a request needs at least one context and one response token, got {len(context)} and {len(response)}"
            )
        key = (context.tobytes(), response.tobytes())
        if key not in places:
            places[key] = len(distinct)
            distinct.append((context, response))
        request_of.append(places[key])
    # Big-endian bytes of non-negative numbers sort as the numbers do.
    read = [np.concatenate([context, response[:-1]]).astype(">i4").tobytes() for context, response in distinct]
    ordered = sorted(set(read))
    place = {key: i for i, key in enumerate(ordered)}
    sequences = tuple(np.frombuffer(key, dtype=">i4").astype(np.int32) for key in ordered)
    shared = [0, *(_common(a, b) for a, b in itertools.pairwise(sequences))]
    return Trie(
        sequences=sequences,
        shared=np.array(shared[: len(sequences)], dtype=np.int64),
        pairs=tuple(distinct),
        sequence_of=np.array([place[key] for key in read], dtype=np.int64),
        request_of=np.array(request_of, dtype=np.int64),
    )


def _common(a: Ids, b: Ids) -> int:
    """Length of the common prefix."""
    n = min(len(a), len(b))
    differs = a[:n] != b[:n]
    return int(differs.argmax()) if differs.any() else n


def packed_segments(trie: Trie) -> list[Segment]:
    """Every distinct prefix token once, each segment continuing the path of those before it."""
    return [
        Segment(sequence=i, start=int(start), end=len(sequence))
        for i, (sequence, start) in enumerate(zip(trie.sequences, trie.shared, strict=True))
    ]


def chunks(segments: Iterable[Segment], budget: int) -> Iterator[list[Segment]]:
    """The same tokens in the same order, in lists of at most ``budget`` tokens; a segment may be cut."""
    chunk: list[Segment] = []
    room = budget
    for segment in segments:
        start = segment.start
        while start < segment.end:
            end = min(segment.end, start + room)
            chunk.append(Segment(sequence=segment.sequence, start=start, end=end))
            room -= end - start
            start = end
            if not room:
                yield chunk
                chunk, room = [], budget
    if chunk:
        yield chunk


def branches(trie: Trie, *, saving: float) -> Branch:
    """The trie with a stem wherever reading it once saves at least ``saving`` tokens.

    ``saving`` is what one more forward costs, in tokens; infinity reads every sequence by itself.
    """

    def below(low: int, high: int, depth: int) -> tuple[tuple[Segment, ...], tuple[Branch, ...]]:
        """Leaves and branches of the sequences ``low:high``, which share ``depth`` tokens that were read."""
        leaves: list[Segment] = []
        subtrees: list[Branch] = []
        todo = [(low, high)]
        while todo:
            a, b = todo.pop()
            if b - a == 1:
                leaves.append(Segment(sequence=a, start=depth, end=len(trie.sequences[a])))
                continue
            common = int(trie.shared[a + 1 : b].min())
            if common > depth and (b - a - 1) * (common - depth) >= saving:
                stem = Segment(sequence=a, start=depth, end=common)
                inner_leaves, inner_branches = below(a, b, common)
                subtrees.append(Branch(stem=stem, leaves=inner_leaves, branches=inner_branches))
            else:
                cuts = [a, *(a + 1 + np.flatnonzero(trie.shared[a + 1 : b] == common)).tolist(), b]
                todo.extend(itertools.pairwise(cuts))
        leaves.sort(key=lambda s: (-len(s), s.sequence))
        return tuple(leaves), tuple(sorted(subtrees, key=lambda t: t.stem.sequence))

    root = Segment(sequence=0, start=0, end=0)
    leaves, subtrees = below(0, len(trie.sequences), 0) if trie.sequences else ((), ())
    return Branch(stem=root, leaves=leaves, branches=subtrees)


def leaf_batches(leaves: Iterable[Segment], budget: int, cache_budget: int | None = None) -> Iterator[list[Segment]]:
    """Leaves in batches, in their order (the longest first), one at least in each.

    Args:
        leaves: of one branch, the longest first; empty ones are left out.
        budget: most tokens of a batch, padding included.
        cache_budget: most tokens that the batch holds in caches: each leaf has a copy of the path before it.
    """
    batch: list[Segment] = []
    for leaf in filter(len, leaves):
        rows = len(batch) + 1
        if batch and (
            rows * len(batch[0]) > budget or (cache_budget is not None and rows * batch[0].end > cache_budget)
        ):
            yield batch
            batch = []
        batch.append(leaf)
    if batch:
        yield batch


def readout(trie: Trie, segments: Iterable[Segment]) -> Readout:
    """The predictions' places when ``segments`` are read one after the other.

    A segment that ends its sequence is the one under which the sequence's requests are answered.
    """
    requests: dict[int, list[int]] = {}
    for request, sequence in enumerate(trie.sequence_of.tolist()):
        requests.setdefault(sequence, []).append(request)
    path = np.zeros(trie.longest, dtype=np.int64)  # where in the stream each token of the current path is
    rows: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64)] * len(trie.pairs)
    at = 0
    for segment in segments:
        path[segment.start : segment.end] = np.arange(at, at + len(segment))
        at += len(segment)
        if segment.end == len(trie.sequences[segment.sequence]):
            for request in requests.get(segment.sequence, ()):
                context, response = trie.pairs[request]
                rows[request] = path[len(context) - 1 : len(context) - 1 + len(response)].copy()
    row = np.concatenate(rows) if rows else np.empty(0, dtype=np.int64)
    target = np.concatenate([r for _, r in trie.pairs]).astype(np.int64) if rows else row
    order = np.argsort(row, kind="stable")
    return Readout(row=row[order], target=target[order], order=order)
