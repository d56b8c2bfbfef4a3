"""Marks on tokens, by hand."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mopd.marks import (
    MARKED_SCORES,
    MARKS,
    answer_mask,
    copied_mask,
    high_entropy_mask,
    mark_frame,
    marked_scores,
)
from mopd.metrics import group_values
from mopd.store import SCHEMAS
from mopd.study import StudyConfig, run_study
from mopd.teachers.scripted import ScriptedTeacher
from mopd.tokens import ByteCodec, HFCodec
from tests.helpers import chatml_tokenizer
from tests.test_study import labelled_rollouts, mixed_labels

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


def test_the_answer_is_its_last_occurrence() -> None:
    text = "4 or 5? it is 4."
    ids = [*CODEC.encode_text(text), CODEC.END]
    assert shown(answer_mask(ids, text, " 4 ", CODEC)) == "." * 14 + "x" + ".."
    ends = [*CODEC.encode_text("is 44"), CODEC.END]
    assert shown(answer_mask(ends, "is 44", "44", CODEC)) == "...xx."
    assert answer_mask(ids, text, "7", CODEC) is None
    assert answer_mask(ids, text, None, CODEC) is None
    assert answer_mask(ids, text, " ", CODEC) is None


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


def tables() -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    rollouts = pl.DataFrame({"rollout_id": ["t", "p"], "response": ["abcdefgh4", "abcdefghi"], "answer": ["4", None]})
    contexts = pl.DataFrame(
        {
            "context_id": ["c"],
            "peers": [[{"rollout_id": "p", "role": "failure"}, {"rollout_id": "p", "role": "feedback"}]],
        }
    )
    tokens = pl.DataFrame(
        {
            "context_id": ["c"],
            "rollout_id": ["t"],
            "token_ids": [list(b"abcdefgh4")],
            "teacher_logprob": [[-1.0] * 8 + [-3.0]],
            "student_logprob": [[-2.0] * 8 + [-2.5]],
            "student_entropy": [None],
        },
        schema_overrides={k: SCHEMAS["tokens"][k] for k in ("teacher_logprob", "student_logprob", "student_entropy")},
    )
    return tokens, contexts, rollouts


def test_scores_by_mark_by_hand() -> None:
    tokens, contexts, rollouts = tables()
    marks = mark_frame(tokens, contexts, rollouts, CODEC)
    assert dict(marks.schema) == MARKS
    assert marks.row(0) == ("c", "t", [True] * 8 + [False], [False] * 8 + [True], None)
    row = marked_scores(tokens, marks).row(0, named=True)
    assert row["copied_share"] == pytest.approx(8 / 9)
    assert row["delta_copied"] == pytest.approx(1.0)
    assert row["delta_novel"] == row["delta_answer"] == pytest.approx(-0.5)
    assert row["delta_novel_outside_answer"] is None  # its one novel token is the answer
    assert row["delta_high_entropy"] is None  # not known
    # positions 1/18, 3/18, ... 17/18: four tokens in the first half, five in the second
    assert row["delta_first_half"] == pytest.approx(1.0)
    assert row["delta_second_half"] == pytest.approx((4 * 1.0 - 0.5) / 5)


def test_a_study_can_be_split_by_mark() -> None:
    rollouts = labelled_rollouts(mixed_labels(12, 8)).with_columns(answer=pl.col("response").str.slice(7, 1))
    study = run_study(rollouts, ScriptedTeacher("oracle"), StudyConfig(conditions=["question_only", "1s"]))
    marks = mark_frame(study.tokens, study.contexts, rollouts, CODEC)
    split = marked_scores(study.tokens, marks)
    assert tuple(split.columns[3:]) == MARKED_SCORES
    scored = study.assignments.filter("supported").join(split, on=["context_id", "rollout_id"], validate="m:1")
    values = group_values(scored, ["delta_novel_outside_answer", "delta_copied"], ["auc"])
    # under question_only nothing is shown and so nothing copied: no target has that score under all conditions
    assert values.filter(pl.col("score") == "delta_copied")["value"].is_null().all()
    novel = values.filter((pl.col("score") == "delta_novel_outside_answer") & (pl.col("n_dropped") == 0))
    assert novel.height > 0
    assert novel["value"].unique().to_list() == [1.0]
