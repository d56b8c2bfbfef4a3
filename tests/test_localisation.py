"""Where Δ falls: metrics by hand, and teachers that do or do not know where the error is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import pytest

from mopd.localisation import (
    LOCALISATION,
    STEPS,
    checked_steps,
    localisation_table,
    step_scores,
    target_values,
)
from mopd.marks import MARKS, span_mask
from mopd.planted import plant_errors, planted_protocol
from mopd.samples import load_sample
from mopd.store import SCHEMAS
from mopd.study import Study, StudyConfig, run_study
from mopd.teachers.base import ScoreRequest, TokenScores
from mopd.tokens import ByteCodec

CODEC = ByteCodec()


def steps_frame(wrong: Sequence[bool | None], rollout_id: str = "t") -> pl.DataFrame:
    """Steps of two characters each."""
    rows = [(rollout_id, "checker", i, 2 * i, 2 * i + 2, w) for i, w in enumerate(wrong)]
    return pl.DataFrame(rows, schema=STEPS, orient="row")


def token_frame(delta: Sequence[float], rollout_id: str = "t", context_id: str = "c") -> pl.DataFrame:
    row = {
        "context_id": context_id,
        "rollout_id": rollout_id,
        "token_ids": list(b"abcdefghij")[: len(delta)],
        "teacher_logprob": [-2 + d for d in delta],
        "student_logprob": [-2.0] * len(delta),
    }
    return pl.DataFrame([row], schema=SCHEMAS["tokens"] | MARKS)


def values(delta_of_step: Sequence[float], wrong: Sequence[bool]) -> dict[str, Any]:
    scores = step_scores(token_frame(np.repeat(delta_of_step, 2).tolist()), steps_frame(wrong), CODEC)
    (row,) = target_values(scores).rows(named=True)
    return row


def test_the_checker_labels_equations() -> None:
    rollouts = pl.DataFrame({"rollout_id": ["a", "b"], "response": ["1 + 1 = 2, 2 * 3 = 7, 5 / 0 = 0", None]})
    steps = checked_steps(rollouts)
    assert dict(steps.schema) == STEPS
    assert steps.rows() == [
        ("a", "checker", 0, 0, 9, False),
        ("a", "checker", 1, 11, 20, True),
        ("a", "checker", 2, 22, 31, None),
    ]


def test_a_step_scores_the_mean_over_its_tokens() -> None:
    tokens = pl.concat([token_frame([1.0, 3.0, -1.0, 0.0, 9.0, 9.0]), token_frame([5.0] * 6, context_id="d")])
    steps = pl.concat([steps_frame([False, True, None]), steps_frame([True], "elsewhere")])
    scores = step_scores(tokens, steps, CODEC)
    assert scores.select("context_id", "step", "wrong", "delta").rows() == [
        ("c", 0, False, pytest.approx(2.0)),
        ("c", 1, True, pytest.approx(-0.5)),
        ("d", 0, False, pytest.approx(5.0)),
        ("d", 1, True, pytest.approx(5.0)),
    ]


def test_metrics_by_hand() -> None:
    # the wrong step has the second lowest of four
    row = values([0.0, -1.0, -2.0, 3.0], [False, True, False, False])
    assert row["auroc"] == pytest.approx(2 / 3)  # below two of the three right ones
    assert row["top1"] == 0.0
    assert row["reciprocal_rank"] == 0.5
    assert (row["chance_auroc"], row["chance_top1"]) == (0.5, 0.25)
    assert row["chance_reciprocal_rank"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)


def test_the_first_of_several_errors_counts() -> None:
    # the second error is lower than the first
    row = values([0.0, -1.0, -2.0], [False, True, True])
    assert row["auroc"] == 1.0
    assert row["top1"] == 0.0
    assert row["reciprocal_rank"] == 0.5


def test_ties_count_by_their_share() -> None:
    row = values([1.0, 1.0, 1.0], [False, True, False])
    assert row["auroc"] == 0.5
    assert row["top1"] == pytest.approx(1 / 3)
    assert row["reciprocal_rank"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert [row[f"chance_{name}"] for name in ("auroc", "top1", "reciprocal_rank")] == pytest.approx(
        [row[name] for name in ("auroc", "top1", "reciprocal_rank")]
    )


@pytest.mark.parametrize("wrong", [[True], [True, True], [False, False], [None, True]])
def test_without_a_wrong_and_a_right_step_nothing_is_defined(wrong: list[bool | None]) -> None:
    scores = step_scores(token_frame([1.0, 2.0, 3.0, 4.0]), steps_frame(wrong), CODEC)
    assert target_values(scores).is_empty()


def test_a_table_by_hand() -> None:
    """Two groups of one target each with an error, and a third target without; the mean is over groups."""
    deltas = {"a": [1.0, 1.0, 0.0, 0.0], "b": [0.0, 0.0, 1.0, 1.0], "x": [1.0, 1.0]}
    tokens = pl.concat([token_frame(delta, rollout_id, context_id="c") for rollout_id, delta in deltas.items()])
    steps = pl.concat([steps_frame([False, True], "a"), steps_frame([False, True], "b"), steps_frame([False], "x")])
    assignments = pl.DataFrame(
        [
            {
                "task": "sums",
                "protocol": "split",
                "condition": "1s",
                "group_id": {"a": "g", "b": "h", "x": "g"}[rollout_id],
                "unit_id": unit,
                "rollout_id": rollout_id,
                "success": False,
                "context_id": "c",
                "reason": None,
                "supported": True,
            }
            for rollout_id in deltas
            for unit in ("u", "v")
        ],
        schema=SCHEMAS["assignments"],
    )
    table = localisation_table(assignments, step_scores(tokens, steps, CODEC), draws=200)
    assert dict(table.schema) == LOCALISATION
    rows = {row["metric"]: row for row in table.rows(named=True)}
    assert list(rows) == ["auroc", "reciprocal_rank", "top1"]
    assert rows["auroc"]["value"] == 0.5  # 1 in group g, 0 in group h
    assert rows["top1"]["value"] == 0.5
    assert rows["reciprocal_rank"]["value"] == 0.75
    assert rows["reciprocal_rank"]["chance"] == 0.75
    assert (rows["auroc"]["n_groups"], rows["auroc"]["n_targets"], rows["auroc"]["n_undefined"]) == (2, 2, 1)
    assert localisation_table(assignments, step_scores(tokens, steps.clear(), CODEC)).is_empty()


class ErrorTeacher:
    """Says -1 everywhere, but -5 on a target's marked tokens; without marks a fresh normal draw for each token."""

    name = "error"
    codec = CODEC
    window = None
    tokens_forwarded = 0
    cache_hits = 0

    def __init__(self, spans: Mapping[str, tuple[int, int]] | None, seed: int = 0) -> None:
        self.spans, self.rng = spans, np.random.default_rng(seed)

    def score(self, requests: Sequence[ScoreRequest]) -> list[TokenScores]:
        return [TokenScores(logprob=self._say(request).astype(np.float32)) for request in requests]

    def _say(self, request: ScoreRequest) -> np.ndarray:
        size = len(request.response_ids)
        if request.student:
            return np.full(size, -1.0)
        if self.spans is None:
            return self.rng.normal(-1, 1, size)
        said = np.full(size, -1.0)
        if request.rollout_id in self.spans:
            said[span_mask(request.response_ids, [self.spans[request.rollout_id]], self.codec)[0]] = -5.0
        return said

    def provenance(self) -> Mapping[str, Any]:
        return {"teacher": self.name}


