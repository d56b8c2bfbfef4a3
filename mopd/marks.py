"""Which tokens are what: marks on every scored token, kept in ``tokens.parquet``.

A teacher that reads a peer can gain by copying it. A token is *copied* if it lies in a run of at least ``MATCH`` tokens
that some shown peer has too, as it was shown (shuffled, as a summary, shortened), else *novel*; ``copied_from`` says
which peer has the longest such run. A token is *in the answer* if its characters overlap the last place where the
extracted answer stands for itself in the response; it is of *high entropy* if it is in the top fifth of the student's
entropy within its response; its *position* is the quarter of the response that it lies in.

Only what is copied depends on the context; the other marks are found once a rollout. ``mopd.by_mark`` says what is left
of a condition's AUC on tokens of each kind.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from mopd.conditions import condition
from mopd.controls import shown_texts
from mopd.lists import list_column
from mopd.peers import Peer
from mopd.rollouts import Rollout
from mopd.tokens import Codec

__all__ = [
    "MARKS",
    "MATCH",
    "answer_mask",
    "copied_mask",
    "copied_runs",
    "high_entropy_mask",
    "quarters",
    "span_mask",
    "with_marks",
]

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

MATCH = 8
TOP_SHARE = 0.2
GAP = -1
"""Stands where a shortened peer has its cut: it equals no token, so no run goes across."""

MARKS = {
    "copied": pl.List(pl.Boolean()),
    "copied_from": pl.List(pl.Int16()),
    "in_answer": pl.List(pl.Boolean()),
    "high_entropy": pl.List(pl.Boolean()),
    "position": pl.List(pl.UInt8()),
}
"""Columns and types that marks add to ``tokens.parquet``, a value per token.

