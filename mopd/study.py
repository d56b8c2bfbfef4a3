"""A study: rollouts x conditions x protocol -> scores -> metrics.

``run_study`` is the whole of it, for notebooks and for ``python -m analysis.signal_quality`` alike::

    from mopd import StudyConfig, read_rollouts, run_study
    from mopd.teachers.hf import HFTeacher

    rollouts = read_rollouts("rollouts.parquet")
    study = run_study(rollouts, HFTeacher.load("smollm2-135m"), StudyConfig(conditions=["question_only", "2s1f"]))
    study.metrics

Order of work: plan every group (units, contexts, common support), score, write shards as it goes, then measure. The
student is the same model under the bare prompt.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa

from mopd import calibration, contrasts, derived, inference, metrics
from mopd.browsing import browsing_tables
from mopd.conditions import DEFAULT_CONDITIONS, Condition, condition, parse_conditions
from mopd.contexts import Templates
from mopd.controls import Pool
from mopd.peers import CONFOUNDED, PROTOCOLS, Protocol
from mopd.planning import GroupPlan, Planner, assignment_frame
from mopd.rollouts import content_id, groups_of
from mopd.store import SCHEMAS, StudyError, StudyFolder, frame_hash, git_commit, package_versions, write_json
from mopd.teachers.base import ScoreRequest, Teacher

__all__ = [
    "NothingToCompare",
    "Study",
    "StudyConfig",
    "fingerprint",
    "group_requests",
    "measure",
    "plan_groups",
    "run_study",
]

SCORES = ("teacher_mean", "delta_mean", "delta_sum")
SCORING_PACKAGES = ("mopd", "torch", "transformers", "tokenizers")
WORK = ("tokens_asked", "tokens_forwarded", "cache_hits", "seconds")
"""What scoring cost; tokens asked are those to forward if every row were scored by itself."""
SHARD_SECONDS = float(os.environ.get("MOPD_SHARD_SECONDS", "10"))
"""Most seconds of scoring that a kill can lose."""

Progress = Callable[[str, int, int], None]
"""``(what, done, total)``, called as work goes on."""


class NothingToCompare(ValueError):
    """No group has a success and a failure that all conditions can serve."""


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """What is compared and how.

    Attributes:
        conditions: names (``mopd.conditions``); every metric is on the pairs that all of them can serve.
        protocols: names (``mopd.peers.PROTOCOLS``).
        seed: of the order of peers, the splits and the bootstrap.
        limit: stop after this many groups with something to compare; None takes all.
        max_context_tokens: most tokens of a context; None leaves it to the model's window.
        on_overflow: ``shorten`` the peers of a context over its budget, or ``error``.
        match: controls have as many ``blocks`` as ``2s1f``, or also as many ``tokens`` of peers' words.
        templates: wording of the contexts.
        reference: condition that the others are contrasted with, if it is among them.
        draws: bootstrap draws.
        confidence: of the intervals.
    """

    conditions: Sequence[str] = DEFAULT_CONDITIONS
    protocols: Sequence[str] = ("leave_pair_out",)
    seed: int = 0
    limit: int | None = None
    max_context_tokens: int | None = None
    on_overflow: Literal["shorten", "error"] = "shorten"
    match: Literal["blocks", "tokens"] = "blocks"
    templates: Templates = field(default_factory=Templates)
    reference: str = "question_only"
    draws: int = 2000
    confidence: float = 0.95

    def __post_init__(self) -> None:
        object.__setattr__(self, "conditions", tuple(c.name for c in parse_conditions(self.conditions)))
        unknown = [name for name in self.protocols if name not in PROTOCOLS]
        if unknown or not self.protocols:
            raise ValueError(f"unknown protocol {', '.join(unknown) or '(none)'}; known are {', '.join(PROTOCOLS)}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1, got {self.limit}; leave it out to take all groups")
        if self.max_context_tokens is not None and self.max_context_tokens < 1:
            raise ValueError(f"max_context_tokens must be at least 1, got {self.max_context_tokens}")
        if self.on_overflow not in ("shorten", "error"):
            raise ValueError(f"on_overflow must be 'shorten' or 'error', got {self.on_overflow!r}")
        if self.match not in ("blocks", "tokens"):
            raise ValueError(f"match must be 'blocks' or 'tokens', got {self.match!r}")
        if self.draws < inference.FEWEST_DRAWS:
            raise ValueError(f"draws must be at least {inference.FEWEST_DRAWS}, got {self.draws}")
        self._settle_reference()
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence must lie between 0 and 1, got {self.confidence}")

    def _settle_reference(self) -> None:
        """Bring the reference to its canonical name; only the default may be absent from the conditions."""
        object.__setattr__(self, "reference", condition(self.reference).name)
        if self.reference not in self.conditions and self.reference != "question_only":
            raise ValueError(
                f"the reference {self.reference!r} is not among the conditions {', '.join(self.conditions)}; add it"
            )

    @property
    def recipes(self) -> tuple[Condition, ...]:
        """The conditions themselves, in table order."""
        return parse_conditions(self.conditions)

    def scoring(self) -> dict[str, Any]:
        """The settings that decide what is scored, as JSON values: those of the measuring are left out."""
        values = dataclasses.asdict(self)
        for name in ("reference", "draws", "confidence"):
            del values[name]
        return values


@dataclass(frozen=True, kw_only=True)
class Study:
    """A finished study: the tables of design section 3, and ``info``, which is ``study.json``."""

    rollouts: pl.DataFrame
    assignments: pl.DataFrame
    contexts: pl.DataFrame
    scores: pl.DataFrame
    tokens: pl.DataFrame
    metrics: pl.DataFrame
    contrasts: pl.DataFrame
    clustering: pl.DataFrame
    derived: pl.DataFrame
    calibration: pl.DataFrame
    reliability: pl.DataFrame
    group_values: pl.DataFrame
    info: Mapping[str, Any]


def fingerprint(rollouts: pl.DataFrame, teacher: Teacher, config: StudyConfig) -> str:
    """Hash of everything that the scores depend on: rollouts, teacher, settings, and the packages that compute them."""
    versions = {name: v for name, v in package_versions().items() if name in SCORING_PACKAGES}
    return content_id(frame_hash(rollouts), teacher.provenance(), config.scoring(), versions)


def run_study(
    rollouts: pl.DataFrame,
    teacher: Teacher,
    config: StudyConfig | None = None,
    *,
    folder: str | Path | None = None,
    resume: bool = False,
    protocols: Mapping[str, Protocol] | None = None,
    progress: Progress | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Study:
    """Plan, score and measure.

    Args:
        rollouts: a table checked by ``mopd.rollouts.validate_rollouts`` (``read_rollouts`` does).
        teacher: gives the log-probs, of the student as well.
        config: what is compared; default the conditions of the paper and ``shell_only`` under ``leave_pair_out``.
        folder: where tables are written; None keeps all in memory.
        resume: go on with an unfinished study in ``folder``.
        protocols: used instead of those that ``config`` names.
        progress: told what is done.
        arguments: the command's resolved options, kept in ``study.json``.

    Raises:
        NothingToCompare: no group keeps a success and a failure under all conditions.
        StudyError: ``folder`` cannot be used.
        ValueError: prompts or contexts cannot be rendered.
    """
    config = config or StudyConfig()
    chosen = protocols or {name: PROTOCOLS[name] for name in config.protocols}
    identity = content_id(fingerprint(rollouts, teacher, config), sorted(chosen))
    started = time.monotonic()
    plans, not_looked_at = plan_groups(rollouts, teacher, config, chosen, progress)
    store = None if folder is None else StudyFolder(folder, identity, resume=resume)
    with nullcontext() if store is None else closing(store):
        tokens, work = _score(plans, teacher, store, progress)
        tables = _tables(rollouts, plans, tokens, teacher.name, config)
        info = {
            "fingerprint": identity,
            "arguments": dict(arguments or {}),
            "config": dataclasses.asdict(config) | {"protocols": list(chosen)},
            "confounded": sorted(CONFOUNDED & set(chosen)),
            "teacher": dict(teacher.provenance()),
            "template_hash": config.templates.hash,
            "rollouts_hash": frame_hash(rollouts),
            "git_commit": git_commit(),
            "packages": package_versions(),
            "counts": _counts(plans, tables["assignments"], not_looked_at),
            **{key: work[key] for key in WORK[:-1]},
            "seconds": {"scoring": work["seconds"], "this_run": time.monotonic() - started},
        }
        if store is not None:
            _save(store, tables | browsing_tables(tables, teacher.codec), info)
    return Study(**tables, info=info)


def _tables(
    rollouts: pl.DataFrame, plans: Sequence[GroupPlan], tokens: pl.DataFrame, model: str, config: StudyConfig
) -> dict[str, pl.DataFrame]:
    """Every table of the study by its name."""
    assignments = assignment_frame(plans)
    text_prompts = rollouts.schema["prompt"] == pl.String
    contexts = _context_frame(plans, model, config.templates.hash, text_prompts)
    scores = _score_frame(contexts, rollouts, tokens)
    return {
        "rollouts": rollouts.filter(pl.col("group_id").is_in([p.group.group_id for p in plans])),
        "assignments": assignments,
        "contexts": contexts,
        "scores": scores,
        "tokens": tokens,
        **measure(assignments, scores, config),
    }


def _save(store: StudyFolder, tables: Mapping[str, pl.DataFrame], info: Mapping[str, Any]) -> None:
    """Write the tables, then ``study.json``, which says that they are complete; the shards are no longer needed."""
    for name, table in tables.items():
        store.write(name, table)
    write_json(info, store.path / "study.json")
    store.drop_shards()


def plan_groups(
    rollouts: pl.DataFrame,
    teacher: Teacher,
    config: StudyConfig,
    protocols: Mapping[str, Protocol],
    progress: Progress | None = None,
) -> tuple[list[GroupPlan], int]:
    """Plans in file order up to ``config.limit`` groups with something to compare, and how many were not looked at."""
    planner = Planner(
        codec=teacher.codec,
        conditions=config.recipes,
        protocols=protocols,
        seed=config.seed,
        templates=config.templates,
        window=teacher.window,
        max_context_tokens=config.max_context_tokens,
        on_overflow=config.on_overflow,
        match=config.match,
        pool=Pool(groups_of(rollouts), config.seed) if any(c.source != "group" for c in config.recipes) else None,
    )
    total = rollouts["group_id"].n_unique()
    plans: list[GroupPlan] = []
    supported = 0
    for group in groups_of(rollouts):
        plans.append(planner.plan(group))
        supported += plans[-1].counts
        if progress:
            progress("groups planned", len(plans), total)
        if supported == config.limit:
            break
    if progress:
        progress("groups planned", len(plans), len(plans))
    if not supported:
        raise NothingToCompare(_why_nothing(plans, config))
    return plans, total - len(plans)


def _why_nothing(plans: Sequence[GroupPlan], config: StudyConfig) -> str:
    counts = _counts(plans, assignment_frame(plans), 0)
    dropped = ", ".join(f"{n} {reason}" for reason, n in counts["dropped"].items()) or "nothing"
    undefined = "; ".join(
        f"{name} {', '.join(f'{n} {reason}' for reason, n in reasons.items())} under {protocol}"
        for protocol, conditions in counts["undefined"].items()
        for name, reasons in conditions.items()
    )
    return (
        f"none of {len(plans)} groups keeps a success and a failure under all of {', '.join(config.conditions)}; "
        f"dropped: {dropped}; undefined units: {undefined or 'none'}. "
        "Ask for fewer peers, or bring groups with more successes and failures"
    )


def _keys(plan: GroupPlan) -> list[tuple[str, str]]:
    """(context id, rollout id) of the supported targets, each once."""
    return sorted({(t.context_id, t.rollout_id) for t in plan.targets if t.supported and t.context_id is not None})


def _score(
    plans: Sequence[GroupPlan], teacher: Teacher, store: StudyFolder | None, progress: Progress | None
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Token scores of all supported targets in plan order; what the folder holds already is not scored again."""
    parts, done, work = _scored_before(store)
    todo = [p for p in plans if p.supported and p.group.group_id not in done]
    total = sum(len(_keys(p)) for p in todo)
    waiting: list[tuple[str, pl.DataFrame]] = []
    mark, before, asked, rows = time.monotonic(), _work_of(teacher), 0, 0

    def flush() -> None:
        nonlocal mark, before, asked
        if not waiting:
            return
        shard = pl.concat([frame for _, frame in waiting])
        info = {
            "groups": [group_id for group_id, _ in waiting],
            "tokens_asked": asked,
            **{key: value - before[key] for key, value in _work_of(teacher).items()},
            "seconds": time.monotonic() - mark,
        }
        if store is not None:
            store.add_shard(shard, info)
        parts.append(shard)
        work.update({key: info[key] for key in WORK})
        waiting.clear()
        mark, before, asked = time.monotonic(), _work_of(teacher), 0

    try:
        for plan in todo:
            requests = group_requests(plan)
            waiting.append((plan.group.group_id, _score_group(plan, teacher, requests)))
            asked += sum(len(r.context_ids) + len(r.response_ids) - 1 for r in requests)
            rows += waiting[-1][1].height
            if progress:
                progress("rows scored", rows, total)
            if time.monotonic() - mark > SHARD_SECONDS:
                flush()
    finally:
        flush()  # Ctrl-C keeps every group that was finished
    order = [key for p in plans if p.supported for key in _keys(p)]
    place = pl.DataFrame(order, schema={"context_id": pl.String, "rollout_id": pl.String}, orient="row")
    tokens = place.join(
        pl.concat(parts), on=["context_id", "rollout_id"], how="left", validate="1:1", maintain_order="left"
    )
    if tokens["teacher_logprob"].null_count():
        raise StudyError(
            f"the scores in {store.path if store else 'memory'} are of other contexts than this version builds; "
            "remove the folder, or give another --output"
        )
    return tokens, {key: work[key] for key in WORK}


