"""Rollouts and groups: the input of everything else.

A *rollout* is one sampled answer; a *group* is all rollouts of one prompt, sampled from one policy at one
training step. The table has one row per rollout (``ROLLOUT_SCHEMA``), is checked once when it enters
(``validate_rollouts``), and after that nothing downstream checks again.

Null means "not known" everywhere: a rollout that could not be judged has ``success = null``, which is not a
failure.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import polars as pl

__all__ = [
    "MESSAGE",
    "ROLLOUT_SCHEMA",
    "Group",
    "Message",
    "Prompt",
    "Rollout",
    "RolloutError",
    "content_id",
    "groups_of",
    "prompt_key",
    "read_rollouts",
    "rollout_frame",
    "validate_rollouts",
]


class Message(TypedDict):
    """One chat message."""

    role: str
    content: str


Prompt = tuple[Message, ...] | str
"""Chat messages for a chat model, plain text for a base model."""

MESSAGE = pl.Struct({"role": pl.String, "content": pl.String})

ROLLOUT_SCHEMA: dict[str, Any] = {
    "group_id": pl.String(),
    "rollout_id": pl.String(),
    "task": pl.String(),
    "prompt": pl.List(MESSAGE),  # or pl.String for plain-text prompts: one kind a file
    "response": pl.String(),
    "response_ids": pl.List(pl.Int32),  # exact if the sampler gave them, else null
    "finished": pl.Boolean(),  # true: ended by an end token; false: cut by the length limit; null: not known
    "reward": pl.Float64(),
    "success": pl.Boolean(),  # null: could not be judged
    "answer": pl.String(),  # what the verifier extracted
    "feedback": pl.String(),  # what the verifier has to say about a failure
    "policy": pl.String(),  # the model that sampled it
    "step": pl.Int64(),  # the training step it was sampled at
    "sampling": pl.Struct({"temperature": pl.Float64, "top_p": pl.Float64, "max_tokens": pl.Int64, "seed": pl.Int64}),
    "source": pl.String(),  # the tool, suite or file it came from
}
"""Columns and types of ``rollouts.parquet``."""

REQUIRED = ("group_id", "prompt", "response")
SUCCESS_THRESHOLD = 1.0
SHOWN_LINES = 3


class RolloutError(ValueError):
    """The rollout table is not one that can be studied; the message says what came and how to mend it."""


def content_id(*parts: object) -> str:
    """Hash of the parts' JSON form, as 16 hex digits: equal content gives an equal id on every machine."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def prompt_key(prompt: Prompt) -> str:
    """A string equal for equal prompts, for grouping and for comparing."""
    if isinstance(prompt, str):
        return prompt
    return json.dumps([[m["role"], m["content"]] for m in prompt], ensure_ascii=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """One sampled answer. ``success`` is ``reward >= threshold``, or None if it could not be judged."""

    rollout_id: str
    group_id: str
    response: str
    response_ids: tuple[int, ...] | None = None
    finished: bool | None = None
    reward: float | None = None
    success: bool | None = None
    answer: str | None = None
    feedback: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """All rollouts of one prompt, from one policy at one step, in file order."""

    group_id: str
    task: str
    prompt: Prompt
    rollouts: tuple[Rollout, ...]
    by_id: Mapping[str, Rollout] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_id", {r.rollout_id: r for r in self.rollouts})

    @property
    def successes(self) -> tuple[Rollout, ...]:
        return tuple(r for r in self.rollouts if r.success is True)

    @property
    def failures(self) -> tuple[Rollout, ...]:
        return tuple(r for r in self.rollouts if r.success is False)


def validate_rollouts(frame: pl.DataFrame, *, success_threshold: float | None = None) -> pl.DataFrame:
    """Check a table of rollouts and bring it to ``ROLLOUT_SCHEMA``.

    Args:
        frame: at least ``group_id, prompt, response`` and one of ``reward, success``. ``prompt`` is text or a list
            of ``{role, content}``. Columns that the schema does not know are left out.
        success_threshold: a rollout succeeds if its reward is at least this. None keeps a ``success`` column that
            holds a value, and otherwise means 1.0.

    Returns:
        A frame with the columns of ``ROLLOUT_SCHEMA`` in that order, rows in the order given. A NaN reward becomes
        null.

    Raises:
        RolloutError: columns are missing or of another type, ids are missing or appear twice, a prompt is empty or
            lacks a role or a content, there is no row, or a group mixes prompts, tasks, policies or training steps.
    """
    if success_threshold is not None and math.isnan(success_threshold):
        raise RolloutError("the success threshold is NaN, which no reward can reach; give a number")
    if frame.height == 0:
        raise RolloutError("the rollout table has no rows; give at least one group of two rollouts")
    missing = [name for name in REQUIRED if name not in frame.columns]
    if missing or not {"reward", "success"} & set(frame.columns):
        missing += [] if {"reward", "success"} & set(frame.columns) else ["reward (or success)"]
        raise RolloutError(
            f"the rollout table lacks {', '.join(missing)}; it has {', '.join(frame.columns)}. "
            "Rename the columns, or bring another tool's dump in with `python -m analysis.rollouts import` "
            "(mopd.importers.import_rollouts)"
        )
    frame = _cast(frame)
    frame = _label(frame, success_threshold)
    frame = _fill_ids(frame)
    _check_ids(frame)
    _check_prompts(frame)
    _check_groups(frame)
    return frame


def _cast(frame: pl.DataFrame) -> pl.DataFrame:
    columns = []
    for name, dtype in ROLLOUT_SCHEMA.items():
        if name not in frame.columns:
            columns.append(pl.lit(None, dtype=dtype).alias(name))
            continue
        have = frame.schema[name]
        want = pl.String() if name == "prompt" and have == pl.String else dtype
        columns.append(_cast_column(frame, name, want))
    return frame.select(columns)


def _cast_column(frame: pl.DataFrame, name: str, want: pl.DataType) -> pl.Series:
    column = frame[name]
    if column.dtype == want:
        return column
    numeric = want.is_numeric() and column.dtype == pl.String
    try:
        if numeric or (want == pl.Boolean and not (column.dtype.is_numeric() or column.dtype == pl.Null)):
            raise pl.exceptions.InvalidOperationError("text where a number or a truth value belongs")
        if name == "sampling" and isinstance(column.dtype, pl.Struct):
            column = _complete_struct(column, ROLLOUT_SCHEMA["sampling"])
        if name == "prompt" and isinstance(column.dtype, pl.List):
            column = _messages(column)
        cast = column.cast(want, strict=True)
        if cast.dtype != pl.String and not _same_values(column, cast):
            raise pl.exceptions.InvalidOperationError(f"it holds values that are not {want}")
        return cast
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        raise RolloutError(
            f"column {name!r} has type {column.dtype}, expected {want} ({reason}); convert it before, for instance "
            f"with frame.with_columns(pl.col({name!r}).cast(...))"
        ) from error


def _same_values(before: pl.Series, after: pl.Series) -> bool:
    """Whether a cast to whole numbers or truth values kept them: polars makes 1 of 1.5, and true of 0.3."""
    if isinstance(before.dtype, pl.List) and before.dtype.inner != pl.Null:
        before, after = before.explode(empty_as_null=False), after.explode(empty_as_null=False)
    if not before.dtype.is_numeric() or not (after.dtype.is_integer() or after.dtype == pl.Boolean):
        return True
    return bool((before.cast(pl.Float64) == after.cast(pl.Float64)).all())


def _messages(column: pl.Series) -> pl.Series:
    """Messages with role and content alone, whatever the order of their fields and whatever else they hold."""
    inner = column.dtype.inner  # pyright: ignore[reportAttributeAccessIssue]
    if not isinstance(inner, pl.Struct) or not {"role", "content"} <= {f.name for f in inner.fields}:
        return column
    wanted = pl.struct(pl.element().struct.field("role"), pl.element().struct.field("content"))
    return column.list.eval(wanted)


def _complete_struct(column: pl.Series, want: pl.Struct) -> pl.Series:
    have = {f.name for f in column.dtype.fields}  # pyright: ignore[reportAttributeAccessIssue]
    fields = [
        pl.col(column.name).struct.field(f.name) if f.name in have else pl.lit(None, dtype=f.dtype).alias(f.name)
        for f in want.fields
    ]
    return column.to_frame().select(pl.struct(fields).alias(column.name))[column.name]


def _label(frame: pl.DataFrame, threshold: float | None) -> pl.DataFrame:
    frame = frame.with_columns(pl.col("reward").fill_nan(None))
    if threshold is None and frame["success"].is_not_null().any():
        return frame
    if frame["reward"].is_null().all() and threshold is not None:
        raise RolloutError(
            f"a success threshold of {threshold} was given but no rollout has a reward; "
            "leave the threshold out to use the `success` column"
        )
    limit = SUCCESS_THRESHOLD if threshold is None else threshold
    return frame.with_columns(success=pl.col("reward") >= limit)


def _fill_ids(frame: pl.DataFrame) -> pl.DataFrame:
    """Give rows without a rollout id the hash of their group and their place in it."""
    if frame["rollout_id"].null_count() == 0:
        return frame
    numbered = frame.with_columns(_place=pl.int_range(pl.len()).over("group_id"))
    made = [
        rollout_id if rollout_id is not None else content_id(group_id, place, response)
        for rollout_id, group_id, place, response in numbered.select(
            "rollout_id", "group_id", "_place", "response"
        ).iter_rows()
    ]
    return frame.with_columns(rollout_id=pl.Series(made, dtype=pl.String))


def _check_ids(frame: pl.DataFrame) -> None:
    for name in ("group_id", "prompt"):
        if n := frame[name].null_count():
            raise RolloutError(f"{n} of {frame.height} rollouts have no {name}; every rollout needs one")
    twice = frame["rollout_id"].value_counts().filter(pl.col("count") > 1)["rollout_id"].sort().to_list()
    if twice:
        raise RolloutError(
            f"{len(twice)} rollout ids appear more than once, the first being {twice[0]!r}; "
            "ids must be unique in the file: leave the column out and they are made"
        )


def _check_prompts(frame: pl.DataFrame) -> None:
    if frame.schema["prompt"] == pl.String:
        empty = pl.col("prompt").str.strip_chars() == ""
        # read_ndjson makes text of messages when other lines of the file hold text
        coerced = frame.filter(pl.col("prompt").str.contains(r'^\s*\[\s*\{\s*"(role|content)"\s*:'))
        if coerced.height:
            raise RolloutError(
                f"{coerced.height} of {frame.height} prompts are the JSON of messages as text, the first in group "
                f"{coerced['group_id'][0]!r}; give messages as a list, and one kind of prompt a file"
            )
    else:
        message = pl.element().struct
        lacking = (message.field("role").is_null() | message.field("content").is_null()).any()
        broken = frame.filter(pl.col("prompt").list.eval(lacking).list.first().fill_null(False))
        if broken.height:
            raise RolloutError(
                f"{broken.height} of {frame.height} prompts have a message without a role or a content, the first in "
                f"group {broken['group_id'][0]!r}; every message needs both"
            )
        empty = pl.col("prompt").list.len() == 0
    nothing = frame.filter(empty)
    if nothing.height:
        raise RolloutError(
            f"{nothing.height} of {frame.height} prompts are empty, the first in group "
            f"{nothing['group_id'][0]!r}; every rollout needs the prompt that it answers"
        )


def _check_groups(frame: pl.DataFrame) -> None:
    keys = frame.select(
        "group_id",
        "task",
        "policy",
        "step",
        prompt=pl.Series([prompt_key(_prompt(p)) for p in frame["prompt"]], dtype=pl.String),
    )
    for name, mend in (
        ("prompt", "one group is one prompt: make group_id from the prompt"),
        ("task", "one group belongs to one task"),
        ("policy", "rollouts of different models are different groups: put the policy into group_id"),
        ("step", "rollouts of different training steps are different groups: put the step into group_id"),
    ):
        mixed = keys.group_by("group_id").agg(n=pl.col(name).n_unique()).filter(pl.col("n") > 1).sort("group_id")
        if mixed.height:
            group_id, n = mixed.row(0)
            raise RolloutError(f"{mixed.height} groups mix values of {name!r}: group {group_id!r} has {n}; {mend}")


def _prompt(value: Any) -> Prompt:
    if isinstance(value, str):
        return value
    return tuple(Message(role=m["role"], content=m["content"]) for m in value)


def groups_of(frame: pl.DataFrame) -> Iterator[Group]:
    """The groups of a validated table, in order of first appearance."""
    for part in frame.partition_by("group_id", maintain_order=True):
        first = part.row(0, named=True)
        yield Group(
            group_id=first["group_id"],
            task=first["task"] or "",
            prompt=_prompt(first["prompt"]),
            rollouts=tuple(_rollout(row) for row in part.iter_rows(named=True)),
        )


def _rollout(row: Mapping[str, Any]) -> Rollout:
    ids = row["response_ids"]
    return Rollout(
        rollout_id=row["rollout_id"],
        group_id=row["group_id"],
        response=row["response"] or "",
        response_ids=None if ids is None else tuple(ids),
        finished=row["finished"],
        reward=row["reward"],
        success=row["success"],
        answer=row["answer"],
        feedback=row["feedback"],
    )


def read_rollouts(path: str | Path, *, success_threshold: float | None = None) -> pl.DataFrame:
    """Read rollouts from a parquet or JSONL file, a folder that holds ``rollouts.parquet``, or an ``hf://`` path.

    Returns:
        The table, checked by ``validate_rollouts``.

    Raises:
        FileNotFoundError: nothing is at ``path``.
        RolloutError: the file cannot be read as rollouts.
    """
    return validate_rollouts(_read_frame(path), success_threshold=success_threshold)


def _read_frame(path: str | Path) -> pl.DataFrame:
    if isinstance(path, str) and path.startswith("hf://"):
        try:
            return pl.read_parquet(path) if path.endswith(".parquet") else pl.read_ndjson(path)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise RolloutError(f"{path} cannot be read from the hub: {str(error).splitlines()[0]}") from error
    file = Path(path)
    if file.is_dir():
        file = file / "rollouts.parquet"
    if not file.exists():
        raise FileNotFoundError(
            f"no rollouts at {str(file)!r}; give a .parquet or .jsonl file, or a folder with rollouts.parquet"
        )
    try:
        match file.suffix:
            case ".parquet":
                return pl.read_parquet(file)
            case ".jsonl" | ".ndjson":
                return pl.read_ndjson(file, infer_schema_length=None)
    except (pl.exceptions.PolarsError, OSError) as error:
        if file.suffix != ".parquet" and file.is_file():
            _refuse_malformed_lines(file)
        raise RolloutError(f"{file} cannot be read as {file.suffix[1:]}: {str(error).splitlines()[0]}") from error
    raise RolloutError(
        f"{file} is neither .parquet nor .jsonl; another tool's dump comes in with "
        "`python -m analysis.rollouts import` (mopd.importers.import_rollouts)"
    )


def _refuse_malformed_lines(file: Path) -> None:
    """Say which lines polars, which counts none, could not read; return if every line is a JSON object."""
    count, first = 0, []
    with file.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            reason = _line_fault(raw)
            count += reason is not None
            if reason is not None and len(first) < SHOWN_LINES:
                first.append(f"{file}:{number}: {reason}")
    if count:
        listed = "; ".join([*first, *([f"and {count - len(first)} more"] if count > len(first) else [])])
        raise RolloutError(
            f"{file} cannot be read as {file.suffix[1:]}, {count} malformed line{'s' if count > 1 else ''}: "
            f"{listed}. A rollout file is read whole or refused, and no line is left out: mend or delete those"
        )


def _line_fault(raw: bytes) -> str | None:
    """Why a line is no JSON object, or None if it is one or blank."""
    if not raw.strip():
        return None
    try:
        value = json.loads(raw.rstrip().decode("utf-8"), parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        return f"malformed JSON ({error.msg} at column {error.colno})"
    except UnicodeDecodeError as error:
        return f"not UTF-8 (byte 0x{raw[error.start]:02x} at column {error.start + 1})"
    except (ValueError, RecursionError) as error:
        return f"malformed JSON ({error})"
    return None if isinstance(value, dict) else f"not a JSON object but {type(value).__name__}"


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON number; write null")


def rollout_frame(rollouts: Iterable[Mapping[str, Any]], *, text_prompts: bool = False) -> pl.DataFrame:
    """Rows as a frame in ``ROLLOUT_SCHEMA``; absent keys become null."""
    schema: dict[str, Any] = dict(ROLLOUT_SCHEMA)
    if text_prompts:
        schema["prompt"] = pl.String()
    return pl.DataFrame(list(rollouts), schema=schema, strict=True)
