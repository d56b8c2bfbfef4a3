"""``import_rollouts``: files in, the rollout table and a provenance report out."""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl

from mopd.importers.base import (
    MAX_LINE_BYTES,
    Decode,
    FileContext,
    ImportFailure,
    ImportOptions,
    Item,
    PromptAs,
    Row,
    RowError,
)
from mopd.importers.formats import FORMATS, OWN_NAME, Format, sniff_file
from mopd.importers.report import ImportReport, Tally
from mopd.rollouts import ROLLOUT_SCHEMA, content_id, prompt_key

__all__ = ["Imported", "detect_format", "holds_own_table", "import_rollouts"]

STEP_IN_PATH = re.compile(r"(?:\A|[/_.-])(?:step|completions|global_step)[_-]?(\d{1,18})(?=[/_.-]|\Z)")
STEP_NAME = re.compile(r"\d{1,18}\Z")
# what the tools write beside their rollouts: read with them or of no use here, and no fault of the folder
COMPANION = re.compile(r"metadata\.json|.*_metadata\.jsonl|dataset_summary\.json|evidence_items\.jsonl")


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """The rollout table in ``ROLLOUT_SCHEMA`` (prompt is text if so imported), and how it came about."""

    frame: pl.DataFrame
    report: ImportReport


def import_rollouts(
    path: str | Path,
    *,
    format: str = "auto",
    strict: bool = False,
    prompt_as: PromptAs = "messages",
    success_threshold: float = 1.0,
    reward_key: str | None = None,
    decode: Decode | None = None,
    policy: str | None = None,
    task: str | None = None,
    max_line_bytes: int = MAX_LINE_BYTES,
) -> Imported:
    """Reads another tool's rollout dump.

    A group is all rollouts of one prompt at one training step, from one policy and one folder (and one
    example id, where the format has one); the same prompt at two steps is two groups. Ids are content hashes,
    so that two imports of the same files agree; equal rollouts of a group are told apart by their number
    among equals.

    Args:
        path: a file, a folder (searched to the bottom) or a glob pattern.
        format: a name in ``FORMATS``, or "auto" to tell it from the files.
        strict: raise at the first record that would be dropped.
        prompt_as: "messages" splits rendered prompt text into chat messages; "text" keeps it as it is.
        success_threshold: a rollout is a success if its reward is at least this.
        reward_key: which reward, where a dump has several: a column, "a+b", "scorer", "scorer/key".
        decode: a tokenizer's ``decode``, for dumps that hold token ids only.
        policy: the model that sampled the rollouts, where the dump does not tell it.
        task: name of the task, where the dump does not tell it; else the format's name is used.
        max_line_bytes: longer lines are skipped and reported; no more than this is held in memory for a line.

    Raises:
        ImportFailure: nothing was found or kept, the format is not known, a setting is missing, or ``strict``
            found something to drop. The message names file, line and reason.
    """
    options = ImportOptions(
        prompt_as=prompt_as,
        success_threshold=success_threshold,
        reward_key=reward_key,
        decode=decode,
        policy=policy,
        task=task,
        max_line_bytes=max_line_bytes,
    )
    root, files = find_files(path)
    tally = Tally()
    name, files = choose_format(format, root, files, options, tally)
    if strict and tally.counts:
        raise ImportFailure("; ".join(f"{d.reason}: {', '.join(d.shown())}" for d in tally.freeze()))
    kind = FORMATS[name]
    rows, notes, n_read = collect(files, root, kind, options, tally, strict=strict)
    frame = frame_of(rows, prompt_as)
    read = tuple(relative(file, root) for file in files)
    report = report_of(frame, kind, read, n_read, options, tally, notes)
    if frame.is_empty():
        raise ImportFailure(f"no rollout could be read from {path}\n{report.render()}")
    return Imported(frame=frame, report=report)


