"""What every importer works with: the row it hands back, the error it raises, the settings it is given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from mopd.rollouts import Message, RolloutError

__all__ = [
    "Decode",
    "FileContext",
    "ImportFailure",
    "ImportOptions",
    "Item",
    "PromptAs",
    "Record",
    "Row",
    "RowError",
]

PromptAs = Literal["messages", "text"]
Record = Mapping[str, Any]
MAX_LINE_BYTES = 64 * 2**20
MAX_DOCUMENT_BYTES = 2 * 2**30


class ImportFailure(RolloutError):
    """Nothing can be imported, or ``strict`` found a fault; the message says what and how to mend it."""


class RowError(Exception):
    """One record cannot become a rollout.

    ``reason`` is the kind of fault, by which the report counts; ``detail`` is what this record had.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason = reason
        self.detail = detail


class Decode(Protocol):
    """Turns token ids into text; the ``decode`` of a Hugging Face tokenizer is one."""

    def __call__(self, token_ids: list[int], /, *, skip_special_tokens: bool) -> str: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportOptions:
    """Settings of one import; see ``import_rollouts`` for their meaning."""

    prompt_as: PromptAs = "messages"
    success_threshold: float = 1.0
    reward_key: str | None = None
    decode: Decode | None = None
    policy: str | None = None
    task: str | None = None
    max_line_bytes: int = MAX_LINE_BYTES
    max_document_bytes: int = MAX_DOCUMENT_BYTES

    def __post_init__(self) -> None:
        if self.prompt_as not in ("messages", "text"):
            raise ImportFailure(f"prompt_as must be 'messages' or 'text', got {self.prompt_as!r}")
        for name in ("max_line_bytes", "max_document_bytes"):
            if getattr(self, name) < 1:
                raise ImportFailure(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class FileContext:
    """The file a record stands in.

    Attributes:
        path: the file.
        relative: its path below the imported folder, with forward slashes: equal on every machine.
        options: the settings of the import.
        step: the training step that the file's or a folder's name tells, or None.
        side: what a companion file says of the whole run (model, task, sampling), or the file's header of all
            its records, or empty.
    """

    path: Path
    relative: str
    options: ImportOptions
    step: int | None = None
    side: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One thing read from a file: a record, or the reason why there is none.

    ``line`` counts from 1: the line of a JSON Lines file, the row of a parquet file, the sample of a log.
    """

    line: int | None
    record: Record | None = None
    error: RowError | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One rollout as an importer understood it, before grouping.

    Attributes:
        group: whatever the format knows of the group beyond step and prompt (an example id), or None.
        notes: what was decided on the way (a number given as text, ...), counted by the report.
    """

    prompt: tuple[Message, ...] | str
    response: str
    reward: float | None = None
    response_ids: tuple[int, ...] | None = None
    finished: bool | None = None
    answer: str | None = None
    feedback: str | None = None
    policy: str | None = None
    step: int | None = None
    sampling: Mapping[str, float | int | None] | None = None
    task: str | None = None
    group: str | None = None
    notes: tuple[str, ...] = ()


Items = Iterator[Item]
