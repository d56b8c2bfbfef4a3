"""The job of sampling: task items through a sampler and their verifiers into one file of rollouts.

Finished batches are kept in ``OUTPUT.parts/`` while the job runs, so that a kill loses the running batch at most and a
prompt that is finished is never sampled again. A file holds rollouts of one model under one set of settings: both are
written into it, and a job with others is refused.

The seed of a batch is a hash of the job's seed and of the batch's first prompt: a job that was broken off and goes on
samples what it would have sampled unbroken, provided that the batches are of the same size and the sampler is seeded.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import polars as pl

from mopd.generation.base import Completion, Sampler, Sampling
from mopd.rollouts import content_id, prompt_key, rollout_frame, validate_rollouts
from mopd.store import write_json, write_parquet
from mopd.tasks.base import TaskItem
from mopd.verifiers import check_sandbox, verify_many

__all__ = ["METADATA_KEY", "GenerationError", "GenerationJob", "generate", "settings_of"]

METADATA_KEY = "mopd.generation"
NOT_IDENTITY = ("engine",)  # another version of the engine goes on with the same file


class GenerationError(ValueError):
    """The job cannot run; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class GenerationJob:
    """What is sampled, and where it goes.

    Attributes:
        items: the prompts with what their verifiers need; ``(task, item_id)`` is unique.
        sampling: how tokens are drawn.
        caps: most response tokens of each task, in the place of ``sampling.max_tokens``; empty where that one number
            holds for all.
        group_size: rollouts of each prompt, at least 2.
        output: the parquet file.
        batch_size: most sequences sampled at a time; at least one group goes in a batch.
        allow_unsandboxed: judge code without bubblewrap where it is missing (``mopd.verifiers``).
    """

    items: Sequence[TaskItem]
    sampling: Sampling
    group_size: int
    output: Path
    batch_size: int = 64
    allow_unsandboxed: bool = False
    caps: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.group_size < 2:
            raise GenerationError(f"group_size must be at least 2, got {self.group_size}: peers need a group")
        if self.batch_size < 1:
            raise GenerationError(f"batch_size must be at least 1, got {self.batch_size}")
        if not self.items:
            raise GenerationError("there is no prompt to sample; raise --limit, or choose another task")
        if self.output.suffix != ".parquet":
            raise GenerationError(f"the output must end in .parquet, got {str(self.output)!r}")
        if self.caps and (without := sorted({item.task for item in self.items} - set(self.caps))):
            raise GenerationError(f"caps names no number of tokens for {', '.join(without)}; give one for every task")
        for task in self.caps:
            self.sampling_of(task)  # refuses a cap below 1

    def sampling_of(self, task: str) -> Sampling:
        """How tokens of this task's responses are drawn."""
        return replace(self.sampling, max_tokens=self.caps.get(task, self.sampling.max_tokens))


