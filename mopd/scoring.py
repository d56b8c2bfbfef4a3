"""From plans to token scores: what a group asks of the teacher, and who asks it.

An *engine* goes through the groups and hands over shards of finished ones. ``InProcess`` is the default;
``mopd.ray_engine`` spreads the same work over the workers of a cluster. Whoever scored a group, its shard is the same,
so that a later run goes on from any of them.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import polars as pl

from mopd.lists import list_column
from mopd.planning import GroupPlan
from mopd.store import SCHEMAS, StudyError, StudyFolder
from mopd.teachers.base import ScoreRequest, Teacher

__all__ = [
    "WORK",
    "Collector",
    "Engine",
    "GroupWork",
    "InProcess",
    "Progress",
    "Shard",
    "group_requests",
    "group_work",
    "score_plans",
]

WORK = ("tokens_asked", "tokens_forwarded", "cache_hits", "seconds")
"""What scoring cost; tokens asked are contexts and whole responses, one row after the other. Seconds are those of the
worker that scored, summed over the workers."""
SHARD_SECONDS = float(os.environ.get("MOPD_SHARD_SECONDS", "10"))
"""Most seconds of scoring that a kill can lose."""

Progress = Callable[[str, int, int], None]
"""``(what, done, total)``, called as work goes on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupWork:
    """What a group asks of the teacher: all that a worker needs to know.

    Attributes:
        group_id: of the group.
        keys: (context id, rollout id) of the supported targets, each once.
        requests: one for each key, then the student's own log-probs of every target.
    """

    group_id: str
    keys: tuple[tuple[str, str], ...]
    requests: tuple[ScoreRequest, ...]


class Shard:
    """Groups that a teacher scored since the shard was opened, and what they cost."""

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher
        self.groups: list[str] = []
        self._frames: list[pl.DataFrame] = []
        self._asked = 0
        self._before = _work_of(teacher)
        self._opened = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the shard was opened."""
        return time.monotonic() - self._opened

    def score(self, work: GroupWork) -> None:
        """Score a group and add it.

        Raises:
            FloatingPointError: the model gave a log-prob that is no number.
        """
        self._frames.append(_score_group(work, self.teacher))
        self._asked += sum(len(r.context_ids) + len(r.response_ids) for r in work.requests)
        self.groups.append(work.group_id)

    def close(self) -> tuple[pl.DataFrame, dict[str, Any]]:
        """The rows of ``tokens.parquet``, and which groups they are of and what they cost."""
        spent = {key: value - self._before[key] for key, value in _work_of(self.teacher).items()}
        info = {"groups": self.groups, "tokens_asked": self._asked, **spent, "seconds": self.seconds}
        return pl.concat(self._frames), info


class Collector:
    """Takes shards in: into memory and, where there is a folder, to the disk.

    Args:
        store: the study's folder; None keeps all in memory.
        total: rows that will come.
        progress: told how many are there.
    """

    def __init__(self, store: StudyFolder | None, total: int, progress: Progress | None = None) -> None:
        self.store = store
        self.parts: list[pl.DataFrame] = []
        self.work: Counter[str] = Counter()
        self._rows, self._total, self._progress = 0, total, progress

    def scored(self, rows: int) -> None:
        """So many more rows are scored."""
        self._rows += rows
        if self._progress:
            self._progress("rows scored", self._rows, self._total)

    def keep(self, frame: pl.DataFrame, info: Mapping[str, Any]) -> None:
        """Write a shard and take it in."""
        if self.store is not None:
            self.store.add_shard(frame, info)
        self.take(frame, info)

    def take(self, frame: pl.DataFrame, info: Mapping[str, Any]) -> None:
        """Take in a shard that a worker has written."""
        self.parts.append(frame)
        self.work.update({key: info.get(key, 0) for key in WORK})


class Engine(Protocol):
    """Goes through groups and hands their shards to a collector."""

    def run(self, todo: Sequence[GroupPlan], teacher: Teacher, collector: Collector) -> None:
        """Score every group; on an error or an interrupt, those that were finished are kept."""
        ...

    def provenance(self) -> Mapping[str, Any]:
        """What ``study.json`` says about it."""
        ...


class InProcess:
    """One group after the other by the teacher itself."""

    def run(self, todo: Sequence[GroupPlan], teacher: Teacher, collector: Collector) -> None:
        shard = Shard(teacher)
        try:
            for plan in todo:
                work = group_work(plan)
                shard.score(work)
                collector.scored(len(work.keys))
                if shard.seconds > SHARD_SECONDS:
                    full, shard = shard, Shard(teacher)
                    collector.keep(*full.close())
        finally:
            if shard.groups:  # Ctrl-C keeps every group that was finished
                collector.keep(*shard.close())

    def provenance(self) -> Mapping[str, Any]:
        return {"engine": "in_process"}


def score_plans(
    plans: Sequence[GroupPlan],
    teacher: Teacher,
    store: StudyFolder | None = None,
    progress: Progress | None = None,
    engine: Engine | None = None,
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Token scores of all supported targets in plan order, and what they cost (``WORK``).

    What the folder holds already is not scored again.

    Raises:
        StudyError: the folder's scores are of other contexts.
        FloatingPointError: the model gave a log-prob that is no number.
    """
    supported = [p for p in plans if p.supported]
    kept, done = _scored_before(store)
    todo = [p for p in supported if p.group.group_id not in done]
    collector = Collector(store, sum(len(_keys(p)) for p in todo), progress)
    for frame, info in kept:
        collector.take(frame, info)
    if todo:
        (engine or InProcess()).run(todo, teacher, collector)
    order = [key for p in supported for key in _keys(p)]
    place = pl.DataFrame(order, schema={"context_id": pl.String, "rollout_id": pl.String}, orient="row")
    tokens = place.join(
        pl.concat(collector.parts), on=["context_id", "rollout_id"], how="left", validate="1:1", maintain_order="left"
    )
    if tokens["teacher_logprob"].null_count():
        raise StudyError(
            f"the scores in {store.path if store else 'memory'} are of other contexts than this version builds; "
            "remove the folder, or give another --output"
        )
    return tokens, {key: collector.work[key] for key in WORK}


