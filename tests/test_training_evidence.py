"""Metrics of a step, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mopd.contexts import Templates
from mopd.rollouts import Group, Rollout
from training.evidence import Scored, StepRecord, group_metrics, score_metrics


def scored(rollout_id: str, teacher: list[float], student: list[float]) -> Scored:
    """Log-probs of probabilities; entropies and ranks do not matter here."""
    t, s = (np.log(np.array(p, dtype=np.float32)) for p in (teacher, student))
    ranks = np.ones(len(t), dtype=np.int32)
    return Scored(
        rollout_id=rollout_id, teacher=t, student=s, teacher_entropy=t, student_entropy=s, teacher_rank=ranks,
        student_rank=ranks, student_mass=1.0, teacher_mass=1.0,
    )  # fmt: skip


def test_the_gap_by_hand() -> None:
    rollouts = tuple(
        Rollout(
            group_id="g",
            rollout_id=name,
            response="x",
            response_ids=(5, 2),
            finished=finished,
            reward=good,
            success=bool(good),
        )
        for name, finished, good in (("a", True, 1.0), ("b", True, 0.0), ("c", False, 0.0))
    )
    record = StepRecord(
        groups=[Group(group_id="g", task="t", prompt="p", rollouts=rollouts)],
        scored=[
            scored("a", [0.5, 0.2], [0.5, 0.4]),
            scored("b", [0.5, 0.4], [0.5, 0.8]),
            scored("c", [0.5, 0.9], [0.5, 0.9]),  # the limit cut it: its last token ends nothing
        ],
    )
    found = score_metrics(record)
    # of six tokens two are half as likely under the teacher
    assert found["gap/delta_mean"] == pytest.approx(-2 * math.log(2) / 6)
    assert found["gap/delta_mean_successes"] == pytest.approx(-math.log(2) / 2)
    assert found["gap/delta_mean_failures"] == pytest.approx(-math.log(2) / 4)
    assert found["gap/teacher_end_probability"] == pytest.approx(0.3)
    assert found["gap/student_end_probability"] == pytest.approx(0.6)


def test_a_step_whose_responses_were_all_cut_has_no_end() -> None:
    rollout = Rollout(
        group_id="g", rollout_id="a", response="x", response_ids=(5,), finished=False, reward=1.0, success=True
    )
    group = Group(group_id="g", task="t", prompt="p", rollouts=(rollout,))
    found = score_metrics(StepRecord(groups=[group], scored=[scored("a", [0.5], [0.5])]))
    assert found["gap/teacher_end_probability"] is None
    assert found["gap/delta_mean_failures"] is None


def test_responses_with_a_heading_of_the_context_are_counted() -> None:
    said = ("4.", "a CORRECT\nanswer: 4", "An extra correct answer is 4", "Not a wrong answer, 4")
    rollouts = tuple(
        Rollout(
            group_id="g", rollout_id=str(i), response=text, response_ids=(5,), finished=True, reward=1.0, success=True
        )
        for i, text in enumerate(said)
    )
    wording = Templates(first_success="A correct answer: {response}", failure="A wrong answer: {response}")
    found = group_metrics([Group(group_id="g", task="t", prompt="p", rollouts=rollouts)], wording)
    assert found["context/repeated_fraction"] == 0.5  # the second and the fourth