def _scored_before(store: StudyFolder | None) -> tuple[list[pl.DataFrame], set[str], Counter[str]]:
    """Token scores that the folder holds, the groups that they are of, and what they cost."""
    work: Counter[str] = Counter()
    if store is None:
        return [], set(), work
    if store.finished:
        info = store.read_info()
        work.update({key: info.get(key, 0) for key in WORK[:-1]} | {"seconds": info["seconds"]["scoring"]})
        return [store.read("tokens")], set(store.read("contexts")["group_id"]), work
    shards = store.read_shards()
    for _, info in shards:
        work.update({key: info.get(key, 0) for key in WORK})
    return [frame for frame, _ in shards], {g for _, info in shards for g in info["groups"]}, work


def _work_of(teacher: Teacher) -> dict[str, int]:
    return {"tokens_forwarded": teacher.tokens_forwarded, "cache_hits": teacher.cache_hits}


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


def _score_group(plan: GroupPlan, teacher: Teacher, requests: Sequence[ScoreRequest]) -> pl.DataFrame:
    """One group's rows of ``tokens.parquet``, from its ``group_requests``.

    Raises:
        FloatingPointError: the model gave a log-prob that is no number.
    """
    keys = _keys(plan)
    scores = teacher.score(requests)
    for request, score in zip(requests, scores, strict=True):
        if len(score.logprob) != len(request.response_ids) or not np.isfinite(score.logprob).all():
            raise FloatingPointError(
                f"teacher {teacher.name!r} gave log-probs that are not finite numbers for rollout "
                f"{request.rollout_id}; a model in half precision may overflow: try --dtype float32"
            )
    student = {r.rollout_id: s for r, s in zip(requests[len(keys) :], scores[len(keys) :], strict=True)}
    of_teacher, of_student = scores[: len(keys)], [student[rollout_id] for _, rollout_id in keys]
    return pl.DataFrame(
        {
            "context_id": [context_id for context_id, _ in keys],
            "rollout_id": [rollout_id for _, rollout_id in keys],
            "token_ids": _lists([r.response_ids for r in requests[: len(keys)]], np.int32),
            "teacher_logprob": _lists([score.logprob for score in of_teacher], np.float32),
            "student_logprob": _lists([score.logprob for score in of_student], np.float32),
            "entropy": _lists([score.entropy for score in of_teacher], np.float32),
            "student_entropy": _lists([score.entropy for score in of_student], np.float32),
        },
        schema=SCHEMAS["tokens"],
    )


