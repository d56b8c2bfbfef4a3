"""What a run leaves behind: the study's tables, step by step, and the metrics of every step.

Each step writes ``steps/NNNNNN-{rollouts,contexts,tokens,assignments}.parquet``; they are joined into the run's own
tables at every checkpoint and at the end, so that ``analysis.signal_quality --rollouts RUN`` reads them and the
finished run is itself a study (protocol ``self_exclusion``, whose metrics are marked as confounded). Log-probs are
those of the training forward before any update on the batch, at temperature 1, in the run's own precision: bfloat16
rounds them by hundredths of a nat.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import polars as pl

from mopd.contexts import Templates
from mopd.diversity import answer_entropy, distinct_n, unique_ratio
from mopd.planning import GroupPlan, assignment_frame
from mopd.rollouts import Group, rollout_frame
from mopd.store import SCHEMAS, git_commit, package_versions, write_json, write_parquet
from mopd.study import StudyConfig, measure
from mopd.study_tables import context_frame, score_frame
from training.config import RunConfig
from training.groups import PROTOCOL, Judged, Row, rollout_rows

__all__ = ["EVALUATIONS", "Evidence", "Scored", "StepRecord"]

TABLES = ("rollouts", "contexts", "tokens", "assignments")
EVALUATIONS: dict[str, Any] = {
    "step": pl.Int64(),
    "item_id": pl.String(),
    "task": pl.String(),
    "topic": pl.String(),
    "sample": pl.Int64(),
    "response": pl.String(),
    "n_tokens": pl.Int64(),
    "finished": pl.Boolean(),
    "reward": pl.Float64(),
    "success": pl.Boolean(),
}
"""``evaluations.parquet``: a row for each response to a held-out prompt. ``step`` is the number of updates behind it,
``sample`` counts the responses to one prompt; ``reward`` and ``success`` are null where nothing could be judged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """One response's token scores in the training forward: arrays [T], float32 in nats and int32 ranks from 1.

    ``clipped`` is the share of its tokens whose importance ratio was cut; None where there was no ratio.
    """

    rollout_id: str
    teacher: np.ndarray
    student: np.ndarray
    teacher_entropy: np.ndarray
    student_entropy: np.ndarray
    teacher_rank: np.ndarray
    student_rank: np.ndarray
    student_mass: float
    teacher_mass: float
    clipped: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRecord:
    """All that one process (or, gathered, all of them) has to say of a step."""

    groups: Sequence[Group]
    rows: Sequence[Row] = ()
    plans: Sequence[GroupPlan] = ()
    scored: Sequence[Scored] = ()
    events: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def whole(cls, parts: Sequence[StepRecord]) -> StepRecord:
        """What all processes have to say, in their order; events are added up."""
        events: Counter[str] = Counter()
        for part in parts:
            events.update(part.events)
        return cls(
            groups=[g for p in parts for g in p.groups],
            rows=[r for p in parts for r in p.rows],
            plans=[g for p in parts for g in p.plans],
            scored=[s for p in parts for s in p.scored],
            events=events,
        )


