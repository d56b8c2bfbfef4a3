"""Scripted teachers: what they say, and that batch and order do not change it."""

from __future__ import annotations

import dataclasses
from statistics import fmean, pstdev

import numpy as np
import pytest

from mopd.peers import Peer
from mopd.rollouts import Group
from mopd.teachers.base import ScoreRequest
from mopd.teachers.scripted import SCRIPTED, ScriptedTeacher
from mopd.tokens import ByteCodec
from tests.helpers import make_group

ALONE: tuple[Peer, ...] = ()
SHOWN = (Peer(rollout_id="g-1", role="success"), Peer(rollout_id="g-4", role="failure"))


def request(
    group: Group,
    target: int,
    *,
    peers: tuple[Peer, ...] = ALONE,
    context: tuple[int, ...] = (1, 2, 3),
    length: int = 4,
    student: bool = False,
) -> ScoreRequest:
    return ScoreRequest(
        group=group,
        rollout_id=f"{group.group_id}-{target}",
        peers=peers,
        context_ids=np.array(context, dtype=np.int32),
        response_ids=np.arange(length, dtype=np.int32),
        student=student,
    )


def requests(group: Group) -> list[ScoreRequest]:
    return [
        request(group, i, peers=peers, context=context, student=student)
        for i in range(len(group.rollouts))
        for peers, context, student in ((ALONE, (1,), True), (ALONE, (1,), False), (SHOWN, (1, 2), False))
    ]


def levels(teacher: ScriptedTeacher, asked: list[ScoreRequest]) -> list[float]:
    """One number a request; a scripted teacher says the same of each token."""
    scores = teacher.score(asked)
    assert all((s.logprob == s.logprob[0]).all() for s in scores)
    return [float(s.logprob[0]) for s in scores]


@pytest.mark.parametrize("script", SCRIPTED)
def test_a_number_for_each_token_in_float32(script: str) -> None:
    (score,) = ScriptedTeacher(script).score([request(make_group("sf"), 0, length=7)])
    assert score.logprob.shape == (7,)
    assert score.logprob.dtype == np.float32
    assert np.isfinite(score.logprob).all()
    assert score.entropy is None


@pytest.mark.parametrize("script", SCRIPTED)
def test_the_batch_and_its_order_change_nothing(script: str) -> None:
    asked = requests(make_group("sssff"))
    together = levels(ScriptedTeacher(script, seed=3), asked)
    one_by_one = [levels(ScriptedTeacher(script, seed=3), [r])[0] for r in asked]
    backwards = levels(ScriptedTeacher(script, seed=3), asked[::-1])[::-1]
    assert together == one_by_one == backwards


@pytest.mark.parametrize("script", SCRIPTED)
def test_the_order_of_the_file_changes_nothing(script: str) -> None:
    group = make_group("sssfffsf")
    backwards = dataclasses.replace(group, rollouts=group.rollouts[::-1])
    assert levels(ScriptedTeacher(script), requests(group)) == [
        levels(ScriptedTeacher(script), [dataclasses.replace(r, group=backwards)])[0] for r in requests(group)
    ]


@pytest.mark.parametrize("script", ["noise", "context_shift", "shuffled_labels"])
def test_another_seed_says_something_else(script: str) -> None:
    asked = requests(make_group("sssfff"))
    assert len({tuple(levels(ScriptedTeacher(script, seed=s), asked)) for s in range(5)}) > 1


def test_the_oracle_by_hand() -> None:
    group = make_group("sf")
    teacher = ScriptedTeacher("oracle")
    asked = [
        request(group, i, peers=peers, student=s) for i in (0, 1) for peers in (ALONE, SHOWN) for s in (False, True)
    ]
    # -0.1 for the success, -0.5 for the failure, -0.3 for the student: whatever the context
    assert levels(teacher, asked) == pytest.approx([-0.1, -0.3, -0.1, -0.3, -0.5, -0.3, -0.5, -0.3])


