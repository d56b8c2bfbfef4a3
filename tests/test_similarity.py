"""Similarity of targets to peers: values by hand."""

from __future__ import annotations

import polars as pl
import pytest

from mopd.similarity import (
    SIMILARITY_TABLE,
    edit_similarities,
    near_duplicate_rates,
    ngram_overlap,
    ngrams,
    similarity_table,
)

PEERS = pl.List(pl.Struct({"rollout_id": pl.String, "role": pl.String}))


def test_edit_similarity_by_hand() -> None:
    # kitten -> sitting takes 3 edits, the longer has 7 letters: 1 - 3/7
    found = edit_similarities(["kitten", "", "same"], ["sitting", "", "same"])
    assert found.tolist() == pytest.approx([1 - 3 / 7, 1.0, 1.0])


def test_ngram_overlap_by_hand() -> None:
    assert ngrams("a b c d e") == {("a", "b", "c", "d"), ("b", "c", "d", "e")}
    # a b c d stands in both, b c d e in the target alone
    assert ngram_overlap(ngrams("a b c d e"), ngrams("x a b c d")) == 0.5
    assert ngram_overlap(ngrams("a b c d"), ngrams("a b")) == 0.0
    assert ngram_overlap(ngrams("a b c"), ngrams("a b c")) is None


def test_the_closest_peer_counts_and_feedback_is_no_peer() -> None:
    rollouts = pl.DataFrame(
        {"rollout_id": ["t", "p", "q"], "response": ["One two three four five", "one  two three four SIX", "zzz"]}
    )
    peers = [
        [{"rollout_id": "p", "role": "success"}, {"rollout_id": "q", "role": "failure"}],
        [{"rollout_id": "p", "role": "feedback"}],
        [],
    ]
    contexts = pl.DataFrame(
        {"context_id": ["both", "feedback", "bare"], "peers": peers}, schema_overrides={"peers": PEERS}
    )
    scores = pl.DataFrame({"context_id": ["both", "feedback", "bare"], "rollout_id": ["t", "t", "t"]})
    table = similarity_table(rollouts, contexts, scores)
    assert dict(table.schema) == SIMILARITY_TABLE
    # "five" -> "six" keeps the i: f->s, v->x, e gone, 3 edits of 23 letters; one of two runs of words is shared
    assert table.rows() == [
        ("both", "t", pytest.approx(1 - 3 / 23), 0.5),
        ("feedback", "t", None, None),
        ("bare", "t", None, None),
    ]
    with pytest.raises(ValueError, match="1 targets or peers, 'q' first, are not among the rollouts"):
        similarity_table(rollouts.head(2), contexts, scores)


def test_near_duplicate_rates_by_hand() -> None:
    rows = [
        ("g", True, "A b"),
        ("g", False, "a  B"),  # the same but for case and white space
        ("g", False, "other"),
        ("g", None, "other"),  # not judged
        ("g", True, "third"),
        ("one", True, "alone"),
        ("one", False, " "),  # empty
    ]
    frame = pl.DataFrame(rows, schema=["group_id", "success", "response"], orient="row").with_columns(task=pl.lit("t"))
    assert near_duplicate_rates(frame).rows() == [("t", "g", 2 / 4), ("t", "one", None)]
