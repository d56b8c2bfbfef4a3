"""Values of single tokens."""

from __future__ import annotations

import pytest

from mopd.tokenview import error_mask, jump_targets, line_table, marks_of, token_difference, token_table

ROW = {
    "rollout_id": "r",
    "token_ids": [7, 8, 9],
    "teacher_logprob": [-1.0, -0.5, -3.0],
    "student_logprob": [-2.0, -0.25, -1.0],
    "entropy": None,
    "student_entropy": [0.5, 0.5, 0.5],
    "teacher_rank": [1, 2, 40],
}


def test_delta_accumulates_and_ranks_by_size() -> None:
    table = token_table(ROW, ["a", "\n", "b"])
    # -1 - -2 = 1; -0.5 - -0.25 = -0.25; -3 - -1 = -2
    assert table["delta"].to_list() == [1.0, -0.25, -2.0]
    assert table["cumulative"].to_list() == [1.0, 0.75, -1.25]
    assert table["rank"].to_list() == [2, 3, 1]
    assert table["line"].to_list() == [0, 0, 1]
    assert table["entropy"].null_count() == 3
    assert table["teacher_rank"].to_list() == [1, 2, 40]
    assert table["student_rank"].null_count() == 3


def test_lines_sum_their_deltas() -> None:
    lines = line_table(token_table(ROW, ["a", "\n", "b"]))
    assert lines.rows() == [(0, 2, 0.75, -0.75), (1, 1, -2.0, -3.0)]


def test_a_difference_is_second_minus_first() -> None:
    first = token_table(ROW)
    second = token_table(ROW | {"teacher_logprob": [-1.0, -1.5, -1.0]})
    difference = token_difference(first, second)
    assert difference["teacher"].to_list() == [0.0, -1.0, 2.0]
    assert difference["delta"].to_list() == [0.0, -1.0, 2.0]
    assert difference["student"].to_list() == [0.0, 0.0, 0.0]
    assert difference["cumulative"].to_list() == [0.0, -1.0, 1.0]
    with pytest.raises(ValueError, match="different responses"):
        token_difference(first, token_table(ROW | {"token_ids": [7, 8, 8]}))


def test_texts_of_another_study_are_refused() -> None:
    with pytest.raises(ValueError, match="2 values for 3 tokens"):
        token_table(ROW, ["a", "b"])


def test_marks_are_what_has_a_value_per_token() -> None:
    row = {"copied": [True, False, None], "surprise": [0.5, 1, 2], "known": None, "peers": [1, 2], "words": ["a"] * 3}
    assert set(marks_of(row, 3)) == {"copied", "surprise"}


def test_tokens_of_an_equation_that_does_not_hold_are_marked() -> None:
    pieces = ["So ", "2+2", " = 4", ", ", "3", "+1 =", " 5", "."]
    assert error_mask(pieces) == [False, False, False, False, True, True, True, False]


def test_a_mark_of_the_position_is_the_quarter() -> None:
    assert set(marks_of({"position": [0, 1, 3]}, 3)) == {"quarter"}


def test_jumps_go_to_the_largest_and_to_the_start_of_each_run() -> None:
    table = token_table(ROW, None, {"copied": [True, True, False], "first_error": [False, False, True]})
    assert jump_targets(table, largest=2) == {"largest |Δ|": [2, 0], "copied": [0], "first error": [2]}