def generate(job: GenerationJob, sampler: Sampler, *, progress: Callable[[int], object] | None = None) -> pl.DataFrame:
    """Sample what is missing, judge it, and write the file.

    Args:
        job: what and where.
        sampler: the model.
        progress: called with the number of rollouts that have been finished since the last call; first with those
            that an earlier run left.

    Returns:
        The rollouts of the whole file, in ``ROLLOUT_SCHEMA``, in the order of the items.

    Raises:
        GenerationError: the output or its parts were sampled by another model or with other settings, the prompts
            are of two kinds, a prompt does not fit the model's window, or another job is writing the output.
        VerifierUnavailable: a verifier cannot run on this machine; nothing has been sampled then.
    """
    settings = _settings(job, sampler)
    ids = {_group_id(item, _identity(_settings_of_task(settings, item.task))): item for item in job.items}
    if len(ids) < len(job.items):
        raise GenerationError("two items have the same task, item_id and prompt; give each item an id of its own")
    _check(job, sampler)
    with _alone(job.output):
        parts = _Parts(job.output, settings)
        have = parts.group_ids()
        missing = {group_id: item for group_id, item in ids.items() if group_id not in have}
        tell = progress or (lambda _: None)
        tell((len(ids) - len(missing)) * job.group_size)
        for batch in _batches(missing, max(1, job.batch_size // job.group_size), job):
            parts.add(_run_batch(batch, job, sampler, settings))
            tell(len(batch) * job.group_size)
        return parts.finish(order=list(ids))


@contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Hold the output's lock, so that two jobs do not sample the same groups; the system frees it at a kill."""
    from filelock import FileLock, Timeout

    output.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(output.with_name(f".{output.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise GenerationError(
            f"another job is writing {output} at this moment; wait for its end, or give another --output"
        ) from None
    try:
        yield
    finally:
        lock.release()


def settings_of(path: Path) -> dict[str, Any] | None:
    """The model and settings that a file was sampled with; None if ``generate`` did not write it."""
    text = pl.read_parquet_metadata(path).get(METADATA_KEY)
    return None if text is None else json.loads(text)


def _settings(job: GenerationJob, sampler: Sampler) -> dict[str, Any]:
    settings = {**sampler.provenance(), **asdict(job.sampling), "group_size": job.group_size}
    if job.caps:
        settings["max_tokens"] = {task: job.caps[task] for task in sorted({item.task for item in job.items})}
    if not sampler.seeded:
        settings["seed"] = None
    return settings


def _identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in NOT_IDENTITY}


def _settings_of_task(settings: Mapping[str, Any], task: str) -> dict[str, Any]:
    """The settings with one number as ``max_tokens``: a group is named alike whatever other tasks are in the job."""
    cap = settings["max_tokens"]
    return {**settings, "max_tokens": cap[task] if isinstance(cap, Mapping) else cap}


def _group_id(item: TaskItem, identity: Mapping[str, Any]) -> str:
    """Names the item for the reader; the hash tells apart prompts, models and settings."""
    key = content_id(item.task, item.item_id, prompt_key(item.prompt), content_id(identity))
    return f"{item.item_id}@{key[:8]}"


def _check(job: GenerationJob, sampler: Sampler) -> None:
    """Find out before the first token what would break the job in its middle."""
    if len({isinstance(item.prompt, str) for item in job.items}) > 1:
        raise GenerationError(
            "some prompts are chat messages and some plain text; a file holds one kind, so sample them apart"
        )
    if sampler.window is not None:
        for item in job.items:
            length = len(sampler.codec.encode_prompt(item.prompt))
            cap = job.sampling_of(item.task).max_tokens
            if length + cap > sampler.window:
                raise GenerationError(
                    f"prompt {item.item_id!r} has {length} tokens, which with max_tokens {cap} is over the model's "
                    f"window of {sampler.window}; lower --max-tokens"
                )
    probes = {item.verifier: item for item in job.items}.values()
    verify_many([(i.verifier, "", i.reference) for i in probes], allow_unsandboxed=job.allow_unsandboxed)
    if "code" in {item.verifier for item in probes} and not job.allow_unsandboxed:
        check_sandbox()


def _batches(items: Mapping[str, TaskItem], size: int, job: GenerationJob) -> Iterator[dict[str, TaskItem]]:
    """In the order of the items; a batch is of one sampling."""
    for _, alike in groupby(items.items(), key=lambda pair: job.sampling_of(pair[1].task)):
        pairs = list(alike)
        for start in range(0, len(pairs), size):
            yield dict(pairs[start : start + size])


def _run_batch(
    batch: Mapping[str, TaskItem], job: GenerationJob, sampler: Sampler, settings: Mapping[str, Any]
) -> pl.DataFrame:
    """Sample and judge the groups of one batch."""
    items = list(batch.values())
    seed = int(content_id(job.sampling.seed, items[0].task, prompt_key(items[0].prompt))[:8], 16) >> 1
    sampling = job.sampling_of(items[0].task)
    sampled = sampler.sample([i.prompt for i in items], job.group_size, sampling=sampling, seed=seed)
    verdicts = iter(
        verify_many(
            [
                (item.verifier, completion.text, item.reference)
                for item, group in zip(items, sampled, strict=True)
                for completion in group
            ],
            allow_unsandboxed=job.allow_unsandboxed,
        )
    )
    rows = [
        {
            **_row(item, completion, _settings_of_task(settings, item.task)),
            "group_id": group_id,
            "rollout_id": f"{group_id}/{place:02d}",
            "reward": verdict.reward,
            "answer": verdict.answer,
            "feedback": verdict.feedback,
        }
        for (group_id, item), group in zip(batch.items(), sampled, strict=True)
        for place, (completion, verdict) in enumerate(zip(group, (next(verdicts) for _ in group), strict=True))
    ]
    return validate_rollouts(rollout_frame(rows, text_prompts=isinstance(items[0].prompt, str)), success_threshold=None)


def _row(item: TaskItem, completion: Completion, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "task": item.task,
        "prompt": item.prompt if isinstance(item.prompt, str) else [dict(m) for m in item.prompt],
        "response": completion.text,
        "response_ids": completion.ids,
        "finished": completion.finished,
        "policy": settings["model"],
        "sampling": {name: settings[name] for name in ("temperature", "top_p", "max_tokens", "seed")},
        "source": f"{item.metadata.get('source', item.task)}; sampled by {settings['engine']}",
    }


class _Parts:
    """The finished groups of a job: those in the output, and those in shards beside it."""

    def __init__(self, output: Path, settings: Mapping[str, Any]) -> None:
        self.output = output
        self.folder = output.with_name(f"{output.name}.parts")
        self.settings = dict(settings)
        if output.exists():
            theirs = settings_of(output)
            if theirs is None:
                raise GenerationError(f"{output} was not written by generate; give another --output")
            self._join(theirs, output)
        note = self.folder / "settings.json"
        if note.exists():
            self._join(json.loads(note.read_text(encoding="utf-8")), self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.settings, note)

    def _join(self, theirs: Mapping[str, Any], where: Path) -> None:
        """Take in the caps of tasks that are there and not in this job; refuse any other difference."""
        mine, other = _identity(self.settings), _identity(theirs)
        caps, others = mine["max_tokens"], other.get("max_tokens")
        if isinstance(caps, Mapping) and isinstance(others, Mapping):
            mine["max_tokens"] = self.settings["max_tokens"] = dict(sorted({**others, **caps}.items()))
            other["max_tokens"] = {**mine["max_tokens"], **others}
        differ = [
            f"{name} {other.get(name)!r} there, {mine.get(name)!r} now"
            for name in sorted({*mine, *other})
            if mine.get(name) != other.get(name)
        ]
        if differ:
            raise GenerationError(
                f"{where} holds rollouts that were sampled otherwise: {'; '.join(differ)}. One file is of one model "
                "and one set of settings: give another --output, or the settings of before"
            )

    def _frames(self) -> list[pl.DataFrame]:
        files = [self.output] if self.output.exists() else []
        return [pl.read_parquet(file) for file in (*files, *sorted(self.folder.glob("[0-9]*.parquet")))]

    def group_ids(self) -> set[str]:
        return {group_id for frame in self._frames() for group_id in frame["group_id"].unique()}

    def add(self, frame: pl.DataFrame) -> None:
        """Keep a finished batch."""
        number = len(list(self.folder.glob("[0-9]*.parquet")))
        write_parquet(frame, self.folder / f"{number:06d}.parquet")

    def finish(self, order: Sequence[str]) -> pl.DataFrame:
        """Write the output, the job's groups first and in its order, and remove the shards."""
        # A kill between the two steps of an earlier run leaves shards whose rows the output holds already.
        frame = pl.concat(self._frames()).unique("rollout_id", keep="first", maintain_order=True)
        rank = {group_id: place for place, group_id in enumerate(order)}
        frame = (
            frame.with_columns(_rank=pl.col("group_id").replace_strict(rank, default=len(rank)))
            .sort("_rank", maintain_order=True)
            .drop("_rank")
        )
        write_parquet(frame, self.output, metadata={METADATA_KEY: json.dumps(self.settings, sort_keys=True)})
        shutil.rmtree(self.folder)
        return frame