def _lists(arrays: Sequence[np.ndarray | None], dtype: type) -> pl.Series:
    """A list column from arrays, through Arrow's offsets: a Python list of lists takes ten times as long."""
    mask = np.array([a is None for a in arrays])
    known = [np.empty(0, dtype) if a is None else np.asarray(a, dtype) for a in arrays]
    offsets = np.concatenate([[0], np.cumsum([len(a) for a in known])])
    lists = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(known)), mask=pa.array(mask))
    return pl.Series(values=pl.from_arrow(lists))


def _context_frame(plans: Iterable[GroupPlan], model: str, template_hash: str, text_prompts: bool) -> pl.DataFrame:
    schema = dict(SCHEMAS["contexts"])
    if text_prompts:
        schema["messages"] = pl.String()
    rows = [
        {
            "context_id": context_id,
            "condition": context.condition,
            "protocol": protocol,
            "group_id": context.group_id,
            "peers": [{"rollout_id": p.rollout_id, "role": p.role} for p in context.peers],
            "messages": context.messages if text_prompts else list(context.messages),
            "token_ids": context.token_ids.tolist(),
            "n_tokens": len(context.token_ids),
            "cuts": [{"section": c.section, "tokens_removed": c.tokens_removed} for c in context.cuts],
            "model": model,
            "template_hash": template_hash,
        }
        for plan in plans
        for context_id, (protocol, context) in plan.contexts.items()
    ]
    return pl.DataFrame(rows, schema=schema)


