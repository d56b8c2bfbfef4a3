"""Scores kept between studies: what is asked again, what is not, and what a kill leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from mopd.study import StudyConfig, run_study
from mopd.teachers import cache
from mopd.teachers.base import ScoreRequest, TokenScores
from mopd.teachers.cache import CachedTeacher, score_key
from mopd.teachers.scripted import ScriptedTeacher
from tests.helpers import make_group
from tests.test_study import labelled_rollouts, mixed_labels


class Weighted(ScriptedTeacher):
    """A teacher with weights, whose scores depend on the ids alone, and that counts what it is asked."""

    def __init__(self, *, weights: str | None = "w") -> None:
        super().__init__("noise")
        self.weights = weights
        self.asked = 0

    def provenance(self) -> Mapping[str, Any]:
        return {**super().provenance(), "weights": self.weights}

    def score(self, requests: Sequence[ScoreRequest]) -> list[TokenScores]:
        self.asked += len(requests)
        return [self._scores(r.context_ids, r.response_ids) for r in requests]

    @staticmethod
    def _scores(context: np.ndarray, response: np.ndarray) -> TokenScores:
        rng = np.random.default_rng(list(score_key(context, response)))
        return TokenScores(logprob=-rng.random(len(response), dtype=np.float32))


def request(context: list[int], response: list[int]) -> ScoreRequest:
    group = make_group("sf")
    return ScoreRequest(
        group=group,
        rollout_id=group.rollouts[0].rollout_id,
        peers=(),
        context_ids=np.array(context, dtype=np.int32),
        response_ids=np.array(response, dtype=np.int32),
    )


def test_what_was_scored_is_not_asked_again(tmp_path: Path) -> None:
    first = Weighted()
    with CachedTeacher(first, tmp_path) as teacher:
        scored = teacher.score([request([1, 2], [3, 4]), request([1], [2, 3, 4])])
    assert (first.asked, teacher.cache_hits) == (2, 0)
    second = Weighted()
    again = CachedTeacher(second, tmp_path)
    got = again.score([request([1], [2, 3, 4]), request([1, 2], [3, 5]), request([1, 2], [3, 4])])
    assert (second.asked, again.cache_hits) == (1, 2)
    np.testing.assert_array_equal(got[0].logprob, scored[1].logprob)
    np.testing.assert_array_equal(got[2].logprob, scored[0].logprob)
    assert got[0].logprob.dtype == np.float32
    assert again.provenance() == second.provenance()
    assert again.score([request([1, 2], [3, 5])])[0].logprob.shape == (2,)
    assert (second.asked, again.cache_hits) == (1, 3)  # before it is written, too


def test_the_key_tells_where_the_response_begins() -> None:
    a = score_key(np.array([1, 2], dtype=np.int32), np.array([3], dtype=np.int32))
    b = score_key(np.array([1], dtype=np.int32), np.array([2, 3], dtype=np.int32))
    assert a != b
    assert a == score_key(np.array([1, 2], dtype=np.int64), np.array([3], dtype=np.int64))


def test_other_weights_have_other_scores(tmp_path: Path) -> None:
    with CachedTeacher(Weighted(weights="w"), tmp_path) as teacher:
        teacher.score([request([1], [2])])
    other = Weighted(weights="v")
    CachedTeacher(other, tmp_path).score([request([1], [2])])
    assert other.asked == 1
    with pytest.raises(ValueError, match="weights have no hash"):
        CachedTeacher(Weighted(weights=None), tmp_path)


@pytest.mark.parametrize("package", ["mopd", "torch", "transformers"])
def test_another_version_of_a_package_has_scores_of_its_own(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with CachedTeacher(Weighted(), tmp_path) as teacher:
        teacher.score([request([1], [2])])
    versions = cache.package_versions()
    monkeypatch.setattr(cache, "package_versions", lambda: versions | {"polars": "0"})  # computes no score
    assert CachedTeacher(Weighted(), tmp_path).folder == teacher.folder
    monkeypatch.setattr(cache, "package_versions", lambda: versions | {package: "0"})
    other = Weighted()
    CachedTeacher(other, tmp_path).score([request([1], [2])])
    assert other.asked == 1


def test_all_that_a_teacher_says_is_kept(tmp_path: Path) -> None:
    class Talkative(Weighted):
        def score(self, requests: Sequence[ScoreRequest]) -> list[TokenScores]:
            return [
                TokenScores(
                    logprob=np.array([-1.5, -2.5], dtype=np.float32),
                    entropy=np.array([0.5, 0.25], dtype=np.float32),
                    rank=np.array([1, 300], dtype=np.int32),
                    top_ids=np.array([[7, 8], [9, 10]], dtype=np.int32),
                    top_logprob=np.array([[-1.0, -2.0], [-3.0, -4.0]], dtype=np.float32),
                )
                for _ in requests
            ]

    with CachedTeacher(Talkative(), tmp_path) as teacher:
        (said,) = teacher.score([request([1], [2, 3])])
    (kept,) = CachedTeacher(Weighted(), tmp_path).score([request([1], [2, 3])])
    for name in ("logprob", "entropy", "rank", "top_ids", "top_logprob"):
        np.testing.assert_array_equal(getattr(kept, name), getattr(said, name))
        assert getattr(kept, name).dtype == getattr(said, name).dtype


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["logprob", "entropy"])
def test_what_is_no_number_is_not_kept(bad: float, where: str, tmp_path: Path) -> None:
    class Faulty(Weighted):
        def score(self, requests: Sequence[ScoreRequest]) -> list[TokenScores]:
            fine: dict[str, Any] = {
                "logprob": np.array([-1.0], dtype=np.float32),
                "entropy": np.array([0.5], dtype=np.float32),
            }
            broken: dict[str, Any] = fine | {where: np.array([bad], dtype=np.float32)}
            return [TokenScores(**broken), *(TokenScores(**fine) for _ in requests[1:])]

    asked = [request([1], [2]), request([1], [3])]
    with CachedTeacher(Faulty(), tmp_path) as teacher:
        got = getattr(teacher.score(asked)[0], where)
        np.testing.assert_array_equal(got, np.array([bad], dtype=np.float32))  # who asks must learn of it
    again = Weighted()
    first, second = CachedTeacher(again, tmp_path).score(asked)
    assert again.asked == 1  # the first, anew; the second was kept
    assert np.isfinite(first.logprob).all()
    assert second.logprob.tolist() == [-1.0]


def test_a_broken_shard_is_named_and_left_out(tmp_path: Path) -> None:
    with CachedTeacher(Weighted(), tmp_path) as teacher:
        teacher.score([request([1], [2])])
    (teacher.folder / "broken.parquet").write_bytes(b"PAR1 not")
    pl.DataFrame({"a": [1]}).write_parquet(teacher.folder / "other.parquet")
    again = Weighted()
    with (
        pytest.warns(UserWarning, match="other.parquet is left out of the score cache: it is no shard"),
        pytest.warns(UserWarning, match="broken.parquet is left out of the score cache"),
    ):
        CachedTeacher(again, tmp_path).score([request([1], [2])])
    assert again.asked == 0


def test_a_study_with_one_more_condition_pays_for_that_one(tmp_path: Path) -> None:
    rollouts = labelled_rollouts(mixed_labels(6, 8))
    with CachedTeacher(Weighted(), tmp_path) as teacher:
        run_study(rollouts, teacher, StudyConfig(conditions=["question_only", "1s", "1s1f"]))
    alone, second = Weighted(), Weighted()
    wanted = run_study(rollouts, alone, StudyConfig(conditions=["question_only", "1s", "1f", "1s1f"]))
    with CachedTeacher(second, tmp_path) as teacher:
        study = run_study(rollouts, teacher, StudyConfig(conditions=["question_only", "1s", "1f", "1s1f"]))
    assert study.tokens.equals(wanted.tokens)
    assert study.info["fingerprint"] == wanted.info["fingerprint"]
    new = study.scores.filter(pl.col("condition") == "1f").height
    assert second.asked == new
    assert study.info["cache_hits"] == alone.asked - new


PROGRAM = """
import itertools, sys
from mopd.teachers import cache
from tests.test_teachers_cache import Weighted, request
cache.FLUSH_SECONDS = 0.05
teacher = cache.CachedTeacher(Weighted(), sys.argv[1])
for i in itertools.count():
    teacher.score([request([i + 1], [2, 3])])
