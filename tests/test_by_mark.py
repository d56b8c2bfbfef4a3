"""Δ split by marks, by hand and through a study."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl
import pytest

from mopd.by_mark import KINDS, MARK_TABLE, QUANTITIES, mark_table, marked_scores
from mopd.marks import MARKS
from mopd.rollouts import validate_rollouts
from mopd.store import SCHEMAS
from mopd.study import StudyConfig, run_study
from mopd.teachers.scripted import ScriptedTeacher


def token_rows(rows: Sequence[dict[str, Any]]) -> pl.DataFrame:
    """``tokens.parquet`` from rows of context_id, rollout_id, delta and marks; the student says -1 everywhere."""
    full = [
        {
            "context_id": row["context_id"],
            "rollout_id": row["rollout_id"],
            "token_ids": list(range(len(row["delta"]))),
            "teacher_logprob": [-1 + d for d in row["delta"]],
            "student_logprob": [-1.0] * len(row["delta"]),
            "copied": row.get("copied", [False] * len(row["delta"])),
            "in_answer": row.get("in_answer"),
            "high_entropy": row.get("high_entropy"),
            "position": [4 * i // len(row["delta"]) for i in range(len(row["delta"]))],
        }
        for row in rows
    ]
    return pl.DataFrame(full, schema=SCHEMAS["tokens"] | MARKS)


def test_means_over_the_tokens_of_a_kind_by_hand() -> None:
    tokens = token_rows(
        [
            {
                "context_id": "c",
                "rollout_id": "t",
                "delta": [1.0, 2.0, 4.0, -3.0],
                "copied": [True, True, False, False],
                "in_answer": [False, False, False, True],
            },
            {"context_id": "c", "rollout_id": "u", "delta": [0.5]},
        ]
    )
    first, second = marked_scores(tokens).rows(named=True)
    assert first["delta_all"] == pytest.approx(1.0)
    assert (first["delta_copied"], first["share_copied"]) == (pytest.approx(1.5), 0.5)
    assert (first["delta_novel"], first["share_novel"]) == (pytest.approx(0.5), 0.5)
    assert (first["delta_answer"], first["share_answer"]) == (pytest.approx(-3.0), 0.25)
    assert (first["delta_non_answer"], first["share_non_answer"]) == (pytest.approx(7 / 3), 0.75)
    assert (first["delta_novel_non_answer"], first["share_novel_non_answer"]) == (pytest.approx(4.0), 0.25)
    assert (first["delta_high_entropy"], first["share_high_entropy"]) == (None, None)  # not known
    assert (first["delta_first_half"], first["delta_second_half"]) == (pytest.approx(1.5), pytest.approx(0.5))
    assert (second["delta_copied"], second["share_copied"]) == (None, 0.0)  # known, and there is none
    assert (second["delta_answer"], second["share_answer"]) == (None, None)


def tables() -> tuple[pl.DataFrame, pl.DataFrame]:
    """One group, targets s and t (successes) and f (failure); conditions ``bare`` (nothing shown) and ``peer``.

    Under ``peer`` s and f copy their first token, t copies nothing.
    """
    units = {"s-f": ("s", "f"), "t-f": ("t", "f")}
    assignments = pl.DataFrame(
        [
            {
                "task": "sums",
                "protocol": "leave_pair_out",
                "condition": name,
                "group_id": "g",
                "unit_id": unit,
                "rollout_id": rollout_id,
                "success": rollout_id != "f",
                "context_id": name,
                "reason": None,
                "supported": True,
            }
            for name in ("bare", "peer")
            for unit, targets in units.items()
            for rollout_id in targets
        ],
        schema=SCHEMAS["assignments"],
    )
    delta = {"s": [3.0, -1.0], "t": [2.0, 2.0], "f": [1.0, 0.0]}
    tokens = token_rows(
        [
            {
                "context_id": name,
                "rollout_id": rollout_id,
                "delta": values,
                "copied": [name == "peer" and rollout_id != "t", False],
                "in_answer": [False, False],
            }
            for name in ("bare", "peer")
            for rollout_id, values in delta.items()
        ]
    )
    return assignments, marked_scores(tokens)


def test_a_table_by_hand() -> None:
    table = mark_table(*tables(), draws=200)
    assert dict(table.schema) == MARK_TABLE
    assert table["quantity"].unique().sort().to_list() == sorted(QUANTITIES)
    cells = {(r["condition"], r["mark"], r["quantity"]): r for r in table.rows(named=True)}

    def value(name: str, mark: str, quantity: str) -> float | None:
        return cells[name, mark, quantity]["value"]

    # copied: t has no such token, so only the pair s-f is left: 3 > 1. Over all its tokens s has 1.0, f 0.5.
    assert value("peer", "copied", "auc") == 1.0
    assert value("peer", "copied", "auc_all_tokens") == 1.0
    assert value("peer", "copied", "auc_lost") == 0.0
    assert cells["peer", "copied", "auc"]["n_pairs"] == 1
    assert cells["peer", "copied", "auc"]["n_dropped"] == 1
    assert value("peer", "copied", "delta_success") == pytest.approx(3.0)
    assert value("peer", "copied", "delta_failure") == pytest.approx(1.0)
    assert value("peer", "copied", "share") == pytest.approx((0.5 + 0.0 + 0.5) / 3)
    # nothing is copied where nothing is shown: null, counted, and no reason to empty `peer`
    assert value("bare", "copied", "auc") is None
    assert cells["bare", "copied", "auc"]["n_undefined"] == 1
    assert cells["bare", "copied", "auc"]["n_dropped"] == 4
    assert value("bare", "copied", "share") == 0.0
    # novel under peer: s keeps -1, t keeps 2, f keeps 0: one pair of two. The same pairs count under both conditions.
    assert value("peer", "novel", "auc") == 0.5
    assert value("peer", "novel", "auc_all_tokens") == 1.0
    assert value("peer", "novel", "auc_lost") == 0.5
    # under bare all tokens are novel: means 1, 2 and 0.5
    assert value("bare", "novel", "auc") == 1.0
    assert cells["bare", "novel", "auc"]["n_pairs"] == cells["peer", "novel", "auc"]["n_pairs"] == 2
    # no token is in an answer, so nothing is defined for it, and everything for the others
    assert value("peer", "answer", "auc") is None
    assert value("peer", "novel_non_answer", "auc") == 0.5
    assert value("peer", "high_entropy", "share") is None
    assert cells["peer", "novel", "share"]["n_pairs"] is None
    # one group gives no interval
    assert cells["peer", "novel", "auc"]["ci_low"] is None


def rollouts() -> pl.DataFrame:
    """Groups in which copying is what makes successes alike: they share a sentence, failures share none."""
    return validate_rollouts(
        pl.DataFrame(
            [
                {
                    "group_id": f"g{g}",
                    "rollout_id": f"g{g}-{i}",
                    "task": "sums",
                    "prompt": [{"role": "user", "content": f"question {g}"}],
                    "response": (f"the sum is surely {g}, said I {'!' * i}" if i % 2 else f"{'?' * i} no idea {i}"),
                    "answer": str(g) if i % 2 else None,
                    "reward": float(i % 2),
                    "finished": True,
                }
                for g in range(8)
                for i in range(8)
            ]
        )
    )


def test_a_study_keeps_marks_and_their_table() -> None:
    study = run_study(rollouts(), ScriptedTeacher("oracle"), StudyConfig(conditions=["question_only", "1s", "2s"]))
    assert set(MARKS) <= set(study.tokens.columns)
    size = study.tokens["token_ids"].list.len()
    for name in ("copied", "copied_from", "position"):
        assert (study.tokens[name].list.len() == size).all()
    joined = study.tokens.join(
        study.contexts.select("context_id", "condition", "peers"), on="context_id", validate="m:1"
    )
    for row in joined.rows(named=True):
        assert any(row["copied"]) == (row["condition"] != "question_only" and int(row["rollout_id"][-1]) % 2 == 1)
        assert all(0 <= place < len(row["peers"]) for place in row["copied_from"] if place is not None)
    table = study.marks
    assert set(table["mark"]) == set(KINDS)
    novel = table.filter((pl.col("mark") == "novel") & (pl.col("quantity") == "auc"))
    assert novel["value"].to_list() == [1.0, 1.0, 1.0]  # the oracle is right token by token
    per_mark = table.filter((pl.col("quantity") == "auc") & pl.col("value").is_not_null())
    same = per_mark.group_by("protocol", "mark").agg(pl.col("n_pairs").n_unique(), pl.col("n_groups").n_unique())
    assert same.select("n_pairs", "n_groups").unique().rows() == [(1, 1)]
