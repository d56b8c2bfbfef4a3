"""The reading plan against a count of distinct prefixes by hand and by brute force."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mopd.teachers.plan import (
    Branch,
    Pair,
    Segment,
    branches,
    build_trie,
    chunks,
    leaf_batches,
    packed_segments,
    readout,
)

# Few letters and common beginnings, so that prefixes are shared at many depths.
ids = st.lists(st.integers(0, 2), min_size=1, max_size=8)
requests = st.lists(st.tuples(ids, ids), min_size=1, max_size=12)


def pairs_of(drawn: list[tuple[list[int], list[int]]]) -> list[Pair]:
    return [(np.array(c, dtype=np.int32), np.array(r, dtype=np.int32)) for c, r in drawn]


def prefixes(drawn: list[tuple[list[int], list[int]]]) -> set[tuple[int, ...]]:
    read = [(*context, *response[:-1]) for context, response in drawn]
    return {tokens[: i + 1] for tokens in read for i in range(len(tokens))}


def stream(trie, segments) -> list[tuple[int, ...]]:
    """The prefix that each token read ends, by following the path as a reader would."""
    path: list[int] = []
    found = []
    for segment in segments:
        tokens = trie.sequences[segment.sequence].tolist()
        assert path[: segment.start] == tokens[: segment.start]  # the path holds what the segment continues
        path = path[: segment.start]
        for token in tokens[segment.start : segment.end]:
            path.append(token)
            found.append(tuple(path))
    return found


def test_a_group_worked_by_hand() -> None:
    # read:  1 2 3 | 4 5      context 1 2 3, response 4 5 6
    #        1 2 3 | 4 7      context 1 2 3, response 4 7 7
    #        1 2 8            context 1 2 8, response 9
    drawn = [([1, 2, 3], [4, 5, 6]), ([1, 2, 3], [4, 7, 7]), ([1, 2, 8], [9]), ([1, 2, 3], [4, 5, 6])]
    trie = build_trie(pairs_of(drawn))
    assert [s.tolist() for s in trie.sequences] == [[1, 2, 3, 4, 5], [1, 2, 3, 4, 7], [1, 2, 8]]
    assert trie.shared.tolist() == [0, 4, 2]
    assert trie.bound == 7  # 1, 12, 123, 1234, 12345, 12347, 128
    assert trie.alone == 13  # 5 + 5 + 3, the equal request once
    assert trie.request_of.tolist() == [0, 1, 2, 0]
    packed = packed_segments(trie)
    assert packed == [
        Segment(sequence=0, start=0, end=5),
        Segment(sequence=1, start=4, end=5),
        Segment(sequence=2, start=2, end=3),
    ]
    read = readout(trie, packed)
    # rows 2, 3, 4 of the stream 1 2 3 4 5 | 7 | 8 predict 4 5 6; rows 2, 3, 5 predict 4 7 7; row 6 predicts 9
    assert read.row.tolist() == [2, 2, 3, 3, 4, 5, 6]
    assert read.target.tolist() == [4, 4, 5, 7, 6, 7, 9]
    assert read.order.tolist() == [0, 3, 1, 4, 2, 5, 6]


def test_a_prefix_is_read_apart_only_where_that_pays() -> None:
    drawn = [([1, 2, 3], [4, 5, 6]), ([1, 2, 3], [4, 7, 7]), ([1, 2, 8], [9])]
    trie = build_trie(pairs_of(drawn))
    # Three share 1 2: reading it once saves 2 * 2 = 4. Two more tokens are then shared by two: 1 * 2 = 2.
    whole = branches(trie, saving=1)
    (first,) = whole.branches
    assert (first.stem, [len(leaf) for leaf in first.leaves]) == (Segment(sequence=0, start=0, end=2), [1])
    (second,) = first.branches
    assert (second.stem, [len(leaf) for leaf in second.leaves]) == (Segment(sequence=0, start=2, end=4), [1, 1])
    assert sum(map(len, whole.segments())) == trie.bound
    (only,) = branches(trie, saving=3).branches
    assert not only.branches
    assert [len(leaf) for leaf in only.leaves] == [3, 3, 1]
    alone = branches(trie, saving=float("inf"))
    assert not alone.branches
    assert sum(map(len, alone.segments())) == trie.alone


@given(requests)
def test_the_bound_is_the_number_of_distinct_prefixes(drawn: list) -> None:
    trie = build_trie(pairs_of(drawn))
    assert trie.bound == len(prefixes(drawn))
    read = stream(trie, packed_segments(trie))
    assert Counter(read) == Counter(prefixes(drawn))  # each of them exactly once
    distinct = {(tuple(c), tuple(r)) for c, r in drawn}
    assert len(trie.pairs) == len(distinct)
    assert trie.alone == sum(len(c) + len(r) - 1 for c, r in distinct)
    for (context, response), request in zip(drawn, trie.request_of, strict=True):
        assert [a.tolist() for a in trie.pairs[request]] == [context, response]


@given(requests, st.integers(1, 20))
def test_chunks_hold_the_same_tokens_within_the_budget(drawn: list, budget: int) -> None:
    trie = build_trie(pairs_of(drawn))
    cut = list(chunks(packed_segments(trie), budget))
    assert all(sum(map(len, chunk)) == budget for chunk in cut[:-1])
    assert 0 < sum(map(len, cut[-1])) <= budget
    assert stream(trie, [s for chunk in cut for s in chunk]) == stream(trie, packed_segments(trie))


def nesting(branch: Branch) -> int:
    """Most path tokens held at once: the stems from the root down."""
    return len(branch.stem) + max((nesting(b) for b in branch.branches), default=0)


@given(requests, st.sampled_from([1, 2, 5, float("inf")]))
def test_branches_read_every_sequence_once_and_hold_one_path(drawn: list, saving: float) -> None:
    trie = build_trie(pairs_of(drawn))
    root = branches(trie, saving=saving)
    segments = list(root.segments())
    read = stream(trie, segments)
    assert set(read) == prefixes(drawn)
    assert trie.bound <= len(read) <= max(trie.alone, trie.bound)
    if saving == 1:
        assert len(read) == trie.bound
    assert nesting(root) <= trie.longest

    def leaves(branch: Branch) -> list[int]:
        return [s.sequence for s in branch.leaves] + [s for b in branch.branches for s in leaves(b)]

    assert sorted(leaves(root)) == list(range(len(trie.sequences)))


@given(requests, st.sampled_from([None, 1, 3, float("inf")]))
def test_every_request_is_read_off_the_prefixes_that_predict_it(drawn: list, saving: float | None) -> None:
    trie = build_trie(pairs_of(drawn))
    segments = packed_segments(trie) if saving is None else list(branches(trie, saving=saving).segments())
    read = stream(trie, segments)
    places = readout(trie, segments)
    assert (np.diff(places.row) >= 0).all()
    rows, targets = np.empty_like(places.row), np.empty_like(places.target)
    rows[places.order], targets[places.order] = places.row, places.target
    want = [
        ((*context.tolist(), *response[:t].tolist()), token)
        for context, response in trie.pairs
        for t, token in enumerate(response.tolist())
    ]
    assert [(read[row], token) for row, token in zip(rows, targets.tolist(), strict=True)] == want


@given(st.lists(st.integers(0, 30), max_size=20), st.integers(1, 40))
def test_leaf_batches_keep_to_the_budget_with_their_padding(lengths: list[int], budget: int) -> None:
    leaves = [Segment(sequence=i, start=5, end=5 + n) for i, n in enumerate(sorted(lengths, reverse=True))]
    for cache_budget in (None, 60):
        batches = list(leaf_batches(leaves, budget, cache_budget))
        assert [leaf for batch in batches for leaf in batch] == [leaf for leaf in leaves if len(leaf)]
        for batch in batches:
            longest = max(map(len, batch))
            assert len(batch) == 1 or len(batch) * longest <= budget
            assert len(batch) == 1 or cache_budget is None or len(batch) * (5 + longest) <= cache_budget


def test_an_empty_side_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one context and one response token, got 2 and 0"):
        build_trie(pairs_of([([1, 2], [])]))
    assert build_trie([]).bound == 0
    assert list(branches(build_trie([]), saving=1).segments()) == [Segment(sequence=0, start=0, end=0)]
