"""Comparisons of studies and curves over steps, worked by hand."""

from __future__ import annotations

import polars as pl
import pytest

from analysis.compare import compare_values, of_step
from analysis.curves import gap_curves, training_curves
from mopd.rollouts import validate_rollouts
from tests.helpers import make_rollouts


def values(rows: list[tuple[str, float | None]]) -> pl.DataFrame:
    frame = pl.DataFrame(rows, schema={"group_id": pl.String, "value": pl.Float64}, orient="row")
    names = {"task": "t", "protocol": "p", "condition": "1s", "score": "s", "metric": "auc"}
    return frame.with_columns(pl.lit(value).alias(name) for name, value in names.items())


def board(questions: dict[str, str], **columns: list[int]) -> pl.DataFrame:
    return pl.DataFrame({"group_id": list(questions), "question": list(questions.values()), **columns})


def test_groups_are_paired_by_question() -> None:
    first = values([("a1", 0.5), ("a2", 0.7), ("b", 0.4), ("c", None)])
    second = values([("x", 0.9), ("y", 0.4), ("z", 1.0)])
    rows = compare_values(
        first,
        second,
        board({"a1": "A", "a2": "A", "b": "B", "c": "C"}),
        board({"x": "A", "y": "B", "z": "C"}),
        metric="auc",
    )
    # A: (0.5 + 0.7) / 2 = 0.6 against 0.9; B: 0.4 against 0.4; C is undefined in the first
    assert rows.select("question", "first", "second", "difference", "side").rows() == [
        ("A", pytest.approx(0.6), 0.9, pytest.approx(0.3), "second higher"),
        ("B", 0.4, 0.4, 0.0, "equal"),
    ]
    assert rows["second_group"].to_list() == ["x", "y"]


def test_a_step_keeps_its_groups() -> None:
    both = values([("a", 0.5), ("b", 0.7)])
    assert of_step(both, board({"a": "A", "b": "B"}, step=[1, 2]), 2)["group_id"].to_list() == ["b"]


def curve(rows: pl.DataFrame, series: str) -> list[tuple[int, float, int]]:
    return rows.filter(pl.col("series") == series).select("step", "value", "n").rows()


def test_curves_over_steps() -> None:
    early = make_rollouts({"a@0": "sf", "b@0": "ff"}, step=0)
    late = make_rollouts({"a@1": "ff", "b@1": "s?"}, step=1)
    prompts = {"a": "A?", "b": "B?"}
    rollouts = pl.concat([early, late])
    asked = [[{"role": "user", "content": prompts[g[0]]}] for g in rollouts["group_id"]]
    rows = training_curves(validate_rollouts(rollouts.with_columns(prompt=pl.Series(asked))))
    # step 0: (1 + 0 + 0 + 0) / 4; step 1: (0 + 0 + 1) / 3 judged
    assert curve(rows, "reward") == [(0, 0.25, 4), (1, pytest.approx(1 / 3), 3)]
    # step 0: (1/2 + 0) / 2; step 1: (0 + 1) / 2
    assert curve(rows, "mean@k") == [(0, 0.25, 2), (1, 0.5, 2)]
    # at step 1 a group has one judged rollout, so pass@2 is undefined there
    assert curve(rows, "pass@1") == [(0, 0.25, 2), (1, 0.5, 2)]
    assert curve(rows, "pass@2") == [(0, 0.5, 2)]
    # A is solved at step 0, B at step 1
    assert curve(rows, "ever solved") == [(0, 0.5, 2), (1, 1.0, 2)]
    assert curve(rows, "distinct responses") == [(0, 1.0, 2), (1, 1.0, 2)]


def test_rollouts_without_steps_have_no_curve() -> None:
    assert training_curves(validate_rollouts(make_rollouts({"a": "sf"}))).is_empty()


def test_the_gap_is_a_mean_of_rows() -> None:
    scores = pl.DataFrame(
        {"group_id": ["a", "a", "b", "c"], "condition": ["1s"] * 4, "delta_mean": [0.1, 0.3, None, 9.0]}
    )
    steps = pl.DataFrame({"group_id": ["a", "b", "c"], "step": [5, 6, None]})
    assert curve(gap_curves(scores, steps), "1s") == [(5, pytest.approx(0.2), 2)]