``copied_from`` is a place in the context's ``peers``, null for a novel token; ``position`` is 0 to 3. ``in_answer`` is
null without an extracted answer in the text, ``high_entropy`` with a teacher that gives no entropies."""


class _Runs:
    """Suffix automaton of a sequence: for every place of another one, the longest run ending there that both have.

    Linear in both lengths, also for the endless repetitions that small models write. Blumer et al., Theoretical
    Computer Science 40 (1985).
    """

    def __init__(self, ids: Sequence[int]) -> None:
        self.next: list[dict[int, int]] = [{}]
        self.link = [-1]
        self.length = [0]
        last = 0
        for token in ids:
            last = self._extend(last, token)

    def _extend(self, last: int, token: int) -> int:
        new = len(self.next)
        self.next.append({})
        self.length.append(self.length[last] + 1)
        self.link.append(0)
        state = last
        while state >= 0 and token not in self.next[state]:
            self.next[state][token] = new
            state = self.link[state]
        if state < 0:
            return new
        target = self.next[state][token]
        if self.length[target] == self.length[state] + 1:
            self.link[new] = target
            return new
        clone = len(self.next)
        self.next.append(dict(self.next[target]))
        self.length.append(self.length[state] + 1)
        self.link.append(self.link[target])
        while state >= 0 and self.next[state].get(token) == target:
            self.next[state][token] = clone
            state = self.link[state]
        self.link[target] = self.link[new] = clone
        return new

    def covering(self, ids: Sequence[int], match: int) -> NDArray[np.int32]:
        """For every token the length of the longest shared run that it lies in; 0 if none has ``match`` tokens."""
        ends: list[tuple[int, int]] = []  # (length, one past its last token), of runs that cannot grow to the right
        state = run = 0
        for place, token in enumerate(ids):
            before = run
            while state and token not in self.next[state]:
                state = self.link[state]
                run = self.length[state]
            if token in self.next[state]:
                state, run = self.next[state][token], run + 1
            if before >= match and run <= before:
                ends.append((before, place))
        if run >= match:
            ends.append((run, len(ids)))
        longest = np.zeros(len(ids), dtype=np.int32)
        for length, end in sorted(ends):  # a longer run is written over a shorter one
            longest[end - length : end] = length
        return longest


def copied_runs(ids_T: ArrayLike, peers: Sequence[ArrayLike], *, match: int = MATCH) -> tuple[Bools, NDArray[np.int16]]:
    """Whether each token is copied, and from which of the peers (-1: none); shape (T,) each.

    That is the peer which shares the longest run over the token, the first of several; runs have at least ``match``
    tokens.
    """
    ids = np.asarray(ids_T, dtype=np.int64).tolist()
    return _longest([_Runs(np.asarray(p, dtype=np.int64).tolist()).covering(ids, match) for p in peers], len(ids))


def _longest(runs: Sequence[NDArray[np.int32]], size: int) -> tuple[Bools, NDArray[np.int16]]:
    if not runs:
        return np.zeros(size, dtype=np.bool_), np.full(size, -1, dtype=np.int16)
    lengths_PT = np.stack(runs)
    copied = lengths_PT.max(axis=0) > 0
    return copied, np.where(copied, lengths_PT.argmax(axis=0), -1).astype(np.int16)


def copied_mask(ids_T: ArrayLike, peers: Sequence[ArrayLike], *, match: int = MATCH) -> Bools:
    """Whether each token lies in a run of at least ``match`` tokens that a peer has; shape (T,)."""
    return copied_runs(ids_T, peers, match=match)[0]


def answer_mask(ids_T: ArrayLike, response: str, answer: str | None, codec: Codec) -> Bools | None:
    """Whether each token's characters overlap the last occurrence of the answer in the response; shape (T,).

    An occurrence inside of a longer word or number (the C of Celsius, the 4 of 14) counts only if there is no other.
    None if there is no answer, or if it does not stand in the response as it was extracted.
    """
    wanted = (answer or "").strip()
    start = _last_alone(response, wanted) if wanted else -1
    return span_mask(ids_T, [(start, start + len(wanted))], codec)[0] if start >= 0 else None


def _last_alone(text: str, wanted: str) -> int:
    """Where a part of a text begins the last time that it stands for itself, else the last time at all; -1 if never."""
    before = r"(?<!\w)(?<!\d[.,])" if wanted[0].isalnum() else ""
    after = r"(?!\w)(?![.,]\d)" if wanted[-1].isalnum() else ""
    alone = [match.start() for match in re.finditer(before + re.escape(wanted) + after, text)]
    return alone[-1] if alone else text.rfind(wanted)


def span_mask(ids_T: ArrayLike, spans: Sequence[tuple[int, int]], codec: Codec) -> list[Bools]:
    """For each span of characters of the decoded response the tokens that overlap it; shape (T,) each."""
    ids = [int(i) for i in np.asarray(ids_T)]
    spoken = len(ids)
    while spoken and not codec.decode(ids[spoken - 1 : spoken], skip_special=True):
        spoken -= 1  # the end token is no part of what was said
    said = functools.cache(lambda size: len(codec.decode(ids[:size], skip_special=True)))
    masks = []
    for start, end in spans:
        mask = np.zeros(len(ids), dtype=np.bool_)
        first = _holder(said, spoken, start)
        # up to the token before the next character's, or that one if it holds the span's last character as well
        last = max(_holder(said, spoken, end - 1) + 1, _holder(said, spoken, end))
        mask[first : min(last, spoken)] = True
        masks.append(mask)
    return masks


def _holder(said: Callable[[int], int], size: int, character: int) -> int:
    """Index of the token with which a character begins to be there; ``size`` if none of so many tokens has it.

    The decoded length of the first n tokens, ``said(n)``, grows with n, so that a few decodings find it.
    """
    low, high = 0, size
    while low < high:
        middle = (low + high) // 2
        if said(middle + 1) > character:
            high = middle
        else:
            low = middle + 1
    return low


def high_entropy_mask(entropy_T: ArrayLike) -> Bools:
    """Whether each token is among the top fifth by entropy; shape (T,). Equal entropies at the limit are all in."""
    entropy = np.asarray(entropy_T, dtype=np.float64)
    if not len(entropy):
        return np.zeros(0, dtype=np.bool_)
    count = max(1, round(TOP_SHARE * len(entropy)))
    return entropy >= np.sort(entropy)[-count]


def quarters(size: int) -> NDArray[np.uint8]:
    """Which quarter of a response of ``size`` tokens each lies in, by its middle; shape (T,), 0 to 3."""
    return ((np.arange(size) + 0.5) / max(size, 1) * 4).astype(np.uint8)


def with_marks(
    tokens: pl.DataFrame,
    contexts: pl.DataFrame,
    rollouts: pl.DataFrame,
    codec: Codec,
    *,
    seed: int = 0,
    match: int = MATCH,
) -> pl.DataFrame:
    """``tokens`` with the columns ``MARKS``: what every scored token is.

    Args:
        tokens: ``tokens.parquet``.
        contexts: ``contexts.parquet``, for who was shown and how.
        rollouts: all rollouts that can have been shown, with ``rollout_id``, ``group_id``, ``response``, ``answer``
            and ``feedback``.
        codec: the teacher's tokenizer.
        seed: of the study, which decides how words are shuffled.
        match: fewest tokens of a copied run.

    Returns:
        The rows of ``tokens`` in their order; marks that they have already are made anew.
    """
    said = {
        rollout_id: Rollout(rollout_id=rollout_id, group_id=group_id, response=text or "", answer=answer)
        for rollout_id, group_id, text, answer in rollouts.select(
            "rollout_id", "group_id", "response", "answer"
        ).iter_rows()
    }
    finder = _CopyFinder(said, codec, seed, match)
    of_rollout: dict[str, tuple[Bools | None, Bools | None, NDArray[np.uint8]]] = {}
    shown = dict(zip(contexts["context_id"], finder.shown_in(contexts), strict=True))
    columns: list[list[NDArray | None]] = [[] for _ in MARKS]
    for context_id, rollout_id, ids, entropy in tokens.select(
        "context_id", "rollout_id", "token_ids", "student_entropy"
    ).iter_rows():
        if rollout_id not in of_rollout:
            rollout = said[rollout_id]
            of_rollout[rollout_id] = (
                answer_mask(ids, rollout.response, rollout.answer, codec),
                None if entropy is None else high_entropy_mask(entropy),
                quarters(len(ids)),
            )
        row = (*finder.runs(rollout_id, ids, shown[context_id]), *of_rollout[rollout_id])
        for column, value in zip(columns, row, strict=True):
            column.append(value)
    marks = [
        list_column(name, values, dtype, negative_is_null=name == "copied_from")
        for (name, dtype), values in zip(MARKS.items(), columns, strict=True)
    ]
    return tokens.drop(list(MARKS), strict=False).hstack(marks)


Shown = tuple[tuple[int, int], ...]
"""What a context shows: (place among its peers, number of the peer's words as shown)."""
KEPT = 8192  # findings; groups come one after the other, so that few are asked for again later


class _CopyFinder:
    """What a context shows of its peers, and what targets share with it; each found once."""

    def __init__(self, said: Mapping[str, Rollout], codec: Codec, seed: int, match: int) -> None:
        self.said, self.codec, self.seed, self.match = said, codec, seed, match
        self.encoded: Callable[[str], tuple[int, ...]] = functools.lru_cache(4096)(
            lambda text: tuple(codec.encode_text(text))
        )
        self.words: list[tuple[int, ...]] = []
        self.number: dict[tuple[int, ...], int] = {}
        self.automaton: Callable[[int], _Runs] = functools.lru_cache(256)(lambda number: _Runs(self.words[number]))
        self.pairs: dict[tuple[str, int], NDArray[np.int32]] = {}
        self.found: dict[tuple[str, Shown], tuple[Bools, NDArray[np.int16]]] = {}

    def shown_in(self, contexts: pl.DataFrame) -> Iterator[Shown]:
        """The peers' words of every context; what the verifier said of a peer is not the peer's."""
        for name, peers, cuts in contexts.select("condition", "peers", "cuts").iter_rows():
            chosen = [Peer(rollout_id=p["rollout_id"], role=p["role"]) for p in peers]
            own = [(place, peer) for place, peer in enumerate(chosen) if peer.role != "feedback"]
            texts = shown_texts(condition(name), [peer for _, peer in own], self.said, self.seed)
            removed = {cut["section"]: cut["tokens_removed"] for cut in cuts or ()}
            yield tuple(
                (
                    place,
                    self._numbered(
                        self._cut(self.encoded(texts[peer.key]), removed.get(f"{peer.role}:{peer.rollout_id}", 0))
                    ),
                )
                for place, peer in own
            )

    def _numbered(self, words: tuple[int, ...]) -> int:
        if words not in self.number:
            self.number[words] = len(self.words)
            self.words.append(words)
        return self.number[words]

    @staticmethod
    def _cut(ids: tuple[int, ...], removed: int) -> tuple[int, ...]:
        """The head and tail that are left of a shortened peer (``mopd.tokens.fit_context``)."""
        if not removed:
            return ids
        keep = max(0, len(ids) - removed)
        tail = keep // 2
        return (*ids[: keep - tail], GAP, *(ids[len(ids) - tail :] if tail else ()))

    def runs(self, rollout_id: str, ids: Sequence[int], shown: Shown) -> tuple[Bools, NDArray[np.int16]]:
        """``copied_runs`` with the peers' places in the context."""
        key = (rollout_id, shown)
        if key not in self.found:
            _make_room(self.found)
            lengths = [self._pair(rollout_id, ids, words) for _, words in shown]
            copied, which = _longest(lengths, len(ids))
            places = np.array([place for place, _ in shown] + [-1], dtype=np.int16)
            self.found[key] = (copied, places[which])
        return self.found[key]

    def _pair(self, rollout_id: str, ids: Sequence[int], words: int) -> NDArray[np.int32]:
        key = (rollout_id, words)
        if key not in self.pairs:
            _make_room(self.pairs)
            self.pairs[key] = self.automaton(words).covering(ids, self.match)
        return self.pairs[key]


def _make_room(findings: dict[Any, Any]) -> None:
    """Forget all findings once there are many."""
    if len(findings) >= KEPT:
        findings.clear()
