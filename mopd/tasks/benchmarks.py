"""Benchmarks by hub id or local file: the paper's sets, GSM8K, and the row format of lasgroup/SDPO.

``BENCHMARKS`` is the only place that lists them. ``load_benchmark`` reads one, keeps the good rows, and says of each
bad one which file, which line and why.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mopd.rollouts import content_id
from mopd.tasks.base import TaskItem
from mopd.tasks.rows import BadRow, HubSource, TaskDataError, read_hub, read_local
from mopd.tasks.schemas import (
    Rejected,
    RowReader,
    read_contest,
    read_deepmath,
    read_gsm8k,
    read_livecodebench,
    read_sciknoweval,
    read_sdpo,
    read_toolalpaca,
)

__all__ = ["BENCHMARKS", "Benchmark", "Loaded", "load_benchmark"]

_SCIKNOWEVAL = HubSource(repository="hicai-zju/SciKnowEval", config="v2", split="test")


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """A row of ``BENCHMARKS``.

    Attributes:
        hub: where it lies on the hub; None if it is not there in a form that ``datasets`` reads.
        read: from a row to the prompts in it.
    """

    name: str
    description: str
    hub: HubSource | None
    read: RowReader


BENCHMARKS: Mapping[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            name="deepmath",
            description="DeepMath-103K: hard problems with final answers",
            hub=HubSource(repository="zwhe99/DeepMath-103K", split="train"),
            read=read_deepmath,
        ),
        Benchmark(
            name="aime_2024",
            description="AIME 2024, parts I and II",
            hub=HubSource(repository="HuggingFaceH4/aime_2024", split="train"),
            read=read_contest,
        ),
        Benchmark(
            name="aime_2025",
            description="AIME 2025, parts I and II",
            hub=HubSource(repository="MathArena/aime_2025", split="train"),
            read=read_contest,
        ),
        Benchmark(
            name="hmmt_feb_2025",
            description="Harvard-MIT Mathematics Tournament, February 2025",
            hub=HubSource(repository="MathArena/hmmt_feb_2025", split="train"),
            read=read_contest,
        ),
        Benchmark(
            name="hmmt_nov_2025",
            description="Harvard-MIT Mathematics Tournament, November 2025",
            hub=HubSource(repository="MathArena/hmmt_nov_2025", split="train"),
            read=read_contest,
        ),
        Benchmark(
            name="livecodebench_v6",
            description="LiveCodeBench, the problems added in release 6",
            # Its own loader is a script, which datasets no longer runs; the release's file is plain JSON lines.
            hub=HubSource(repository="livecodebench/code_generation_lite", split="test", data_files=("test6.jsonl",)),
            read=read_livecodebench,
        ),
        *(
            Benchmark(
                name=f"sciknoweval_{name}",
                description=f"SciKnowEval level L3, multiple choice, {name}",
                hub=_SCIKNOWEVAL,
                read=partial(read_sciknoweval, domains=(name,)),
            )
            for name in ("biology", "chemistry", "physics", "materials")
        ),
        Benchmark(
            name="toolalpaca",
            description="ToolAlpaca: calls of simulated APIs (data/eval_simulated.json of tangqiaoyu/ToolAlpaca)",
            hub=None,
            read=read_toolalpaca,
        ),
        Benchmark(
            name="gsm8k",
            description="GSM8K: grade-school word problems",
            hub=HubSource(repository="openai/gsm8k", config="main", split="test"),
            read=read_gsm8k,
        ),
        Benchmark(
            name="sdpo",
            description="rows of lasgroup/SDPO: prompt, system, answer, tests, kind (mcq, tooluse, math, code)",
            hub=None,
            read=read_sdpo,
        ),
    )
}
"""Every benchmark by name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """What ``load_benchmark`` gives.

    Attributes:
        items: good prompts, in file order or, with a limit, in seeded order.
        bad: rows and prompts that were dropped, with the reason.
        rows: number of rows read, those of other levels or domains included.
    """

    items: tuple[TaskItem, ...]
    bad: tuple[BadRow, ...]
    rows: int


def load_benchmark(
    name: str, *, source: str | Path | None = None, limit: int | None = None, seed: int = 0, strict: bool = False
) -> Loaded:
    """Read a benchmark.

    Args:
        name: key of ``BENCHMARKS``.
        source: a local .jsonl, .json or .parquet file, or the hub id of a copy with the same columns; None for the
            benchmark's own place on the hub.
        limit: at most so many prompts, drawn without replacement by ``seed``.
        strict: refuse the whole set if any row is bad.

    Raises:
        ValueError: for an unknown name or a negative limit.
        TaskDataError: if the source cannot be read, or has a bad row and ``strict`` is set.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"unknown benchmark {name!r}; known benchmarks: {', '.join(BENCHMARKS)}")
    if limit is not None and limit < 0:
        raise ValueError(f"the number of prompts must be at least 0, got {limit}")
    benchmark = BENCHMARKS[name]
    items: dict[str, TaskItem] = {}
    bad: list[BadRow] = []
    rows = 0
    label, numbered = _open(benchmark, source)
    for number, row in numbered:
        rows += 1
        for result in [row] if isinstance(row, BadRow) else _items(benchmark, row, label, number):
            if isinstance(result, TaskItem) and result.item_id in items:
                result = BadRow(source=label, line=number, reason="repeats the prompt of an earlier row")
            if isinstance(result, BadRow):
                if strict:
                    raise TaskDataError(f"{result}. Mend the row, or load without strict to drop it")
                bad.append(result)
            else:
                items[result.item_id] = result
    chosen = list(items.values())
    if limit is not None and limit < len(chosen):
        chosen = random.Random(seed).sample(chosen, limit)
    return Loaded(items=tuple(chosen), bad=tuple(bad), rows=rows)


def _open(benchmark: Benchmark, source: str | Path | None) -> tuple[str, Iterator]:
    if source is None and benchmark.hub is None:
        raise TaskDataError(
            f"{benchmark.name} has no copy on the hub that is known to be complete: {benchmark.description}. "
            "Download it and give the path of the file as source"
        )
    path = Path(source) if source is not None else None
    if path is not None and (path.suffix in (".jsonl", ".json", ".parquet") or path.exists()):
        return str(path), read_local(path)
    hub = benchmark.hub
    if path is not None:
        split = hub.split if hub else "test"
        hub = HubSource(repository=str(source), split=split, config=hub.config if hub else None)
    assert hub is not None
    return hub.repository, read_hub(hub)


def _items(benchmark: Benchmark, row: Mapping, label: str, number: int) -> Iterator[TaskItem | BadRow]:
    try:
        for draft in benchmark.read(row):
            if isinstance(draft, Rejected):
                yield BadRow(source=label, line=number, reason=draft.reason)
                continue
            yield TaskItem(
                item_id=f"{benchmark.name}-{content_id(draft.prompt)[:12]}",
                task=benchmark.name,
                prompt=draft.prompt,
                verifier=draft.verifier,
                reference=draft.reference,
                metadata={**draft.metadata, "source": f"{label}#{number}"},
            )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        yield BadRow(source=label, line=number, reason=f"{type(error).__name__}: {error}"[:500])