def _score_frame(contexts: pl.DataFrame, rollouts: pl.DataFrame, tokens: pl.DataFrame) -> pl.DataFrame:
    """``scores.parquet``: sums and means over a response's tokens, summed in float64."""
    wide = pl.List(pl.Float64)
    teacher, student = pl.col("teacher_logprob").cast(wide), pl.col("student_logprob").cast(wide)
    n = pl.col("token_ids").list.len()
    return (
        tokens.join(
            contexts.select("context_id", "condition", "protocol", "group_id"),
            on="context_id",
            how="left",
            validate="m:1",
            maintain_order="left",
        )
        .join(
            rollouts.select("rollout_id", "success"),
            on="rollout_id",
            how="left",
            validate="m:1",
            maintain_order="left",
        )
        .with_columns(n_tokens=n.cast(pl.Int64), teacher_logprob=teacher.list.sum(), student_logprob=student.list.sum())
        .with_columns(
            teacher_mean=pl.col("teacher_logprob") / pl.col("n_tokens"),
            student_mean=pl.col("student_logprob") / pl.col("n_tokens"),
            delta_sum=pl.col("teacher_logprob") - pl.col("student_logprob"),
        )
        .with_columns(delta_mean=pl.col("delta_sum") / pl.col("n_tokens"))
        .select(list(SCHEMAS["scores"]))
    )


