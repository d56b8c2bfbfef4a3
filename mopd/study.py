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
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import polars as pl

from mopd import calibration, confounds, contrasts, derived, inference, metrics
from mopd.browsing import browsing_tables
from mopd.conditions import DEFAULT_CONDITIONS, Condition, condition, parse_conditions
from mopd.contexts import Templates
from mopd.controls import Pool
from mopd.peers import CONFOUNDED, PROTOCOLS, Protocol
from mopd.planning import GroupPlan, Planner, assignment_frame
from mopd.rollouts import Group, content_id, groups_of
from mopd.scoring import WORK, Engine, InProcess, Progress, group_requests, score_plans
from mopd.store import StudyFolder, frame_hash, git_commit, package_versions, write_json
from mopd.study_tables import context_frame, counts, score_frame
from mopd.teachers.base import Teacher
from mopd.token_tables import token_tables

__all__ = [
    "NothingToCompare",
    "Progress",
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


class NothingToCompare(ValueError):
    """No group has a success and a failure that all conditions can serve."""


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """What is compared and how.

    Attributes:
        conditions: names (``mopd.conditions``); every metric is on the pairs that all of them can serve.
        protocols: names (``mopd.peers.PROTOCOLS``).
        seed: of the order of peers, the splits and the bootstrap.
        limit: stop after this many groups with something to compare, tasks in turns; None takes all.
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

    def measuring(self) -> dict[str, Any]:
        """The settings of every interval."""
        return {"draws": self.draws, "seed": self.seed, "confidence": self.confidence}


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
    similarity: pl.DataFrame
    confounds: pl.DataFrame
    marks: pl.DataFrame
    localisation: pl.DataFrame
    info: Mapping[str, Any]


def fingerprint(rollouts: pl.DataFrame, teacher: Teacher, config: StudyConfig) -> str:
    """Hash of everything that the scores depend on: rollouts, teacher, settings, and the packages that compute them."""
    versions = {name: v for name, v in package_versions().items() if name in SCORING_PACKAGES}
    # The way in which a trie is read moves scores by rounding alone, and may differ from machine to machine.
    who = {name: value for name, value in teacher.provenance().items() if name != "mode"}
    return content_id(frame_hash(rollouts), who, config.scoring(), versions)


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
    engine: Engine | None = None,
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
        engine: who scores the groups; default ``mopd.scoring.InProcess``.

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
        engine = engine or InProcess()
        tokens, work = score_plans(plans, teacher, store, progress, engine)
        tables = _tables(rollouts, plans, tokens, teacher, config)
        info = {
            "fingerprint": identity,
            "arguments": dict(arguments or {}),
            "config": dataclasses.asdict(config) | {"protocols": list(chosen)},
            "confounded": sorted(CONFOUNDED & set(chosen)),
            "teacher": dict(teacher.provenance()),
            "engine": dict(engine.provenance()),
            "template_hash": config.templates.hash,
            "rollouts_hash": frame_hash(rollouts),
            "git_commit": git_commit(),
            "packages": package_versions(),
            "counts": counts(plans, tables["assignments"], not_looked_at),
            **{key: work[key] for key in WORK[:-1]},
            "seconds": {"scoring": work["seconds"], "this_run": time.monotonic() - started},
        }
        if store is not None:
            _save(store, tables | browsing_tables(tables, teacher.codec), info)
    return Study(**tables, info=info)


def _tables(
    rollouts: pl.DataFrame, plans: Sequence[GroupPlan], tokens: pl.DataFrame, teacher: Teacher, config: StudyConfig
) -> dict[str, pl.DataFrame]:
    """Every table of the study by its name."""
    assignments = assignment_frame(plans)
    text_prompts = rollouts.schema["prompt"] == pl.String
    contexts = context_frame(plans, teacher.name, config.templates.hash, text_prompts)
    scores = score_frame(contexts, rollouts, tokens)
    return {
        "rollouts": rollouts.filter(pl.col("group_id").is_in([p.group.group_id for p in plans])),
        "assignments": assignments,
        "contexts": contexts,
        "scores": scores,
        **token_tables(rollouts, assignments, contexts, tokens, teacher.codec, **config.measuring()),
        **measure(assignments, scores, config),
        **confounds.confound_tables(
            rollouts, assignments, contexts, scores, SCORES, config.reference, **config.measuring()
        ),
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
    """Plans of up to ``config.limit`` groups with something to compare, and how many groups were not looked at.

    In file order; under a limit the tasks take turns, so that a short study of a file of several is of all of them.
    """
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
    supported: Counter[str] = Counter()
    for group in _in_turns(rollouts, supported) if config.limit else groups_of(rollouts):
        plans.append(planner.plan(group))
        supported[group.task] += plans[-1].counts
        if progress:
            progress("groups planned", len(plans), total)
        if supported.total() == config.limit:
            break
    if progress:
        progress("groups planned", len(plans), len(plans))
    if not supported.total():
        raise NothingToCompare(_why_nothing(plans, config))
    return plans, total - len(plans)


def _in_turns(rollouts: pl.DataFrame, supported: Mapping[str, int]) -> Iterator[Group]:
    """Groups in file order, the next one always of a task of which the fewest have been ``supported`` so far."""
    tasks = rollouts.with_columns(pl.col("task").fill_null("")).partition_by("task", maintain_order=True)
    waiting = {part["task"][0]: groups_of(part) for part in tasks}
    while waiting:
        task = min(waiting, key=lambda name: supported.get(name, 0))
        group = next(waiting[task], None)
        if group is None:
            del waiting[task]
        else:
            yield group


def _why_nothing(plans: Sequence[GroupPlan], config: StudyConfig) -> str:
    seen = counts(plans, assignment_frame(plans), 0)
    dropped = ", ".join(f"{n} {reason}" for reason, n in seen["dropped"].items()) or "nothing"
    undefined = "; ".join(
        f"{name} {', '.join(f'{n} {reason}' for reason, n in reasons.items())} under {protocol}"
        for protocol, conditions in seen["undefined"].items()
        for name, reasons in conditions.items()
    )
    return (
        f"none of {len(plans)} groups keeps a success and a failure under all of {', '.join(config.conditions)}; "
        f"dropped: {dropped}; undefined units: {undefined or 'none'}. "
        "Ask for fewer peers, or bring groups with more successes and failures"
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
    settings = config.measuring()
    return {
        "metrics": inference.metric_table(values, **settings),
        "contrasts": contrasts.contrast_families(values, config.reference, **settings),
        "clustering": contrasts.clustering_table(scored, SCORES),
        "derived": derived.derived_table(scored, **settings),
        **calibration.calibration_tables(scored, SCORES, seed=config.seed),
        "group_values": values,
    }