@pytest.mark.parametrize(("script", "level"), [("noise", -1.0), ("context_shift", -1.0), ("shuffled_labels", -0.3)])
def test_the_student_knows_nothing(script: str, level: float) -> None:
    group = make_group("ssff")
    asked = [request(group, i, student=True) for i in range(4)]
    assert levels(ScriptedTeacher(script), asked) == pytest.approx([level] * 4)


def test_noise_is_drawn_afresh_for_each_context_and_target() -> None:
    group = make_group("s" * 200 + "f" * 200)
    teacher = ScriptedTeacher("noise")
    first = levels(teacher, [request(group, i, context=(1,)) for i in range(400)])
    second = levels(teacher, [request(group, i, context=(2,)) for i in range(400)])
    assert len({*first, *second}) == 800
    # -1 + 0.1 z: the mean of 800 has a standard error of 0.1 / sqrt(800) = 0.0035, the deviation one of 0.0025
    assert fmean([*first, *second]) == pytest.approx(-1, abs=4 * 0.0035)
    assert pstdev([*first, *second]) == pytest.approx(0.1, abs=4 * 0.0025)
    # two draws of one target are not related: the correlation of 400 has a standard error of 0.05
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 * 0.05


def test_context_shift_moves_all_targets_by_the_same() -> None:
    group = make_group("sssff")
    teacher = ScriptedTeacher("context_shift")
    alone = levels(teacher, [request(group, i) for i in range(5)])
    shown = levels(teacher, [request(group, i, peers=SHOWN) for i in range(5)])
    shifts = [b - a for a, b in zip(alone, shown, strict=True)]
    assert shifts == pytest.approx([shifts[0]] * 5, abs=1e-6)
    assert abs(shifts[0]) > 1e-3
    # and by the sum of what each block adds
    each = [levels(teacher, [request(group, 0, peers=(p,))])[0] - alone[0] for p in SHOWN]
    assert shifts[0] == pytest.approx(sum(each), abs=1e-6)


def test_context_shift_knows_no_labels() -> None:
    group, flipped = make_group("sssff"), make_group("fffss")
    teacher = ScriptedTeacher("context_shift")
    assert levels(teacher, [request(group, i) for i in range(5)]) == levels(
        teacher, [request(flipped, i) for i in range(5)]
    )


def test_shuffled_labels_keep_their_number_and_leave_the_unjudged_out() -> None:
    group = make_group("ss?fff")
    for seed in range(10):
        said = levels(ScriptedTeacher("shuffled_labels", seed=seed), [request(group, i) for i in (0, 1, 3, 4, 5)])
        assert sorted(said) == pytest.approx([-0.5, -0.5, -0.5, -0.1, -0.1])


def test_shuffled_labels_tell_nothing_of_the_true_ones() -> None:
    # "sf": the labels stay or change places, each with 1/2; over 400 seeds the deviation is 10
    group = make_group("sf")
    stayed = sum(
        levels(ScriptedTeacher("shuffled_labels", seed=seed), [request(group, 0)])[0] > -0.3 for seed in range(400)
    )
    assert abs(stayed - 200) < 50


def test_an_unknown_script() -> None:
    with pytest.raises(ValueError, match="unknown scripted teacher 'orakel'; known are oracle, noise"):
        ScriptedTeacher("orakel")


def test_provenance_tells_scripts_seeds_and_codecs_apart() -> None:
    class Other(ByteCodec):
        hash = "other"

    teachers = [
        ScriptedTeacher("noise"),
        ScriptedTeacher("noise", seed=1),
        ScriptedTeacher("oracle"),
        ScriptedTeacher("noise", codec=Other()),
    ]
    assert len({tuple(sorted(t.provenance().items())) for t in teachers}) == 4
    assert ScriptedTeacher("noise").window is None
    assert ScriptedTeacher("noise").tokens_forwarded == 0