def measure(assignments: pl.DataFrame, scores: pl.DataFrame, config: StudyConfig) -> dict[str, pl.DataFrame]:
    """Metrics and contrasts from tables that are already there.

    Returns:
        ``metrics`` and ``contrasts`` (design section 3), ``clustering`` (how alike the pairs of a group are),
        ``derived`` (what controls say when subtracted), ``calibration`` and ``reliability`` (of probabilities made of
        the scores, for protocols with listwise units), and ``group_values``: every metric of every group.
    """
    scored = assignments.filter("supported").join(
        scores.select("context_id", "rollout_id", *SCORES),
        on=["context_id", "rollout_id"],
        how="left",
        validate="m:1",
    )
    values = metrics.group_values(scored, SCORES)
    settings = {"draws": config.draws, "seed": config.seed, "confidence": config.confidence}
    return {
        "metrics": inference.metric_table(values, **settings),
        "contrasts": contrasts.contrast_families(values, config.reference, **settings),
        "clustering": contrasts.clustering_table(scored, SCORES),
        "derived": derived.derived_table(scored, **settings),
        **calibration.calibration_tables(scored, SCORES, seed=config.seed),
        "group_values": values,
    }


def _mixed(plan: GroupPlan) -> bool:
    return bool(plan.group.successes and plan.group.failures)


def _counts(plans: Sequence[GroupPlan], assignments: pl.DataFrame, not_looked_at: int) -> dict[str, Any]:
    """How many took part, and how many did not and why."""
    dropped: Counter[str] = Counter()
    for plan in plans:
        dropped.update(plan.dropped)
    units = assignments.group_by("protocol", "condition", "group_id", "unit_id").agg(
        pl.col("supported").any(),
        pl.col("context_id").is_null().any().alias("undefined"),
        pl.col("reason").drop_nulls().first(),
    )
    undefined: dict[str, dict[str, dict[str, int]]] = {}
    table = (
        units.filter("undefined")
        .group_by("protocol", "condition", "reason")
        .len()
        .sort("protocol", "condition", "reason")
    )
    for protocol, cond, reason, n in table.iter_rows():
        undefined.setdefault(protocol, {}).setdefault(cond, {})[reason] = n
    per_protocol = {}
    for (protocol,), part in units.group_by("protocol", maintain_order=False):
        one = part.filter(pl.col("condition") == part["condition"].min())
        per_protocol[protocol] = {
            "units": one.height,
            "units_compared": int(one["supported"].sum()),
            "units_of_one_class": int((one["reason"] == "one_class").sum()),
        }
    return {
        "groups": len(plans),
        "groups_compared": sum(p.counts for p in plans),
        "groups_without_common_support": sum(_mixed(p) and not p.counts for p in plans),
        "groups_not_looked_at": not_looked_at,
        "rollouts": sum(len(p.group.rollouts) for p in plans),
        "retokenised_responses": sum(not r.exact for p in plans for r in p.responses.values()),
        "shortened_contexts": sum(bool(c.cuts) for p in plans for _, c in p.contexts.values()),
        "dropped": dict(sorted(dropped.items())),
        "units": dict(sorted(per_protocol.items())),
        "undefined": undefined,
    }
