"""What the pages show, read lazily from study folders; no number is computed here.

A study is opened by its name under a root folder that the command line gave. Names come from listing the roots, so a
path that a link brings along is never opened. Tables are scanned, and of the large ones only the rows of one group of
rollouts are read: a group's rows lie together, so a slice touches few of the file's row groups.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import streamlit as st

from mopd.browsing import group_board
from mopd.samples import SAMPLES

__all__ = [
    "SHIPPED",
    "Study",
    "board",
    "curves",
    "find_studies",
    "group_rows",
    "has_table",
    "head",
    "info",
    "names",
    "search_groups",
    "table",
    "tables",
    "token_row",
    "training_log",
]

SHIPPED = Path(__file__).parents[1] / "mopd" / "samples" / "studies"
MARKERS = ("study.json", "rollouts.parquet")
FRAMES = 64  # tables and slices kept in memory
KEY_COLUMNS = 200  # most groups whose rows are kept


@dataclass(frozen=True, kw_only=True)
class Study:
    """A folder with a study's tables, or with those of a training run. ``stamp`` changes when a table is rewritten."""

    name: str
    path: Path
    stamp: int

    @property
    def words(self) -> str:
        """The name and what it is of."""
        if self.path.parent == SHIPPED.resolve():
            kind = "shipped study"
        elif (self.path / "study.json").is_file():
            kind = "study"
        else:
            kind = "training run" if (self.path / "metrics.jsonl").is_file() else "rollouts"
        return f"{self.name} ({kind})"


def find_studies(roots: Sequence[Path]) -> dict[str, Study]:
    """Studies directly under the roots (or the roots themselves) by name, the newest of the first root first.

    Those that are shipped stand in the order of their samples: their times are those of the checkout. A folder that
    leads out of its root (a symbolic link) is left out.
    """
    found: dict[str, Study] = {}
    for root in roots:
        inside = sorted(root.iterdir()) if root.is_dir() else []
        folders = [p for p in (root, *inside) if _is_study(p, root)]
        shipped = root.resolve() == SHIPPED.resolve()
        for path in sorted(folders, key=_place if shipped else _stamp, reverse=not shipped):
            name = path.name if path.name and path.name not in found else str(path)
            found[name] = Study(name=name, path=path.resolve(), stamp=_stamp(path))
    return found


def _is_study(path: Path, root: Path) -> bool:
    within = path.resolve().is_relative_to(root.resolve())
    return within and path.is_dir() and any((path / name).is_file() for name in MARKERS)


def _place(path: Path) -> int:
    known = list(SAMPLES)
    return known.index(path.name) if path.name in known else len(known)


def _stamp(path: Path) -> int:
    return max((path / name).stat().st_mtime_ns for name in MARKERS if (path / name).is_file())


def _file(study: Study, name: str) -> Path:
    return study.path / f"{name}.parquet"


def has_table(study: Study, name: str) -> bool:
    """Whether the study has that table, in the folder itself."""
    path = _file(study, name)
    return path.is_file() and path.resolve().parent == study.path


def _scan(study: Study, name: str) -> pl.LazyFrame:
    if not has_table(study, name):
        return pl.LazyFrame()
    return pl.scan_parquet(_file(study, name), glob=False)


@st.cache_resource(max_entries=FRAMES, show_spinner=False)
def info(study: Study) -> Mapping[str, Any]:
    """``study.json``; empty where there is none."""
    path = study.path / "study.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


@st.cache_resource(max_entries=FRAMES, show_spinner=False)
def table(study: Study, name: str, **equal: str | None) -> pl.DataFrame:
    """The rows of a table whose columns have these values; no columns and no rows where the table is absent."""
    frame = _scan(study, name)
    if not frame.collect_schema():
        return pl.DataFrame()
    return frame.filter(*(pl.col(column).eq_missing(pl.lit(value)) for column, value in equal.items())).collect()


@st.cache_resource(max_entries=8, show_spinner="Reading the groups")
def board(study: Study) -> pl.DataFrame:
    """``groups.parquet``; made from rollouts and scores for a folder that has none, such as an older study's."""
    if has_table(study, "groups"):
        return table(study, "groups")
    if not has_table(study, "rollouts"):
        return pl.DataFrame()
    return group_board(table(study, "rollouts"), table(study, "scores") if has_table(study, "scores") else None)


