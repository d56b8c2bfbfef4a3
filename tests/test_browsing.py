"""Boards, matrices and pairs, worked by hand."""

from __future__ import annotations

import polars as pl
import pytest

from mopd.browsing import group_board, pair_outcomes, score_matrix, who_saw_whom
from mopd.rollouts import validate_rollouts
from tests.helpers import make_rollouts


def scores(rows: list[tuple[str, str, str, bool, float]]) -> pl.DataFrame:
    """Rows of (context, rollout, condition, success, delta) of group g."""
    frame = pl.DataFrame(rows, schema=["context_id", "rollout_id", "condition", "success", "delta_mean"], orient="row")
    return frame.with_columns(group_id=pl.lit("g"), protocol=pl.lit("leave_pair_out"))


SCORES = scores(
    [
        ("c1", "g-0", "1s", True, 0.2),
        ("c2", "g-0", "1s", True, 0.6),
        ("c1", "g-1", "1s", False, 0.3),
        ("c2", "g-2", "1s", False, -0.5),
    ]
)


def test_a_board_counts_labels_and_flags() -> None:
    rollouts = make_rollouts({"g": "sff?", "h": "ff", "i": "??", "j": "ss"}).with_columns(
        response=pl.Series(["A b", "a  B ", "c", "d", "", "x", "y", "z", "p", "q"]),
        finished=pl.Series([True] * 4 + [False, None] + [True] * 4),
    )
    board = group_board(validate_rollouts(rollouts), SCORES)
    assert board.select("n_success", "n_failure", "n_unjudged").rows() == [(1, 2, 1), (0, 2, 0), (0, 0, 2), (2, 0, 0)]
    # 1 of 3 judged; nothing judged is undefined
    assert board["success_rate"].to_list() == [pytest.approx(1 / 3), 0.0, None, 1.0]
    assert board["flags"].to_list() == [
        ["lone success", "unjudged", "duplicates"],
        ["all failed", "truncated", "empty"],
        ["unjudged"],
        ["all succeeded"],
    ]
    assert board["n_duplicates"].to_list() == [1, 0, 0, 0]
    assert board["question"][0] == "What is 2 + 2?"


def test_the_largest_push_is_averaged_over_contexts_first() -> None:
    board = group_board(validate_rollouts(make_rollouts({"g": "sff", "h": "s"})), SCORES)
    # g-0: (0.2 + 0.6) / 2 = 0.4; g-1: 0.3; g-2: -0.5, the farthest from 0
    assert board.select("largest_delta", "largest_rollout_id", "largest_condition").rows() == [
        (-0.5, "g-2", "1s"),
        (None, None, None),
    ]
    unscored = group_board(validate_rollouts(make_rollouts({"g": "sf"})), None)
    assert unscored["largest_delta"].to_list() == [None]


def test_the_matrix_averages_over_contexts() -> None:
    rows = score_matrix(SCORES, "delta_mean").select("rollout_id", "success", "value", "low", "high", "n_contexts")
    assert rows.row(0) == ("g-0", True, pytest.approx(0.4), 0.2, 0.6, 2)
    assert rows.height == 3


ASSIGNMENTS = pl.DataFrame(
    {
        "unit_id": ["u1", "u1", "u2", "u2", "u3"],
        "rollout_id": ["g-0", "g-1", "g-0", "g-2", "g-1"],
        "context_id": ["c1", "c1", "c2", "c2", "c1"],
        "success": [True, False, True, False, False],
        "supported": [True, True, True, True, False],
    }
).with_columns(condition=pl.lit("1s"), protocol=pl.lit("leave_pair_out"), group_id=pl.lit("g"))


def test_pairs_are_right_wrong_or_tied_under_their_own_context() -> None:
    pairs = pair_outcomes(ASSIGNMENTS, SCORES, "delta_mean")
    # u1: 0.2 - 0.3 = -0.1; u2: 0.6 - -0.5 = 1.1; u3 takes no part
    assert pairs.select("unit_id", "margin", "outcome").rows() == [
        ("u1", pytest.approx(-0.1), "wrong"),
        ("u2", pytest.approx(1.1), "right"),
    ]
    tied = pair_outcomes(ASSIGNMENTS, SCORES.with_columns(delta_mean=pl.lit(1.0)), "delta_mean")
    assert tied["outcome"].to_list() == ["tied", "tied"]


def test_who_saw_whom_counts_comparisons() -> None:
    peer = [{"rollout_id": "g-3", "role": "success"}]
    contexts = pl.DataFrame({"context_id": ["c1", "c2"], "peers": [peer, []]}, schema_overrides={"peers": PEERS})
    rows = who_saw_whom(ASSIGNMENTS, contexts)
    # g-0 was scored in u1 with g-3 in sight and in u2 without; g-1 in u1 only
    assert rows.select("target_id", "peer_id", "role", "n_units", "n_target_units").rows() == [
        ("g-0", "g-3", "success", 1, 2),
        ("g-1", "g-3", "success", 1, 1),
    ]


PEERS = pl.List(pl.Struct({"rollout_id": pl.String, "role": pl.String}))