def _scored_before(store: StudyFolder | None) -> tuple[list[tuple[pl.DataFrame, Mapping[str, Any]]], set[str]]:
    """Token scores that the folder holds with what they cost, and the groups that they are of."""
    if store is None:
        return [], set()
    if store.finished:
        info = store.read_info()
        work = {key: info.get(key, 0) for key in WORK[:-1]} | {"seconds": info["seconds"]["scoring"]}
        return [(store.read("tokens"), work)], set(store.read("contexts")["group_id"])
    shards = store.read_shards()
    return list(shards), {g for _, info in shards for g in info["groups"]}


def _work_of(teacher: Teacher) -> dict[str, int]:
    return {"tokens_forwarded": teacher.tokens_forwarded, "cache_hits": teacher.cache_hits}


def _keys(plan: GroupPlan) -> list[tuple[str, str]]:
    """(context id, rollout id) of the supported targets, each once."""
    return sorted({(t.context_id, t.rollout_id) for t in plan.targets if t.supported and t.context_id is not None})


def group_work(plan: GroupPlan) -> GroupWork:
    """What a group asks of the teacher."""
    return GroupWork(group_id=plan.group.group_id, keys=tuple(_keys(plan)), requests=tuple(group_requests(plan)))


def group_requests(plan: GroupPlan) -> list[ScoreRequest]:
    """What a group asks of the teacher: its supported (context, target) rows, then the student's own log-probs."""
    keys = _keys(plan)
    ids = {r: np.asarray(v.ids, dtype=np.int32) for r, v in plan.responses.items()}
    contexts = [plan.contexts[context_id][1] for context_id, _ in keys]
    requests = [
        ScoreRequest(
            group=plan.group,
            rollout_id=rollout_id,
            peers=context.peers,
            context_ids=context.token_ids,
            response_ids=ids[rollout_id],
        )
        for context, (_, rollout_id) in zip(contexts, keys, strict=True)
    ]
    return requests + [
        ScoreRequest(
            group=plan.group,
            rollout_id=rollout_id,
            peers=(),
            context_ids=plan.student_ids,
            response_ids=ids[rollout_id],
            student=True,
        )
        for rollout_id in sorted({rollout_id for _, rollout_id in keys})
    ]


def _score_group(work: GroupWork, teacher: Teacher) -> pl.DataFrame:
    """One group's rows of ``tokens.parquet``."""
    keys, requests = work.keys, work.requests
    scores = teacher.score(requests)
    for request, score in zip(requests, scores, strict=True):
        if len(score.logprob) != len(request.response_ids) or not np.isfinite(score.logprob).all():
            raise FloatingPointError(
                f"teacher {teacher.name!r} gave log-probs that are not finite numbers for rollout "
                f"{request.rollout_id}; a model in half precision may overflow: try --dtype float32"
            )
    student = {r.rollout_id: s for r, s in zip(requests[len(keys) :], scores[len(keys) :], strict=True)}
    of_teacher, of_student = scores[: len(keys)], [student[rollout_id] for _, rollout_id in keys]
    schema = SCHEMAS["tokens"]
    arrays = {
        "token_ids": [r.response_ids for r in requests[: len(keys)]],
        "teacher_logprob": [score.logprob for score in of_teacher],
        "student_logprob": [score.logprob for score in of_student],
        "entropy": [score.entropy for score in of_teacher],
        "student_entropy": [score.entropy for score in of_student],
        "teacher_rank": [score.rank for score in of_teacher],
        "student_rank": [score.rank for score in of_student],
    }
    return pl.DataFrame(keys, schema={n: schema[n] for n in ("context_id", "rollout_id")}, orient="row").hstack(
        [list_column(name, values, schema[name]) for name, values in arrays.items()]
    )