"""


def test_a_kill_leaves_whole_shards(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], cwd=root, env=os.environ.copy())
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("*/*.parquet"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    teacher = Weighted()
    again = CachedTeacher(teacher, tmp_path)
    kept = len(again._place)
    assert kept >= 3
    again.score([request([i + 1], [2, 3]) for i in range(kept)])  # the first ones are there, without a gap
    assert teacher.asked == 0


def test_scores_are_written_as_time_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "FLUSH_SECONDS", 0.0)
    teacher = CachedTeacher(Weighted(), tmp_path)
    teacher.score([request([1], [2])])
    assert len(list(teacher.folder.glob("*.parquet"))) == 1
    assert not list(teacher.folder.glob(".*partial"))


STUDY = """
import sys, time
from mopd import scoring
from mopd.study import StudyConfig, run_study
from mopd.teachers import cache
from tests.test_teachers_cache import CONDITIONS, Weighted
from tests.test_study import labelled_rollouts, mixed_labels

class Stops(Weighted):
    groups = 0

    def score(self, requests):
        self.groups += 1
        if self.groups > 3:
            time.sleep(600)
        return super().score(requests)

folder, scoring.SHARD_SECONDS, cache.FLUSH_SECONDS = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
with cache.CachedTeacher(Stops(), folder + "/cache") as teacher:
    run_study(labelled_rollouts(mixed_labels(12, 8)), teacher, StudyConfig(conditions=CONDITIONS), folder=folder + "/s")
"""
CONDITIONS = ["question_only", "1s", "1f"]


@pytest.mark.parametrize(
    ("shard_seconds", "flush_seconds", "written"), [(0.0, 1e9, "s/shards/*.json"), (1e9, 0.0, "cache/*/*.parquet")]
)
def test_a_killed_study_goes_on_from_its_shards_and_from_the_cache(
    shard_seconds: float, flush_seconds: float, written: str, tmp_path: Path
) -> None:
    words = [sys.executable, "-c", STUDY, str(tmp_path), str(shard_seconds), str(flush_seconds)]
    with subprocess.Popen(words, cwd=Path(__file__).parents[1], env=os.environ.copy()) as process:
        deadline = time.monotonic() + 240
        while len(list(tmp_path.glob(written))) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
    assert len(list(tmp_path.glob(written))) in (2, 3)
    assert not (tmp_path / "s" / "study.json").exists()
    rollouts, config = labelled_rollouts(mixed_labels(12, 8)), StudyConfig(conditions=CONDITIONS)
    alone, rest = Weighted(), Weighted()
    wanted = run_study(rollouts, CachedTeacher(alone, tmp_path / "empty"), config)
    with CachedTeacher(rest, tmp_path / "cache") as teacher:
        study = run_study(rollouts, teacher, config, folder=tmp_path / "s", resume=True)
    assert study.tokens.equals(wanted.tokens)
    assert 0 < rest.asked < alone.asked
    assert (study.info["cache_hits"] > 0) == (flush_seconds == 0.0)  # those of finished shards are not asked for