@st.cache_resource(max_entries=FRAMES, show_spinner=False)
def _spans(study: Study, name: str) -> dict[str, tuple[int, int]]:
    """First row and one past the last row of each group in a table."""
    rows = (
        _scan(study, name)
        .select("group_id")
        .with_row_index("row")
        .group_by("group_id")
        .agg(first=pl.col("row").min(), last=pl.col("row").max())
        .collect()
    )
    return {group: (first, last + 1) for group, first, last in rows.iter_rows()}


@st.cache_resource(max_entries=KEY_COLUMNS, show_spinner=False)
def group_rows(study: Study, name: str, group_id: str) -> pl.DataFrame:
    """The rows of one group; no columns where the table is absent."""
    if not has_table(study, name):
        return pl.DataFrame()
    first, end = _spans(study, name).get(group_id, (0, 0))
    return _scan(study, name).slice(first, end - first).filter(pl.col("group_id") == group_id).collect()


def token_row(study: Study, name: str, group_id: str, context_id: str, rollout_id: str) -> dict[str, Any] | None:
    """The row of a (context, target) in ``tokens`` or a table of marks; None where it has none.

    ``tokens.parquet`` has no groups, but its rows stand in the order of ``scores.parquet``, so the same slice is read;
    where that is not so (a table from elsewhere), the whole file is searched.
    """
    if not has_table(study, name) or not {"context_id", "rollout_id"} <= set(_scan(study, name).collect_schema()):
        return None
    wanted = (pl.col("context_id") == context_id) & (pl.col("rollout_id") == rollout_id)
    frame = _scan(study, name)
    if has_table(study, "scores"):
        first, end = _spans(study, "scores").get(group_id, (0, 0))
        near = frame.slice(first, end - first).filter(wanted).collect()
        if near.height:
            return near.row(0, named=True)
    found = frame.filter(wanted).collect()
    return found.row(0, named=True) if found.height else None


@st.cache_resource(max_entries=FRAMES, show_spinner="Searching")
def search_groups(study: Study, words: str) -> frozenset[str]:
    """Groups whose prompt or any of whose responses holds the words, upper and lower case alike."""
    frame = _scan(study, "rollouts")
    chat = frame.collect_schema()["prompt"] != pl.String
    said = pl.col("prompt").list.eval(pl.element().struct.field("content")).list.join("\n", ignore_nulls=True)
    text = pl.concat_str(said if chat else pl.col("prompt"), pl.col("response"), separator="\n", ignore_nulls=True)
    hits = frame.filter(text.str.to_lowercase().str.contains(words.lower(), literal=True))
    return frozenset(hits.select(pl.col("group_id").unique()).collect()["group_id"])


@st.cache_resource(max_entries=8, show_spinner=False)
def training_log(study: Study) -> pl.DataFrame:
    """``metrics.jsonl`` of a training run, a row per step; no columns where there is none."""
    path = study.path / "metrics.jsonl"
    if not path.is_file() or path.resolve().parent != study.path:
        return pl.DataFrame()
    return pl.read_ndjson(path, infer_schema_length=None, ignore_errors=True)


@st.cache_resource(max_entries=FRAMES, show_spinner=False)
def names(study: Study, name: str, column: str) -> pl.Series:
    """The different values of a column, in order of appearance."""
    return _scan(study, name).select(pl.col(column).unique(maintain_order=True)).collect()[column]


HEAD = 1000


def tables(study: Study) -> list[str]:
    """Names of all tables in the folder."""
    return sorted(p.stem for p in study.path.glob("*.parquet") if has_table(study, p.stem))


@st.cache_resource(max_entries=FRAMES, show_spinner=False)
def head(study: Study, name: str) -> pl.DataFrame:
    """The first ``HEAD`` rows of a table."""
    return _scan(study, name).head(HEAD).collect()


@st.cache_resource(max_entries=8, show_spinner="Reading the run")
def curves(study: Study) -> pl.DataFrame:
    """Curves over training steps (``analysis.curves``); no rows for rollouts without steps."""
    if not has_table(study, "rollouts"):
        return pl.DataFrame()
    steps = _scan(study, "rollouts").select(pl.col("step").drop_nulls().len()).collect().item()
    if not steps:
        return pl.DataFrame()
    columns = ["group_id", "step", "prompt", "response", "success", "reward"]
    from analysis.curves import gap_curves, training_curves  # brings the measures of diversity, which load slowly

    parts = [training_curves(_scan(study, "rollouts").select(columns).collect())]
    if has_table(study, "scores"):
        parts.append(gap_curves(table(study, "scores"), board(study)))
    return pl.concat(parts)
