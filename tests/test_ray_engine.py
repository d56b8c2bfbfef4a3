"""Scoring by actors: a worker that is killed, shards that are found again, and the errors of workers."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from analysis import signal_quality
from mopd import scoring
from mopd.peers import PROTOCOLS
from mopd.planning import GroupPlan
from mopd.ray_engine import ERRORS, RayEngine, Scorer, _resources, cpus_per_actor
from mopd.store import StudyError, read_shard, write_parquet
from mopd.study import StudyConfig, plan_groups, run_study
from mopd.teachers.base import ScoreRequest, Teacher, TokenScores
from mopd.teachers.scripted import ScriptedTeacher
from tests.test_study import labelled_rollouts

ROOT = Path(__file__).parents[1]
LABELS = [[1, 1, 0, 0]] * 8
CONFIG = StudyConfig(conditions=["question_only", "1s", "1f"])


class Logged:
    """A teacher that notes every group it is asked about before it scores it, and from the third on waits for a sign,
    so that a kill finds it at work."""

    def __init__(self, teacher: Teacher, log: Path) -> None:
        self.teacher, self.log = teacher, log

    def __getattr__(self, name: str) -> Any:
        return getattr(self.teacher, name)

    def score(self, requests: Sequence[ScoreRequest]) -> list[TokenScores]:
        with self.log.open("a") as stream:
            stream.write(f"{os.getpid()} {requests[0].group.group_id}\n")
        while len(self.log.read_text().splitlines()) > 2 and not self.log.with_name("go").exists():
            time.sleep(0.05)
        return self.teacher.score(requests)


def logged(model: Path, log: Path) -> Any:
    from mopd.teachers.hf import HFTeacher

    return Logged(HFTeacher.load(str(model)), log)


def run_on_ray(work: Path) -> None:
    """What the subprocess does: a study by two actors, then another one through the door, in the same Ray."""
    from mopd.ray_engine import _cluster
    from mopd.teachers.hf import HFTeacher

    with _cluster(None, 2):
        engine = RayEngine(load=partial(logged, work / "model", work / "log"), actors=2, cache=work / "cache")
        study = run_study(
            labelled_rollouts(LABELS),
            HFTeacher.describe(str(work / "model")),
            CONFIG,
            folder=work / "ray",
            engine=engine,
        )
        (work / "info.json").write_text(json.dumps(study.info))
        arguments = (
            f"--rollouts {work / 'r.parquet'} --teacher noise --conditions question_only 1s --output {work / 'door'}"
        )
        raise SystemExit(signal_quality.main([*arguments.split(), "--engine", "ray", "--ray-actors", "1"]))


def kill_one(process: subprocess.Popen, work: Path) -> tuple[int, str]:
    """Kill the worker that wrote the first shard, at work on a further group: its process id, and that group."""
    deadline = time.monotonic() + 900
    while time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
        marks = sorted((work / "ray" / "shards").glob("*.json"), key=os.path.getmtime)
        if len(marks) < 2:
            continue
        said = [json.loads(mark.read_text()) for mark in marks]
        worker = said[0]["worker"].split(":")[1]
        finished = {group for one in said for group in one["groups"]}
        begun = [line.split() for line in (work / "log").read_text().splitlines()]
        if lost := [group for pid, group in begun if pid == worker and group not in finished]:
            os.kill(int(worker), signal.SIGKILL)
            (work / "go").touch()
            return int(worker), lost[0]
    process.kill()
    raise AssertionError(f"no worker was found at its second group:\n{process.communicate()[0]}")


@pytest.mark.timeout(1200)  # half a minute on an idle machine: four processes load torch
def test_a_killed_worker_costs_its_unfinished_group_only(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from mopd.teachers.hf import HFTeacher
    from tests.tiny import tiny_model, tiny_tokenizer

    tiny_model("llama", max_position_embeddings=4096).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    rollouts = labelled_rollouts(LABELS)
    write_parquet(rollouts, tmp_path / "r.parquet")
    process = subprocess.Popen(
        [sys.executable, "-c", f"from tests.test_ray_engine import *; run_on_ray(Path({str(tmp_path)!r}))"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    killed, lost = kill_one(process, tmp_path)
    alone = run_study(
        rollouts, HFTeacher.load(str(tmp_path / "model"), device="cpu"), CONFIG, folder=tmp_path / "alone"
    )
    out, _ = process.communicate(timeout=900)
    assert process.returncode == 0, out

    tables = {where: pl.read_parquet(tmp_path / where / "tokens.parquet") for where in ("ray", "alone")}
    for column in ("context_id", "rollout_id", "token_ids"):
        assert tables["ray"][column].equals(tables["alone"][column])
    for column in ("teacher_logprob", "student_logprob", "entropy"):
        ours, theirs = (tables[where][column].explode().to_numpy() for where in ("ray", "alone"))
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)
    info = json.loads((tmp_path / "info.json").read_text())
    assert info["counts"] == alone.info["counts"]
    assert info["tokens_forwarded"] == alone.info["tokens_forwarded"] < info["tokens_asked"]
    assert info["fingerprint"] == alone.info["fingerprint"]
    assert (info["engine"]["actors"], info["engine"]["modes"]) == (2, ["packed"])

    asked = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    times = Counter(group for _, group in asked)
    assert times == {f"g{i:03d}": 1 for i in range(len(LABELS))} | {lost: 2}  # none that was finished is scored again
    assert {int(pid) for pid, _ in asked} - {killed}  # another one went on
    assert "AUC" in out  # the door's report


def plans(labels: list[list[int]]) -> list[GroupPlan]:
    teacher, protocols = ScriptedTeacher("noise"), {"leave_pair_out": PROTOCOLS["leave_pair_out"]}
    return plan_groups(labelled_rollouts(labels), teacher, CONFIG, protocols)[0]


def batch(plan: GroupPlan) -> dict[str, np.ndarray]:
    work = scoring.group_work(plan)
    row = {"group_id": work.group_id, "rows": len(work.keys), "work": pickle.dumps(work)}
    return {name: np.array([value], dtype=object) for name, value in row.items()}


NOISE = partial(ScriptedTeacher, "noise")


def scorer(folder: Path, load: Any = NOISE, **changes: Any) -> Scorer:
    identity = ScriptedTeacher("noise").provenance()
    return Scorer(**{"load": load, "cache": None, "folder": folder, "identity": identity} | changes)


def test_an_actor_writes_the_shard_that_a_local_run_would(tmp_path: Path) -> None:
    (plan,) = plans([[1, 1, 0, 0]])
    answer = scorer(tmp_path)(batch(plan))
    assert (answer["group_id"], answer["error"], answer["worker"][0].split(":")[1]) == (
        ["g000"],
        [""],
        str(os.getpid()),
    )
    (mark,) = tmp_path.glob("*.json")
    shard = read_shard(tmp_path, mark.stem)
    assert shard is not None
    local, cost = scoring.score_plans([plan], ScriptedTeacher("noise"))
    assert shard[0].equals(local)
    assert shard[1]["groups"] == ["g000"]
    assert shard[1]["tokens_asked"] == cost["tokens_asked"]


def test_a_group_whose_shard_stands_is_not_scored_again(tmp_path: Path) -> None:
    (plan,) = plans([[1, 1, 0, 0]])
    scorer(tmp_path)(batch(plan))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}

    class Silent(ScriptedTeacher):
        def score(self, requests: Sequence[ScoreRequest]) -> list[TokenScores]:
            raise AssertionError("it was finished")

    assert scorer(tmp_path, partial(Silent, "noise"))(batch(plan))["error"] == [""]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


class Weighted(ScriptedTeacher):
    def provenance(self) -> Mapping[str, Any]:
        return {**super().provenance(), "weights": "w"}


def test_an_actor_keeps_its_scores_for_other_studies(tmp_path: Path) -> None:
    (plan,) = plans([[1, 1, 0, 0]])
    work, identity = batch(plan), Weighted("noise").provenance()
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        load = partial(Weighted, "noise")
        scorer(tmp_path / folder, load, cache=tmp_path / "cache", identity=identity)(work)
    hits = [json.loads(next((tmp_path / f).glob("*.json")).read_text())["cache_hits"] for f in ("first", "second")]
    assert hits == [0, len(scoring.group_work(plan).requests)]


def broken_load() -> Teacher:
    raise ValueError("no model 'x'")


class NoNumber(ScriptedTeacher):
    def _level(self, request: ScoreRequest) -> float:
        return float("nan")


@pytest.mark.parametrize(
    ("load", "error", "message"),
    [
        (broken_load, "ValueError", "no model 'x'"),
        (partial(NoNumber, "noise"), "FloatingPointError", "not finite numbers"),
        (partial(ScriptedTeacher, "noise", seed=1), "ValueError", "'seed': 1.*where the study is of .*'seed': 0"),
    ],
)
def test_what_fails_in_a_worker_is_said_by_the_study(load: Any, error: str, message: str, tmp_path: Path) -> None:
    (plan,) = plans([[1, 1, 0, 0]])
    answer = {name: values[0] for name, values in scorer(tmp_path, load)(batch(plan)).items()}
    assert not list(tmp_path.iterdir())
    collector = scoring.Collector(None, 1)
    with pytest.raises(ERRORS[error], match=f"{message}.*worker .*:{os.getpid()}"):
        RayEngine(load=load)._take(answer, tmp_path, collector)


def test_a_shard_that_cannot_be_seen_names_the_file_system(tmp_path: Path) -> None:
    (plan,) = plans([[1, 1, 0, 0]])
    (tmp_path / "there").mkdir()
    (tmp_path / "here").mkdir()
    answer = {name: values[0] for name, values in scorer(tmp_path / "there")(batch(plan)).items()}
    with pytest.raises(StudyError, match="on a file system of all nodes"):
        RayEngine(load=broken_load)._take(answer, tmp_path / "here", scoring.Collector(None, 1))


def test_a_study_in_memory_is_refused() -> None:
    with pytest.raises(StudyError, match="give the study one"):
        run_study(
            labelled_rollouts(LABELS), ScriptedTeacher("noise"), CONFIG, engine=RayEngine(load=broken_load, actors=2)
        )


@pytest.mark.parametrize(
    ("nodes", "actors", "cpus"),
    [
        ([8], 1, 8),
        ([8, 8], 3, 4),  # two on one node, one on the other
        ([5, 5], 3, 2),  # 3 each would leave room for two actors only
        ([4, 2], 2, 2),  # 4 // 2 + 2 // 2 = 3 actors have room; with 3 CPUs each 4 // 3 + 2 // 3 = 1
        ([2], 4, 1),
        ([], 1, 1),
    ],
)
def test_cpus_are_shared_out_so_that_all_actors_have_room(nodes: list[int], actors: int, cpus: int) -> None:
    assert cpus_per_actor(nodes, actors) == cpus


class Cluster:
    """Nodes as ``ray.nodes`` gives them."""

    def __init__(self, *resources: dict[str, float]) -> None:
        self.resources = resources

    def nodes(self) -> list[dict[str, Any]]:
        dead = {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}
        return [dead, *({"Alive": True, "Resources": r} for r in self.resources)]


def test_an_actor_has_a_gpu_where_there_are_any() -> None:
    machine = {"CPU": 16.0, "GPU": 2.0}
    want = {"actors": 4, "cpus_per_actor": 8, "gpus_per_actor": 1}
    assert _resources(Cluster(machine, machine), None) == want
    want = {"actors": 2, "cpus_per_actor": 4, "gpus_per_actor": 0}
    assert _resources(Cluster({"CPU": 4.0}, {"CPU": 4.0}), None) == want
    with pytest.raises(ValueError, match="5 actors were asked for, and the cluster has 4 GPUs"):
        _resources(Cluster(machine, machine), 5)


def test_the_door_makes_the_engine() -> None:
    parser = signal_quality.build_parser()
    words = "--engine ray --ray-actors 3 --ray-address auto --model m --score-cache c"
    args = parser.parse_args(words.split())
    engine = signal_quality.scoring_engine(args)
    assert isinstance(engine, RayEngine)
    assert (engine.actors, engine.address, engine.cache) == (3, "auto", Path("c"))
    assert isinstance(signal_quality.scoring_engine(parser.parse_args([])), scoring.InProcess)
    with pytest.raises(ValueError, match="--ray-actors is for --engine ray"):
        signal_quality.scoring_engine(parser.parse_args(["--ray-actors", "2"]))
    with pytest.raises(ValueError, match="actors must be at least 1, got 0"):
        signal_quality.scoring_engine(parser.parse_args(["--engine", "ray", "--ray-actors", "0"]))
