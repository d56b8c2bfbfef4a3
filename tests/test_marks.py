"""Marks on tokens, by hand."""

from __future__ import annotations

import time

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mopd.conditions import condition
from mopd.contexts import Templates
from mopd.controls import shown_texts
from mopd.marks import (
    MARKS,
    answer_mask,
    copied_mask,
    copied_runs,
    high_entropy_mask,
    quarters,
    span_mask,
    with_marks,
)
from mopd.peers import Peer
from mopd.store import SCHEMAS
from mopd.tokens import ByteCodec, HFCodec, fit_context
from tests.helpers import chatml_tokenizer, make_group

CODEC = ByteCodec()


def shown(mask: np.ndarray | None) -> str:
    assert mask is not None
    return "".join("x" if m else "." for m in mask)


def test_a_run_of_enough_tokens_is_copied() -> None:
    target, peer = b"ab12345cd", b"zz12345yy"
    assert shown(copied_mask(list(target), [list(peer)], match=5)) == "..xxxxx.."
    assert shown(copied_mask(list(target), [list(peer)], match=4)) == "..xxxxx.."
    assert shown(copied_mask(list(target), [list(peer)], match=6)) == "........."
    assert shown(copied_mask(list(target), [list(b"ab12"), list(b"5cd")], match=3)) == "xxxx..xxx"
    assert shown(copied_mask(list(target), [], match=3)) == "." * 9
    assert copied_mask([], [list(peer)]).shape == (0,)


@given(st.lists(st.integers(0, 2), max_size=30), st.lists(st.integers(0, 2), max_size=30), st.integers(1, 5))
def test_copied_is_what_a_search_for_every_run_finds(target: list[int], peer: list[int], match: int) -> None:
    runs = {tuple(peer[i : i + match]) for i in range(len(peer) - match + 1)}
    expected = [False] * len(target)
    for i in range(len(target) - match + 1):
        if tuple(target[i : i + match]) in runs:
            expected[i : i + match] = [True] * match
    assert copied_mask(target, [peer], match=match).tolist() == expected


@given(
    st.lists(st.integers(0, 2), max_size=25),
    st.lists(st.lists(st.integers(0, 2), max_size=25), max_size=3),
    st.integers(1, 5),
)
def test_the_peer_is_the_one_with_the_longest_run(target: list[int], peers: list[list[int]], match: int) -> None:
    """Against a search over every run of the target in every peer."""
    best = [(0, -1)] * len(target)
    for which, peer in enumerate(peers):
        for start in range(len(target)):
            for end in range(start + match, len(target) + 1):
                if any(peer[i : i + end - start] == target[start:end] for i in range(len(peer))):
                    for t in range(start, end):
                        if end - start > best[t][0]:
                            best[t] = (end - start, which)
    copied, source = copied_runs(target, peers, match=match)
    assert source.tolist() == [which for _, which in best]
    assert copied.tolist() == [which >= 0 for _, which in best]


def test_from_which_peer_a_token_is_copied() -> None:
    # "cdef" is in both, but the second peer has "bcdefg": its run is longer over all that it covers
    copied, source = copied_runs(list(b"abcdefgh"), [list(b"xcdefx"), list(b"ybcdefgy")], match=3)
    assert shown(copied) == ".xxxxxx."
    assert source.tolist() == [-1, 1, 1, 1, 1, 1, 1, -1]
    assert copied_runs(list(b"abcab"), [list(b"abc"), list(b"abc")], match=3)[1].tolist() == [0, 0, 0, -1, -1]


def test_a_long_repetition_costs_little() -> None:
    began = time.perf_counter()
    assert copied_mask([1] * 20_000, [[1] * 20_000, [1, 2] * 10_000]).all()
    assert time.perf_counter() - began < 10


def test_the_answer_is_its_last_occurrence() -> None:
    text = "4 or 5? it is 4."
    ids = [*CODEC.encode_text(text), CODEC.END]
    assert shown(answer_mask(ids, text, " 4 ", CODEC)) == "." * 14 + "x" + ".."
    ends = [*CODEC.encode_text("is 44"), CODEC.END]
    assert shown(answer_mask(ends, "is 44", "44", CODEC)) == "...xx."
    assert answer_mask(ids, text, "7", CODEC) is None
    assert answer_mask(ids, text, None, CODEC) is None
    assert answer_mask(ids, text, " ", CODEC) is None


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("C at 25 Celsius", "C", "x.............."),
        ("it is 4 of 14", "4", "......x......"),
        ("4, not 4.5 or 3.4", "4", "x................"),
        ("4. Step 4.", "4", "........x."),
        ("14 km", "4", ".x..."),  # it stands nowhere else
        ("(a) or (ab)", "(a)", "xxx........"),
    ],
)
def test_an_answer_inside_of_a_word_or_number_is_no_answer(text: str, answer: str, expected: str) -> None:
    assert shown(answer_mask(CODEC.encode_text(text), text, answer, CODEC)) == expected


def test_characters_of_several_bytes_are_found() -> None:
    text = "π = ππ!"
    mask = answer_mask(CODEC.encode_text(text), text, "ππ", CODEC)
    assert shown(mask) == "....." + "xxxx" + "."  # two bytes a letter: 2 + 3 before, 4 inside, 1 after