@dataclass(kw_only=True)
class Evidence:
    """Writes the tables and counts what must outlive a step.

    Attributes:
        config: of the run.
        prompts: how many are trained on, for the share of them ever solved.
        policy: how tables name the student.
        teacher: how they name the teacher.
    """

    config: RunConfig
    prompts: int
    policy: str
    teacher: str
    solved: set[str] = field(default_factory=set)
    seen: set[str] = field(default_factory=set)
    events: Counter[str] = field(default_factory=Counter)
    best: dict[str, Any] | None = None

    @property
    def folder(self) -> Path:
        return self.config.run.output

    @property
    def steps(self) -> Path:
        return self.folder / "steps"

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold."""
        return {
            "solved": sorted(self.solved),
            "seen": sorted(self.seen),
            "events": dict(self.events),
            "best": self.best,
        }

    def restore(self, state: Mapping[str, Any], step: int) -> None:
        """Go back to a checkpoint: take its counts, and forget the steps that come after it."""
        self.solved, self.seen = set(state["solved"]), set(state["seen"])
        self.events, self.best = Counter(state["events"]), state["best"]
        for file in self.steps.glob("*.parquet"):
            number, _, table = file.stem.partition("-")
            if int(number) >= step + (table == "evaluations"):  # an evaluation precedes its checkpoint
                file.unlink()

    def count(self, events: Mapping[str, int]) -> dict[str, float]:
        """Add up events, and give as metrics how many there were since the run began."""
        self.events.update(events)
        return {f"events/{name}": float(n) for name, n in sorted(self.events.items())}

    def record(self, step: int, record: StepRecord, items: Sequence[str]) -> dict[str, float | None]:
        """Write a step's tables and give its metrics.

        Args:
            step: how many updates the policy had had when it sampled.
            record: of all processes.
            items: the item id of each group.
        """
        self.seen.update(items)
        self.solved.update(item for item, group in zip(items, record.groups, strict=True) if group.successes)
        if self.config.run.evidence:
            self._write(step, record)
        return {
            **group_metrics(record.groups, self.config.teacher.wording),
            **context_metrics(record),
            **score_metrics(record),
            "solved/ever_fraction": len(self.solved) / self.prompts,
            "solved/ever_fraction_of_seen": len(self.solved) / len(self.seen),
            **self.count(record.events),
        }

    def _write(self, step: int, record: StepRecord) -> None:
        rollouts = self.config.rollouts
        sampling = {
            "temperature": rollouts.temperature,
            "top_p": rollouts.top_p,
            "max_tokens": rollouts.max_response_tokens,
            "seed": self.config.run.seed,
        }
        text = isinstance(record.groups[0].prompt, str)
        rows = rollout_rows(
            record.groups, step=step, policy=self.policy, sampling=sampling, source=f"training by {self.config.method}"
        )
        frames = {"rollouts": rollout_frame(rows, text_prompts=text)}
        if record.plans:
            frames["contexts"] = context_frame(record.plans, self.teacher, self.config.teacher.wording.hash, text)
            frames["assignments"] = assignment_frame(record.plans)
            frames["tokens"] = _token_frame(record)
        self.steps.mkdir(parents=True, exist_ok=True)
        for name, frame in frames.items():
            write_parquet(frame, self.steps / f"{step:06d}-{name}.parquet")

    def keep_evaluation(self, step: int, answers: Sequence[Sequence[Judged]]) -> None:
        """Write the responses to held-out prompts of an evaluation.

        Args:
            step: updates before it.
            answers: of each prompt its responses.
        """
        if not self.config.run.evidence:
            return
        threshold = self.config.data.success_threshold
        rows = [
            {
                "step": step,
                "item_id": one.item.item_id,
                "task": one.item.task,
                "topic": one.item.metadata.get("topic"),
                "sample": sample,
                "response": one.completion.text,
                "n_tokens": len(one.completion.ids),
                "finished": one.completion.finished,
                "reward": one.verdict.reward,
                "success": None if one.verdict.reward is None else one.verdict.reward >= threshold,
            }
            for responses in answers
            for sample, one in enumerate(responses)
        ]
        self.steps.mkdir(parents=True, exist_ok=True)
        write_parquet(pl.DataFrame(rows, schema=EVALUATIONS), self.steps / f"{step:06d}-evaluations.parquet")

    def join(self) -> None:
        """The run's tables from those of its steps."""
        for name in (*TABLES, "evaluations"):
            files = sorted(self.steps.glob(f"*-{name}.parquet"))
            if files:
                partial = self.folder / f".{name}.partial"
                pl.scan_parquet(files).sink_parquet(partial, compression="zstd")
                partial.replace(self.folder / f"{name}.parquet")

    def finish(self) -> None:
        """Join the tables, and measure them as a study does where a teacher had a context."""
        self.join()
        if not (self.folder / "tokens.parquet").is_file():
            return
        tables = {name: pl.read_parquet(self.folder / f"{name}.parquet") for name in TABLES}
        scores = score_frame(tables["contexts"], tables["rollouts"], tables["tokens"])
        scored = scores.select("context_id", "rollout_id").with_columns(scored=True)
        assignments = (
            tables["assignments"]
            .join(scored, on=["context_id", "rollout_id"], how="left", validate="m:1", maintain_order="left")
            .with_columns(supported=pl.col("supported") & pl.col("scored").fill_null(False))
            .drop("scored")
        )
        tables |= {"assignments": assignments, "scores": scores}
        cond = self.config.condition
        if assignments["supported"].any() and cond is not None:
            settings = StudyConfig(conditions=[cond.name], protocols=[PROTOCOL], seed=self.config.teacher.peer_seed)
            tables |= measure(assignments, scores, settings)
        for name, frame in tables.items():
            write_parquet(frame, self.folder / f"{name}.parquet")
        if "metrics" in tables:
            write_json(self._info(assignments), self.folder / "study.json")

    def _info(self, assignments: pl.DataFrame) -> dict[str, Any]:
        reasons = assignments.filter(pl.col("reason").is_not_null())["reason"].value_counts(sort=True)
        return {
            "fingerprint": self.config.fingerprint,
            "arguments": {},
            "config": self.config.as_dict(),
            "confounded": [PROTOCOL],
            "teacher": {"teacher": self.config.teacher_kind, "model": self.teacher},
            "template_hash": self.config.teacher.wording.hash,
            "git_commit": git_commit(),
            "packages": package_versions(),
            "counts": {
                "groups": assignments["group_id"].n_unique(),
                "groups_compared": assignments.filter("supported")["group_id"].n_unique(),
                "rollouts": assignments.height,
                "undefined": {PROTOCOL: dict(reasons.iter_rows())},
                "events": dict(self.events),
            },
        }


