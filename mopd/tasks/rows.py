"""Rows of a data set, from a local file or from the Hugging Face hub, each with the place it came from.

A row that cannot be read becomes a ``BadRow`` instead of an exception, so that the others are kept. Local files may
be JSON lines, one JSON list, or parquet.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import polars as pl

__all__ = ["BadRow", "HubSource", "TaskDataError", "read_hub", "read_local"]

_SUFFIXES = (".jsonl", ".json", ".parquet")
_ANSWER_S = 10.0  # seconds that the hub has for a first answer


class TaskDataError(ValueError):
    """A data set cannot be read; the message says which, what was wrong, and how to mend it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BadRow:
    """A row that was dropped.

    Attributes:
        source: path or hub id.
        line: line of the file, or row of the table, from 1.
        reason: what is wrong with it.
    """

    source: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.source}, row {self.line}: {self.reason}"


@dataclass(frozen=True, kw_only=True, slots=True)
class HubSource:
    """A data set on the hub.

    Attributes:
        repository: id, such as ``openai/gsm8k``.
        split: split to read.
        config: name of the configuration, if the data set has several.
        data_files: files in the repository to read as JSON lines, for data sets whose own loader is a script.
    """

    repository: str
    split: str
    config: str | None = None
    data_files: tuple[str, ...] = field(default=())


def read_local(path: Path) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    """Numbered rows of a local file.

    Raises:
        TaskDataError: if there is no such file, its suffix is none of .jsonl, .json and .parquet, or it is not
            readable as a whole (a truncated parquet file, a broken JSON list).
    """
    if not path.is_file():
        raise TaskDataError(f"there is no file {path}; give an existing .jsonl, .json or .parquet file, or a hub id")
    if path.suffix not in _SUFFIXES:
        raise TaskDataError(f"{path} ends in {path.suffix!r}; expected one of {', '.join(_SUFFIXES)}")
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
    elif _is_json_list(path):
        yield from _list_rows(path)
    else:
        yield from _line_rows(path)


def read_hub(source: HubSource) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    """Numbered rows of a data set on the hub, through ``datasets``.

    Raises:
        TaskDataError: if it cannot be fetched; names the data set and the way around it.
    """
    import datasets

    silence = _silence(source.repository)
    try:
        with _offline(silence is not None):
            if source.data_files:
                files = [f"hf://datasets/{source.repository}/{name}" for name in source.data_files]
                table = datasets.load_dataset("json", data_files={source.split: files}, split=source.split)
            else:
                table = datasets.load_dataset(source.repository, name=source.config, split=source.split)
    except Exception as error:  # the hub, the network and the builders each raise their own
        why = error if silence is None else silence
        raise TaskDataError(
            f"could not load {source.repository} (configuration {source.config}, split {source.split!r}) from the hub: "
            f"{type(why).__name__}: {why}{'' if silence is None else ', and the local cache does not hold it'}. Check "
            "the connection and HF_ENDPOINT, or download the data and give the path of its .jsonl, .json or .parquet "
            "file as source"
        ) from error
    for number, row in enumerate(table, 1):
        yield number, dict(row)


def _silence(repository: str) -> Exception | None:
    """Why nobody on the hub answers a question about a data set; None where somebody does, if only to refuse.

    ``datasets`` by itself asks for a minute before it takes what its cache holds, or says that it holds nothing.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().dataset_info(repository, timeout=_ANSWER_S)
    except HfHubHTTPError:
        return None
    except Exception as error:  # of whatever client the hub's package uses
        return error
    return None


@contextmanager
def _offline(wanted: bool) -> Iterator[None]:
    """The hub's offline mode, which environment variables switch only before the first import."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or wanted
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise TaskDataError(f"{path} is not a readable parquet file: {error}") from error
    yield from enumerate(frame.iter_rows(named=True), 1)


def _is_json_list(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


def _list_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    try:
        rows = _parse(path.read_bytes())
    except ValueError as error:
        raise TaskDataError(f"{path} is not a readable JSON list: {error}") from error
    for number, row in enumerate(rows, 1):
        yield number, _checked(path, number, row)


def _line_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield number, _checked(path, number, _parse(line))
            except ValueError as error:
                yield number, BadRow(source=str(path), line=number, reason=f"not JSON in UTF-8: {error}")


def _checked(path: Path, number: int, row: object) -> dict[str, Any] | BadRow:
    if isinstance(row, Mapping):
        return dict(row)
    reason = f"expected a JSON object, got {type(row).__name__}"
    return BadRow(source=str(path), line=number, reason=reason)


def _parse(data: bytes) -> Any:
    """JSON values; NaN and Infinity are refused, because JSON has none and no gold answer is one.

    Raises:
        ValueError: for anything else than JSON in UTF-8, including nesting too deep to parse.
    """
    try:
        return json.loads(data.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")