def test_the_answer_under_a_tokenizer_of_transformers() -> None:
    codec, text = HFCodec(chatml_tokenizer()), "so x = 42 then"
    mask = answer_mask(codec.encode_text(text), text, "42", codec)
    assert shown(mask) == ".......xx....."


def test_the_top_fifth_by_entropy() -> None:
    assert shown(high_entropy_mask([1, 9, 2, 8, 3, 4, 5, 0, 0, 0])) == ".x.x......"
    assert shown(high_entropy_mask([1.0, 2.0])) == ".x"  # at least one
    assert shown(high_entropy_mask([1.0, 1.0, 1.0])) == "xxx"  # equal ones are all in
    assert high_entropy_mask([]).shape == (0,)


def test_the_quarter_that_a_token_lies_in() -> None:
    # middles at 1/12, 3/12, ... 11/12 of the response, times 4: 1/3, 1, 5/3, 7/3, 3, 11/3
    assert quarters(6).tolist() == [0, 1, 1, 2, 3, 3]
    assert quarters(1).tolist() == [2]
    assert quarters(0).tolist() == []


def test_spans_of_characters_as_tokens() -> None:
    ids = [*CODEC.encode_text("aπbc"), CODEC.END]
    masks = span_mask(ids, [(1, 2), (2, 4), (0, 4)], CODEC)
    assert [shown(mask) for mask in masks] == [".xx...", "...xx.", "xxxxx."]


def frames(condition_name: str = "1f", target: str = "abcdefgh4", peer: str = "abcdefghi", **cut: int) -> pl.DataFrame:
    """Marks of one target under a context that shows one peer and its feedback."""
    rollouts = pl.DataFrame(
        {
            "rollout_id": ["t", "p"],
            "group_id": ["g", "g"],
            "response": [target, peer],
            "answer": ["4", None],
            "feedback": [None, target],
        }
    )
    contexts = pl.DataFrame(
        {
            "context_id": ["c"],
            "condition": [condition_name],
            "peers": [[{"rollout_id": "p", "role": "feedback"}, {"rollout_id": "p", "role": "failure"}]],
            "cuts": [[{"section": "failure:p", "tokens_removed": n} for n in cut.values()]],
        },
        schema_overrides={name: SCHEMAS["contexts"][name] for name in ("peers", "cuts")},
    )
    ids = list(target.encode())
    tokens = pl.DataFrame(
        {
            "context_id": ["c"],
            "rollout_id": ["t"],
            "token_ids": [ids],
            "teacher_logprob": [[-1.0] * len(ids)],
            "student_logprob": [[-2.0] * len(ids)],
            "student_entropy": [None],
        },
        schema_overrides={k: SCHEMAS["tokens"][k] for k in ("teacher_logprob", "student_logprob", "student_entropy")},
    )
    marked = with_marks(tokens, contexts, rollouts, CODEC, seed=3)
    assert with_marks(marked, contexts, rollouts, CODEC, seed=3).equals(marked)  # once more changes nothing
    assert marked.drop(list(MARKS)).equals(tokens)
    return marked


def test_marks_of_a_row_by_hand() -> None:
    marked = frames()
    assert dict(marked.select(list(MARKS)).schema) == MARKS
    row = marked.row(0, named=True)
    assert row["copied"] == [True] * 8 + [False]
    assert row["copied_from"] == [1] * 8 + [None]  # the second place in the context; feedback is nobody's rollout
    assert row["in_answer"] == [False] * 8 + [True]
    assert row["high_entropy"] is None  # the teacher gave none
    assert row["position"] == quarters(9).tolist()


def test_only_what_was_shown_of_a_peer_can_be_copied() -> None:
    words = "one two three four five six"
    assert all(frames(target=words, peer=words)["copied"][0])
    # shuffled words keep no run of 8 characters here (the longest word has 5)
    assert not any(frames("shuffled_peer", words, words)["copied"][0])
    # 27 tokens less 9: the first 9 and the last 9 are left, and nothing goes across the cut
    assert frames(target=words, peer=words, removed=9)["copied"][0].to_list() == [True] * 9 + [False] * 9 + [True] * 9
    # 27 less 12: the first 8 are enough for a run, the last 7 are not
    assert frames(target=words, peer=words, removed=12)["copied"][0].to_list() == [True] * 8 + [False] * 19


def test_a_shortened_peer_is_read_as_the_context_shows_it() -> None:
    """The words that the marks take to be shown stand in the context that ``fit_context`` renders."""
    group = make_group("sf", responses=["target", "".join(chr(97 + i % 26) for i in range(200))])
    peers = (Peer(rollout_id="g-1", role="failure"),)
    fitted = fit_context(CODEC, group, condition("1f"), peers, templates=Templates(), max_tokens=220)
    (cut,) = fitted.cuts
    text = shown_texts(condition("1f"), peers, group.by_id)["g-1"]
    keep = 200 - cut.tokens_removed
    prompt = CODEC.decode(fitted.token_ids.tolist())
    assert 0 < keep < 200
    assert text[: keep - keep // 2] + Templates().cut_marker + text[200 - keep // 2 :] in prompt