def collect(
    files: Sequence[Path], root: Path, kind: Format, options: ImportOptions, tally: Tally, *, strict: bool
) -> tuple[list[dict[str, Any]], Counter[str], int]:
    """Records of the rollout table, counted notes, and the number of records read; drops go to ``tally``."""
    rows: list[dict[str, Any]] = []
    notes: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    n_read = 0
    for file in files:
        context = context_of(file, root, options, kind)
        for item in kind.read(file, options):
            n_read += item.record is not None or item.line is not None
            try:
                row = row_of(item, context, kind)
            except RowError as error:
                where = context.relative if item.line is None else f"{context.relative}:{item.line}"
                if strict:
                    raise ImportFailure(f"{where}: {error}") from None
                tally.add(error.reason, where, error.detail)
                continue
            notes.update(row.notes)
            rows.append(flat(row, context, kind.name, seen))
    return rows, notes, n_read


def find_files(path: str | Path) -> tuple[Path, list[Path]]:
    """The folder that names are given relative to, and the files in natural order (step 2 before step 10)."""
    text = str(path)
    if "://" in text:
        raise ImportFailure(
            f"{text} is no local path; hf:// paths are read without an import, or fetch the files first"
        )
    start = Path(text)
    if start.is_file():
        return start.parent, [start]
    if start.is_dir():
        suffixes = {row.suffix for row in FORMATS.values()}
        beside = COMPANION.fullmatch
        found = [p for p in start.rglob("*") if p.suffix in suffixes and p.is_file() and not beside(p.name)]
        root = start
    else:
        found = [p for p in map(Path, glob.glob(text, recursive=True)) if p.is_file()]
        root = Path(*start.parts[: next((i for i, s in enumerate(start.parts) if glob.has_magic(s)), 0)])
    if not found:
        raise ImportFailure(f"nothing to import at {text}: no such file, or no .jsonl, .json, .parquet or .pt in it")
    return root, sorted(found, key=natural)


def natural(path: Path) -> list[tuple[int, int, str]]:
    """Sorting key under which numbers in names count as numbers."""
    pieces = re.split(r"(\d+)", path.as_posix())
    return [(1, int(p), "") if p.isdecimal() and p.isascii() and len(p) < 4000 else (0, 0, p) for p in pieces]


def relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def detect_format(path: str | Path) -> str:
    """The name of the format of a file, folder or pattern; raises ``ImportFailure`` if there is no single
    one.
    """
    root, files = find_files(path)
    return choose_format("auto", root, files, ImportOptions(), Tally())[0]


def holds_own_table(path: str | Path) -> bool:
    """Is this a rollout table of ours (a parquet or JSONL file, or a folder with ``rollouts.parquet``)?"""
    file = Path(path)
    file = file / "rollouts.parquet" if file.is_dir() else file
    return file.is_file() and sniff_file(file, ImportOptions()) == OWN_NAME


def choose_format(
    name: str, root: Path, files: list[Path], options: ImportOptions, tally: Tally
) -> tuple[str, list[Path]]:
    """The format's name and its files; files of no known format are counted as dropped."""
    if name != "auto":
        if name not in FORMATS:
            raise ImportFailure(f"unknown format {name!r}; known are auto, {', '.join(FORMATS)}")
        chosen = [f for f in files if len(files) == 1 or f.suffix == FORMATS[name].suffix]
        if not chosen:
            raise ImportFailure(f"no {FORMATS[name].suffix} file there, which format {name!r} is written in")
        return name, chosen
    kinds: dict[str, list[Path]] = {}
    for file in files:
        kind = sniff_file(file, options)
        if kind is None:
            tally.add("file of no known format", relative(file, root), first_fault(file, options))
        else:
            kinds.setdefault(kind, []).append(file)
    if set(kinds) == {OWN_NAME}:
        raise ImportFailure(f"{files[0]} is a rollout table already: it needs no import, give it to --rollouts")
    if len(kinds) == 1:
        return next(iter(kinds.items()))
    if kinds:
        counts = ", ".join(f"{kind} ({len(of_kind)} files)" for kind, of_kind in kinds.items())
        raise ImportFailure(
            f"files of several formats: {counts}; say which with format= (--format), or import them one by one"
        )
    known = "\n".join(f"  {row.name:16} {row.description}" for row in FORMATS.values())
    raise ImportFailure(
        f"{files[0]}: unknown format: {first_fault(files[0], options)}. Known formats, for format= (--format):\n{known}"
    )


