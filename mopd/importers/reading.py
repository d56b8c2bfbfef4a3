"""Reading foreign files without trusting them: streaming, bounded, and never raising for what a file
contains.

Every reader yields ``Item``s in file order. A fault of a line is an ``Item`` with an error, and reading goes
on; a fault of the whole file is one ``Item`` without a line.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import polars as pl

from mopd.importers.base import ImportOptions, Item, Record, RowError

__all__ = ["decode_line", "first_record", "load_json", "read_document", "read_jsonl", "read_parquet"]

UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
SNIFFED_LINES = 20


def megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:.3g} MiB"


def load_json(text: str) -> Any:
    """Any JSON value; NaN and Infinity are allowed, as Python writes them."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RowError("malformed JSON", f"{error.msg} at column {error.colno}") from None
    except RecursionError:
        raise RowError("malformed JSON", "nested too deeply") from None
    except ValueError as error:  # a number with more digits than Python converts
        raise RowError("malformed JSON", str(error).split(";")[0]) from None


def decode_line(raw: bytes) -> Record | None:
    """The JSON object on a line, or None if the line is blank."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RowError("not UTF-8", f"byte 0x{raw[error.start]:02x} at column {error.start + 1}") from None
    if not text.strip():
        return None
    value = load_json(text)
    if not isinstance(value, dict):
        raise RowError("a line is not a JSON object", type(value).__name__)
    return value


def lines_of(stream: IO[bytes], limit: int) -> Iterator[tuple[int, bytes | RowError]]:
    """Numbered lines, at most ``limit`` bytes each in memory; a longer one is skipped to its end."""
    number = 0
    while raw := stream.readline(limit + 1):
        number += 1
        length = len(raw)
        if length <= limit or raw.endswith(b"\n"):
            yield number, raw
            continue
        while not raw.endswith(b"\n") and (raw := stream.readline(limit)):
            length += len(raw)
        yield number, RowError("line too long", f"{megabytes(length)}, the limit is {megabytes(limit)}")


def read_jsonl(path: Path, options: ImportOptions) -> Iterator[Item]:
    """Records of a JSON Lines file; ``line`` is the line number."""
    try:
        with path.open("rb") as stream:
            start = stream.read(3)
            if start[:2] in UTF16:
                yield Item(line=None, error=RowError("not UTF-8", "the file starts with a UTF-16 mark; re-encode it"))
                return
            stream.seek(3 if start == codecs.BOM_UTF8 else 0)
            for number, raw in lines_of(stream, options.max_line_bytes):
                if isinstance(raw, RowError):
                    yield Item(line=number, error=raw)
                    continue
                try:
                    record = decode_line(raw)
                except RowError as error:
                    yield Item(line=number, error=error)
                    continue
                if record is not None:
                    yield Item(line=number, record=record)
    except OSError as error:
        yield Item(line=None, error=RowError("file cannot be read", error.strerror or str(error)))


def read_parquet(path: Path, options: ImportOptions) -> Iterator[Item]:
    """Rows of a parquet file; ``line`` is the row number, from 1."""
    try:
        with path.open("rb") as stream:
            frame = pl.read_parquet(stream)
    except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        yield Item(line=None, error=RowError("not a readable parquet file", first_line(error)))
        return
    for number, record in enumerate(frame.iter_rows(named=True), start=1):
        yield Item(line=number, record=record)


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def read_document(path: Path, options: ImportOptions, items_key: str) -> Iterator[Item]:
    """One JSON object with a long list under ``items_key``: yields the header first, then each entry.

    The header (every other top-level key that precedes the list) has ``line`` None. The object is taken apart
    key by key, so that a file cut in the middle still gives the entries before the cut; the cut is reported.
    """
    try:
        size = path.stat().st_size
        if size > options.max_document_bytes:
            limit = megabytes(options.max_document_bytes)
            yield Item(line=None, error=RowError("file too long", f"{megabytes(size)}, the limit is {limit}"))
            return
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        yield Item(line=None, error=RowError("file cannot be read", error.strerror or str(error)))
        return
    except UnicodeDecodeError as error:
        yield Item(line=None, error=RowError("not UTF-8", f"at byte {error.start}"))
        return
    header: dict[str, Any] = {}
    n_items = 0
    try:
        for key, value in walk_document(text, items_key):
            if key != items_key:
                header[key] = value
                continue
            if n_items == 0:
                yield Item(line=None, record=dict(header))
            n_items += 1
            if isinstance(value, dict):
                yield Item(line=n_items, record=value)
            else:
                yield Item(line=n_items, error=RowError(f"an entry of {items_key!r} is not an object"))
    except RowError as error:
        yield Item(line=n_items + 1 if n_items else None, error=error)
        return
    if n_items == 0:
        yield Item(
            line=None,
            error=RowError(f"no entries under {items_key!r}", "was the log written without samples?"),
        )


def walk_document(text: str, items_key: str) -> Iterator[tuple[str, Any]]:
    """``(key, value)`` of a JSON object's top level; entries of the list ``items_key`` come one by one."""
    decoder = json.JSONDecoder()
    position = expect(text, skip_space(text, 0), "{")
    while True:
        key, position = decode_at(decoder, text, position)
        if not isinstance(key, str):
            raise fault(text, position, "a key is not text")
        position = skip_space(text, expect(text, skip_space(text, position), ":"))
        if key == items_key and text[position : position + 1] == "[":
            position += 1
            while text[(at := skip_space(text, position)) : at + 1] != "]":
                value, position = decode_at(decoder, text, position)
                yield key, value
                position = skip_space(text, position)
                if text[position : position + 1] != "]":
                    position = expect(text, position, ",")
            position = skip_space(text, position) + 1
        else:
            value, position = decode_at(decoder, text, position)
            yield key, value
        position = skip_space(text, position)
        if text[position : position + 1] == "}":
            return
        position = expect(text, position, ",")


def skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def fault(text: str, position: int, what: str) -> RowError:
    return RowError("malformed JSON", f"{what} at text line {text.count(chr(10), 0, position) + 1}")


def expect(text: str, position: int, mark: str) -> int:
    if text[position : position + 1] != mark:
        raise fault(text, position, f"expected {mark!r}" if position < len(text) else "the file ends too early")
    return position + 1


def decode_at(decoder: json.JSONDecoder, text: str, position: int) -> tuple[Any, int]:
    try:
        return decoder.raw_decode(text, skip_space(text, position))
    except json.JSONDecodeError as error:
        raise fault(text, error.pos, error.msg) from None
    except (RecursionError, ValueError):
        raise fault(text, position, "a value that cannot be read") from None


def first_record(path: Path, options: ImportOptions) -> Record | None:
    """The first JSON object among the first lines, for telling formats apart."""
    for count, item in enumerate(read_jsonl(path, options)):
        if item.record is not None or count >= SNIFFED_LINES:
            return item.record
    return None