def planted_study(known: bool, seed: int = 0) -> tuple[Study, pl.DataFrame]:
    errors = plant_errors(load_sample(), seed=0)
    wrong = errors.steps.filter("wrong")
    spans = {r: (start, end) for r, start, end in wrong.select("rollout_id", "start", "end").iter_rows()}
    teacher = ErrorTeacher(spans if known else None, seed)
    config = StudyConfig(conditions=["question_only", "1s", "1f"], protocols=["self_exclusion"], draws=500)
    study = run_study(errors.rollouts, teacher, config, protocols={"planted": planted_protocol(errors.of)})
    table = localisation_table(
        study.assignments, step_scores(study.tokens, errors.steps, teacher.codec), draws=500, seed=seed
    )
    return study, table


def test_a_teacher_that_knows_the_planted_error_is_perfect_on_the_shipped_sample() -> None:
    study, table = planted_study(known=True)
    assert table["n_targets"].min() == table["n_targets"].max()
    assert table["n_groups"].unique().item() >= 6
    assert table.select("value", "ci_low", "ci_high").unique().rows() == [(1.0, 1.0, 1.0)]
    assert (table["chance"] < 1).all()
    # the copies are told from their originals as well
    auc = study.metrics.filter((pl.col("metric") == "auc") & (pl.col("score") == "delta_sum"))
    assert auc["value"].unique().to_list() == [1.0]


def test_a_teacher_that_knows_nothing_is_at_chance() -> None:
    """Nine 95% intervals of three metrics under three conditions, of one seed: at most one misses."""
    _, table = planted_study(known=False, seed=1)
    held = table.filter(pl.col("chance").is_between(pl.col("ci_low") - 1e-12, pl.col("ci_high") + 1e-12))
    assert held.height >= table.height - 1
    assert table["value"].max() != table["value"].min()


def test_a_study_localises_what_the_checker_finds() -> None:
    rollouts = load_sample()
    wrong = checked_steps(rollouts).filter(pl.col("wrong")).unique("rollout_id", keep="first", maintain_order=True)
    spans = {r: (start, end) for r, start, end in wrong.select("rollout_id", "start", "end").iter_rows()}
    config = StudyConfig(conditions=["question_only", "1s"], draws=200)
    table = run_study(rollouts, ErrorTeacher(spans), config).localisation
    assert table["source"].unique().to_list() == ["checker"]
    assert 0 not in table["n_targets"]
    assert table.filter(pl.col("metric") == "top1")["value"].unique().to_list() == [1.0]