def first_fault(file: Path, options: ImportOptions) -> str:
    """What is wrong with the beginning of a file whose format nobody recognised."""
    readers = {row.suffix: row.read for row in FORMATS.values() if row.suffix != ".pt"}
    item = next(readers[file.suffix](file, options), None) if file.suffix in readers else None
    if item is None:
        return "the file is empty" if file.suffix in readers else f"suffix {file.suffix!r}"
    if item.error is not None:
        return str(item.error) if item.line is None else f"line {item.line}: {item.error}"
    return f"fields {', '.join(map(str, item.record or {}))[:200]}"


def context_of(file: Path, root: Path, options: ImportOptions, kind: Format) -> FileContext:
    """The file's context, with the step that its path tells and what its companion files say."""
    name = relative(file, root)
    found = STEP_IN_PATH.findall(name.removesuffix(file.suffix))
    if not found and kind.name == "verl" and STEP_NAME.match(file.stem):
        found = [file.stem]
    step = found[-1] if found else None
    context = FileContext(path=file, relative=name, options=options, step=None if step is None else int(step))
    return replace(context, side=kind.side(context))


def row_of(item: Item, context: FileContext, kind: Format) -> Row:
    if item.error is not None:
        raise item.error
    assert item.record is not None  # an item has one or the other
    try:
        return kind.parse(item.record, context)
    except RecursionError:
        raise RowError("the record is nested too deeply") from None


def flat(row: Row, context: FileContext, format_name: str, seen: Counter[str]) -> dict[str, Any]:
    """The row as a record of the rollout table; ``seen`` counts equal rollouts."""
    options = context.options
    policy = row.policy or options.policy
    task = row.task or options.task or format_name
    folder = str(PurePosixPath(context.relative).parent)
    group_id = content_id("group", folder, policy, row.step, task, row.group, prompt_key(row.prompt))
    equal = content_id(group_id, row.response, row.reward)
    seen[equal] += 1
    return {
        "group_id": group_id,
        "rollout_id": content_id("rollout", equal, seen[equal] - 1),
        "task": task,
        "prompt": row.prompt if isinstance(row.prompt, str) else list(row.prompt),
        "response": row.response,
        "response_ids": None if row.response_ids is None else list(row.response_ids),
        "finished": row.finished,
        "reward": row.reward,
        "success": None if row.reward is None else row.reward >= options.success_threshold,
        "answer": row.answer,
        "feedback": row.feedback,
        "policy": policy,
        "step": row.step,
        "sampling": None if row.sampling is None else dict(row.sampling),
        "source": f"{format_name}:{context.relative}",
    }


def frame_of(rows: Sequence[dict[str, Any]], prompt_as: PromptAs) -> pl.DataFrame:
    """The table, with the rollouts of a group beside one another, groups by first appearance."""
    schema = dict(ROLLOUT_SCHEMA)
    if prompt_as == "text":
        schema["prompt"] = pl.String()
    order: dict[str, int] = {}
    for row in rows:
        order.setdefault(row["group_id"], len(order))
    arranged = sorted(rows, key=lambda row: order[row["group_id"]])
    return pl.DataFrame(arranged, schema=schema, orient="row")


def report_of(
    frame: pl.DataFrame,
    kind: Format,
    files: tuple[str, ...],
    n_read: int,
    options: ImportOptions,
    tally: Tally,
    notes: Counter[str],
) -> ImportReport:
    sizes = Counter(frame.group_by("group_id").len()["len"].to_list())
    return ImportReport(
        format=kind.name,
        description=kind.description,
        files=files,
        rows_read=n_read,
        rows_kept=frame.height,
        group_sizes=dict(sorted(sizes.items())),
        steps=tuple(frame["step"].drop_nulls().unique().sort().to_list()),
        n_without_step=frame["step"].null_count(),
        success=count(frame, "success", True),
        failure=count(frame, "success", False),
        unjudged=frame["success"].null_count(),
        success_threshold=options.success_threshold,
        n_with_ids=frame.height - frame["response_ids"].null_count(),
        n_finished=count(frame, "finished", True),
        n_cut=count(frame, "finished", False),
        prompt_as=options.prompt_as,
        dropped=tally.freeze(),
        notes=dict(notes.most_common()),
    )


def count(frame: pl.DataFrame, column: str, value: bool) -> int:
    return frame.filter(pl.col(column) == value).height