def _token_frame(record: StepRecord) -> pl.DataFrame:
    scored = {s.rollout_id: s for s in record.scored}
    responses = {r.rollout_id: r for group in record.groups for r in group.rollouts}
    rows = [
        {
            "context_id": row.context_id,
            "rollout_id": row.rollout_id,
            "token_ids": list(responses[row.rollout_id].response_ids or ()),
            "teacher_logprob": scored[row.rollout_id].teacher.tolist(),
            "student_logprob": scored[row.rollout_id].student.tolist(),
            "entropy": scored[row.rollout_id].teacher_entropy.tolist(),
            "student_entropy": scored[row.rollout_id].student_entropy.tolist(),
            "teacher_rank": scored[row.rollout_id].teacher_rank.tolist(),
            "student_rank": scored[row.rollout_id].student_rank.tolist(),
        }
        for row in record.rows
        if row.context_id is not None and row.rollout_id in scored
    ]
    return pl.DataFrame(rows, schema=SCHEMAS["tokens"])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return fmean(known) if known else None


def group_metrics(groups: Sequence[Group], wording: Templates) -> dict[str, float | None]:
    """Rewards, lengths and diversity of a step's groups; a mean over groups leaves out those that do not define it.
    ``context/repeated_fraction`` of the responses hold a heading of the wording, under which contexts show peers."""
    rollouts = [r for group in groups for r in group.rollouts]
    judged = [[r for r in group.rollouts if r.success is not None] for group in groups]
    lengths = [len(r.response_ids or ()) for r in rollouts]
    texts = [[r.response for r in part] for part in judged]
    return {
        "reward/mean": _mean([r.reward for r in rollouts]),
        "reward/success_rate": _mean([None if r.success is None else float(r.success) for r in rollouts]),
        "reward/unjudged_fraction": fmean(r.success is None for r in rollouts),
        "groups/flat_fraction": fmean(len({r.reward for r in part}) <= 1 for part in judged),
        "groups/mixed_fraction": fmean(bool(group.successes and group.failures) for group in groups),
        "groups/all_failed_fraction": fmean(bool(group.failures and not group.successes) for group in groups),
        "groups/solved_fraction": fmean(bool(group.successes) for group in groups),
        "diversity/unique_ratio": _mean([unique_ratio(t) for t in texts]),
        "diversity/distinct_2": _mean([distinct_n(t, 2) for t in texts]),
        "diversity/answer_entropy": _mean([answer_entropy(r.answer for r in part) for part in judged]),
        "length/mean": fmean(lengths),
        "length/max": float(max(lengths)),
        "length/cut_fraction": fmean(r.finished is False for r in rollouts),
        "context/repeated_fraction": fmean(wording.repeated_in(r.response) for r in rollouts),
    }


def context_metrics(record: StepRecord) -> dict[str, float | None]:
    """Share of targets with a context, and of each reason for having none; empty for a method without contexts."""
    if not record.rows:
        return {}
    n = len(record.rows)
    reasons = Counter(row.reason for row in record.rows if row.reason is not None)
    used = {row.context_id for row in record.rows if row.context_id is not None}
    contexts = [c for plan in record.plans for key, (_, c) in plan.contexts.items() if key in used]
    return {
        "context/fraction": 1 - reasons.total() / n,
        **{f"context/none/{why}": count / n for why, count in sorted(reasons.items())},
        "context/tokens": _mean([float(len(c.token_ids)) for c in contexts]),
        "context/shortened_fraction": _mean([float(bool(c.cuts)) for c in contexts]),
    }


def score_metrics(record: StepRecord) -> dict[str, float | None]:
    """What lies between teacher and student: means over all scored tokens, in nats; the probability of the end token
    where a response ended by itself (a teacher that would go on teaches length); captured mass and clip rate."""
    if not record.scored:
        return {}
    success = {r.rollout_id: r.success for group in record.groups for r in group.rollouts}
    delta = {s.rollout_id: s.teacher.astype(np.float64) - s.student for s in record.scored}

    def gap(label: bool | None) -> float | None:
        parts = [d for rollout_id, d in delta.items() if label is None or success[rollout_id] is label]
        return float(np.concatenate(parts).mean()) if parts else None

    tokens = np.array([len(s.student) for s in record.scored], dtype=np.float64)

    def weighted(values: Sequence[float]) -> float:
        return float(np.average(values, weights=tokens))

    clipped = [s.clipped for s in record.scored if s.clipped is not None]
    finished = {r.rollout_id for group in record.groups for r in group.rollouts if r.finished and r.response_ids}
    ended = [s for s in record.scored if s.rollout_id in finished]
    return {
        "gap/delta_mean": gap(None),
        "gap/delta_mean_successes": gap(True),
        "gap/delta_mean_failures": gap(False),
        "gap/teacher_entropy": float(np.concatenate([s.teacher_entropy for s in record.scored]).mean()),
        "gap/student_entropy": float(np.concatenate([s.student_entropy for s in record.scored]).mean()),
        "gap/teacher_end_probability": _mean([float(np.exp(s.teacher[-1])) for s in ended]),
        "gap/student_end_probability": _mean([float(np.exp(s.student[-1])) for s in ended]),
        "mass/student_top_k": weighted([s.student_mass for s in record.scored]),
        "mass/teacher_on_it": weighted([s.teacher_mass for s in record.scored]),
        "importance/clip_rate": _mean(clipped),
    }
