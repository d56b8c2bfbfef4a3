"""A finished study in a fraction of its bytes, to ship or to send: what the app shows stays, closer than it shows it.

Nearly all bytes of a study are the log-probs and entropies of its tokens under each context, and most of those are the
noise of their last digits. A copy rounds them; the scores, which are their sums, and every table made of the scores
stay as they were computed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from mopd.store import StudyError, write_json

__all__ = ["LEFT_OUT", "STEPS", "small_copy"]

STEPS = {
    "teacher_logprob": 1 / 256,
    "student_logprob": 1 / 256,
    "entropy": 1 / 64,
    "student_entropy": 1 / 64,
}
"""What the columns of ``tokens`` are rounded to, nats. Powers of two leave the last bytes of a float empty."""
LEFT_OUT = ("similarity",)
"""Tables that no page of the app shows and that ``confounds`` sums up."""
LEVEL = 19  # of zstd: slow to write, as fast to read as any


def small_copy(study: str | Path, folder: str | Path) -> int:
    """Write the copy, ``study.json`` last, which says under ``small_copy`` what was rounded and left out.

    Args:
        study: folder of a finished study.
        folder: of the copy; new or empty.

    Returns:
        Bytes of the copy.

    Raises:
        StudyError: the study is not finished, or the folder holds something.
    """
    source, target = Path(study), Path(folder)
    if not (source / "study.json").is_file():
        raise StudyError(f"{source} holds no finished study: it has no study.json")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise StudyError(f"{target} holds something already; give a new folder for the copy")
    info = json.loads((source / "study.json").read_text(encoding="utf-8"))
    if "small_copy" in info:
        raise StudyError(f"{source} is such a copy itself; copy the whole study")
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(source.glob("*.parquet")):
        if file.stem not in LEFT_OUT:
            frame = pl.read_parquet(file)
            _write(_rounded(frame) if file.stem == "tokens" else frame, target / file.name)
    write_json(info | {"small_copy": {"steps_nats": STEPS, "left_out": list(LEFT_OUT)}}, target / "study.json")
    return sum(file.stat().st_size for file in target.iterdir())


def _rounded(tokens: pl.DataFrame) -> pl.DataFrame:
    return tokens.with_columns(
        pl.col(name).list.eval((pl.element() / step).round() * step).cast(tokens.schema[name])
        for name, step in STEPS.items()
        if name in tokens.columns
    )


def _write(frame: pl.DataFrame, path: Path) -> None:
    """One page a column, so that what a rollout has in common under all contexts is written once."""
    floats = [name for name, kind in frame.schema.items() if kind == pl.List(pl.Float32)]
    options: dict[str, Any] = {
        "use_dictionary": [name for name, kind in frame.schema.items() if kind == pl.String],
        "column_encoding": {f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in floats} or None,
    }
    table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
    pq.write_table(
        table,
        path,
        compression="zstd",
        compression_level=LEVEL,
        data_page_size=1 << 28,
        row_group_size=max(1, table.num_rows),
        **options,
    )
