"""Scores groups on many machines: a Ray Data pipeline over groups with a pool of actors, each of which holds a model.

An actor writes the shard of a group, whole or not at all, before it answers, and looks for it before it scores. So a
worker that is lost costs the groups that it had not finished; Ray starts it again and hands them out anew. The
study's folder (and the score cache, to be shared) must lie on a file system that all nodes see. Needs Ray:
``pip install mopd[ray]``.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mopd.planning import GroupPlan
from mopd.rollouts import content_id
from mopd.scoring import Collector, Shard, group_work
from mopd.store import StudyError, read_shard, write_shard
from mopd.teachers.base import Teacher
from mopd.teachers.cache import CachedTeacher

__all__ = ["RayEngine", "cpus_per_actor"]

TRIES = 4
"""Workers that a group may take with it before the run ends: a group that needs more memory than there is."""
OBJECT_STORE_BYTES = 2**28
"""Of a Ray that is started here: what lies in it are the requests of groups, some megabytes each."""
ERRORS: dict[str, type[Exception]] = {e.__name__: e for e in (FloatingPointError, OSError, ValueError)}


@dataclass(kw_only=True)
class RayEngine:
    """An engine (``mopd.scoring.Engine``) for studies in a folder.

    Attributes:
        load: gives an actor its teacher; it is pickled, so that workers must be able to import what it names.
        cache: folder of scores kept between studies (``mopd.teachers.cache``), or None.
        actors: how many; None takes one for each GPU, or one for each node where there are none.
        address: of a cluster, or ``auto`` for the one that this machine belongs to; None starts Ray on this machine
            alone.
    """

    load: Callable[[], Teacher]
    cache: Path | None = None
    actors: int | None = None
    address: str | None = None
    _seen: dict[str, Any] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if self.actors is not None and self.actors < 1:
            raise ValueError(f"actors must be at least 1, got {self.actors}; leave it out to have it found")

    def provenance(self) -> Mapping[str, Any]:
        return {"engine": "ray", **self._seen}

    def run(self, todo: Sequence[GroupPlan], teacher: Teacher, collector: Collector) -> None:
        """Score every group on the cluster.

        Raises:
            StudyError: there is no folder, workers write where this process cannot read, or died too often.
            ValueError: Ray is not installed, or more actors were asked for than there are GPUs.
        """
        if collector.store is None:
            raise StudyError("the ray engine hands scores over in a folder: give the study one")
        folder = collector.store.shards.resolve()
        with _cluster(self.address, self.actors) as ray:
            self._seen |= _resources(ray, self.actors)
            cache = None if self.cache is None else self.cache.resolve()
            settings = {"load": self.load, "cache": cache, "folder": folder, "identity": _identity(teacher)}
            try:
                for answer in self._answers(ray, todo, settings):
                    self._take(answer, folder, collector)
            except ray.exceptions.RayError as error:
                raise StudyError(
                    f"Ray gave up: {error}\nFinished groups are kept: go on with --resume and the same --output"
                ) from error

    def _answers(self, ray: Any, todo: Sequence[GroupPlan], settings: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        """What the actors say of each group, as they finish."""
        works = [group_work(plan) for plan in todo]
        rows = [{"group_id": w.group_id, "rows": len(w.keys), "work": pickle.dumps(w)} for w in works]
        count = min(self._seen["actors"], len(rows))
        answers = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            Scorer,
            batch_size=1,
            fn_constructor_kwargs=dict(settings),
            compute=ray.data.ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=2),
            num_cpus=self._seen["cpus_per_actor"],
            num_gpus=self._seen["gpus_per_actor"],
            ray_remote_args_fn=_fault_tolerance,
        )
        yield from answers.iter_rows()

    def _take(self, answer: Mapping[str, Any], folder: Path, collector: Collector) -> None:
        if answer["error"]:
            raise ERRORS[answer["error"]](f"{answer['message']} (worker {answer['worker']})")
        shard = read_shard(folder, _shard_name(answer["group_id"]))
        if shard is None:
            raise StudyError(
                f"worker {answer['worker']} wrote group {answer['group_id']} into {folder}, but it cannot be seen "
                "from here: give an --output that lies on a file system of all nodes"
            )
        self._seen["modes"] = sorted({*self._seen.get("modes", ()), answer["mode"]} - {""})
        collector.take(*shard)
        collector.scored(int(answer["rows"]))


class Scorer:
    """An actor: a teacher, and the folder into which it writes shards."""

    def __init__(
        self, *, load: Callable[[], Teacher], cache: Path | None, folder: Path, identity: Mapping[str, Any]
    ) -> None:
        self.folder = folder
        self.worker = f"{socket.gethostname()}:{os.getpid()}"
        self.failure: tuple[str, str] | None = None
        try:
            self.teacher = load()
            if _identity(self.teacher) != identity:
                raise ValueError(f"the teacher here is {_identity(self.teacher)}, where the study is of {identity}")
            self.cached = None if cache is None else CachedTeacher(self.teacher, cache)
        except tuple(ERRORS.values()) as error:  # said once by the door, rather than by Ray at every new start
            self.failure = _named(error)

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, list[Any]]:
        """Score the groups of a batch (it has one)."""
        answers = [self._answer(*row) for row in zip(batch["group_id"], batch["rows"], batch["work"], strict=True)]
        return {name: [answer[name] for answer in answers] for name in answers[0]}

    def _answer(self, group_id: str, rows: int, work: bytes) -> dict[str, Any]:
        name = _shard_name(str(group_id))
        failure = self.failure
        if failure is None and read_shard(self.folder, name) is None:
            shard = Shard(self.cached or self.teacher)
            try:
                shard.score(pickle.loads(work))
                if self.cached is not None:
                    self.cached.flush()
                frame, info = shard.close()
                write_shard(self.folder, name, frame, info | {"worker": self.worker})
            except tuple(ERRORS.values()) as error:
                failure = _named(error)
        kind, message = failure or ("", "")
        mode = "" if self.failure else str(self.teacher.provenance().get("mode", ""))
        return {
            "group_id": str(group_id),
            "rows": int(rows),
            "worker": self.worker,
            "mode": mode,
            "error": kind,
            "message": message,
        }


def _named(error: Exception) -> tuple[str, str]:
    """The name under which the door knows an error, and its words."""
    return next(name for name, kind in ERRORS.items() if isinstance(error, kind)), str(error)


def _shard_name(group_id: str) -> str:
    return content_id("group", group_id)


def _identity(teacher: Teacher) -> dict[str, Any]:
    """What must be the same on all machines: everything but the way in which a trie is read."""
    return {name: value for name, value in teacher.provenance().items() if name != "mode"}


def _fault_tolerance() -> dict[str, Any]:
    """Of every actor: it is started again as often as it dies, a group is handed out at most ``TRIES`` times."""
    return {"max_restarts": -1, "max_task_retries": TRIES - 1}


def cpus_per_actor(nodes: Sequence[int], actors: int) -> int:
    """The most CPUs that each of the actors can have, on nodes with so many.

    >>> cpus_per_actor([8, 8], 3)  # two on one node, one on the other
    4
    """
    fit = [n for n in range(1, max(nodes, default=1) + 1) if sum(cpus // n for cpus in nodes) >= actors]
    return max(fit, default=1)


def _resources(ray: Any, actors: int | None) -> dict[str, Any]:
    """How many actors there will be, and the share that each of them has."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    count = actors or gpus or len(nodes)
    if gpus and count > gpus:
        raise ValueError(f"{count} actors were asked for, and the cluster has {gpus} GPUs, one for an actor")
    return {"actors": count, "cpus_per_actor": cpus_per_actor(cpus, count), "gpus_per_actor": int(bool(gpus))}


@contextmanager
def _cluster(address: str | None, actors: int | None) -> Iterator[Any]:
    """Ray, connected to ``address`` or started here; one that runs in this process already is used and left on."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
        import ray.exceptions
    except ImportError as error:
        raise ValueError(f"the ray engine needs Ray ({error}): pip install 'mopd[ray]'") from error
    ours = not ray.is_initialized()
    if ours and address:
        ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
    elif ours:
        ray.init(
            num_cpus=max(os.cpu_count() or 1, actors or 1),
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            logging_level=logging.WARNING,
            log_to_driver=False,
        )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield ray
    finally:
        if ours:
            ray.shutdown()
