"""The formats that can be imported: one table, the only place that lists them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mopd.importers.base import FileContext, ImportOptions, Item, Record, Row
from mopd.importers.inspect_log import parse_inspect, read_inspect
from mopd.importers.nemo_rl import parse_nemo_rl
from mopd.importers.open_instruct import metadata_of as open_instruct_metadata
from mopd.importers.open_instruct import parse_open_instruct
from mopd.importers.reading import first_record, read_jsonl, read_parquet
from mopd.importers.slime import parse_slime, read_slime
from mopd.importers.trl import columns_of as trl_columns
from mopd.importers.trl import parse_trl
from mopd.importers.verifiers import metadata_of as verifiers_metadata
from mopd.importers.verifiers import parse_result, parse_trace
from mopd.importers.verl import parse_candidate, parse_verl

__all__ = ["FORMATS", "Format", "sniff_file"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """One kind of dump.

    Attributes:
        suffix: of its files.
        sniff: is a file whose first record this is of this format? An empty record tells nothing of the
            content.
        read: the file's items, in order.
        parse: one record to one row; raises ``RowError`` for a bad record and ``ImportFailure`` for a bad
            setting.
        side: what companion files say of the run, or the file as a whole of each record.
    """

    name: str
    description: str
    suffix: str
    sniff: Callable[[Record], bool]
    read: Callable[[Path, ImportOptions], Iterator[Item]]
    parse: Callable[[Record, FileContext], Row]
    side: Callable[[FileContext], Mapping[str, Any]] = lambda context: {}


def has(*keys: str) -> Callable[[Record], bool]:
    return lambda record: all(key in record for key in keys)


_TABLE = (
    Format(
        name="mopd-candidates",
        description="candidate_responses.jsonl of the released MOPD scripts",
        suffix=".jsonl",
        sniff=has("prompt", "response_text", "response_id"),
        read=read_jsonl,
        parse=parse_candidate,
    ),
    Format(
        name="verl",
        description="rollout_data_dir/*.jsonl of verl, SDPO and MOPD",
        suffix=".jsonl",
        sniff=has("input", "output"),
        read=read_jsonl,
        parse=parse_verl,
    ),
    Format(
        name="trl",
        description="completions_*.parquet of TRL's GRPOTrainer (log_completions)",
        suffix=".parquet",
        sniff=has("prompt", "completion"),
        read=read_parquet,
        parse=parse_trl,
        side=trl_columns,
    ),
    Format(
        name="verifiers",
        description="results.jsonl of verifiers (v0)",
        suffix=".jsonl",
        sniff=lambda record: has("prompt", "completion")(record) and ("example_id" in record or "reward" in record),
        read=read_jsonl,
        parse=parse_result,
        side=verifiers_metadata,
    ),
    Format(
        name="traces",
        description="traces.jsonl of verifiers v1 and prime-rl",
        suffix=".jsonl",
        sniff=has("task", "nodes"),
        read=read_jsonl,
        parse=parse_trace,
    ),
    Format(
        name="nemo-rl",
        description="train_data_step*.jsonl of NeMo-RL",
        suffix=".jsonl",
        sniff=has("content", "rewards"),
        read=read_jsonl,
        parse=parse_nemo_rl,
    ),
    Format(
        name="open-instruct",
        description="*_rollouts_*.jsonl of open-instruct (needs the tokenizer)",
        suffix=".jsonl",
        sniff=has("prompt_tokens", "response_tokens"),
        read=read_jsonl,
        parse=parse_open_instruct,
        side=open_instruct_metadata,
    ),
    Format(
        name="inspect",
        description="eval logs of inspect_ai in JSON",
        suffix=".json",
        sniff=has("eval"),
        read=read_inspect,
        parse=parse_inspect,
    ),
    Format(
        name="slime",
        description="save_debug_rollout_data files of slime (.pt)",
        suffix=".pt",
        sniff=lambda record: True,
        read=read_slime,
        parse=parse_slime,
    ),
)

FORMATS: dict[str, Format] = {row.name: row for row in _TABLE}
"""Name to format, in the order in which files are tried."""

OWN = has("group_id", "prompt", "response")
OWN_NAME = "our own rollout table"


def sniff_file(path: Path, options: ImportOptions) -> str | None:
    """The format of a file, ``OWN_NAME`` for a rollout table of ours, or None if it is none that we know."""
    candidates = [row for row in _TABLE if row.suffix == path.suffix]
    if not candidates:
        return None
    record = head_of(path, options)
    if record is None:
        return None
    if OWN(record):
        return OWN_NAME
    return next((row.name for row in candidates if row.sniff(record)), None)


def head_of(path: Path, options: ImportOptions) -> Record | None:
    """Enough of a file to tell its format: the first record, or the header of a log; None without any."""
    if path.suffix == ".pt":
        return {}
    if path.suffix == ".json":
        item = next(read_inspect_head(path, options), None)
    elif path.suffix == ".parquet":
        item = next(read_parquet(path, options), None)
    else:
        return first_record(path, options)
    return item.record if item else None


def read_inspect_head(path: Path, options: ImportOptions) -> Iterator[Item]:
    for item in read_inspect(path, options):
        log = item.record.get("_log") if item.record is not None else None
        yield Item(line=item.line, record=log) if log is not None else item
