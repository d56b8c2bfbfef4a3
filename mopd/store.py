"""Study folders: table schemas, atomic writes, provenance.

A table is written to a temporary file beside its place and renamed, so a reader sees all of it or nothing. Scores are
first written in shards while a study runs; the finished tables replace them.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import polars as pl

from mopd.rollouts import MESSAGE

__all__ = [
    "SCHEMAS",
    "StudyError",
    "StudyFolder",
    "frame_hash",
    "git_commit",
    "package_versions",
    "read_shard",
    "write_json",
    "write_parquet",
    "write_shard",
]

ROW_GROUP_BYTES = 4 << 20
_PEERS = pl.List(pl.Struct({"rollout_id": pl.String, "role": pl.String}))
_CUTS = pl.List(pl.Struct({"section": pl.String, "tokens_removed": pl.Int64}))

SCHEMAS: dict[str, dict[str, Any]] = {
    # One row per (protocol, condition, unit, target): its context, and why it takes no part.
    "assignments": {
        "task": pl.String(),
        "protocol": pl.String(),
        "condition": pl.String(),
        "group_id": pl.String(),
        "unit_id": pl.String(),
        "rollout_id": pl.String(),
        "success": pl.Boolean(),
        "context_id": pl.String(),
        "reason": pl.String(),
        "supported": pl.Boolean(),
    },
    "contexts": {
        "context_id": pl.String(),
        "condition": pl.String(),
        "protocol": pl.String(),
        "group_id": pl.String(),
        "peers": _PEERS,
        "messages": pl.List(MESSAGE),  # or pl.String, as the rollouts' prompt
        "token_ids": pl.List(pl.Int32),
        "n_tokens": pl.Int64(),
        "cuts": _CUTS,
        "model": pl.String(),
        "template_hash": pl.String(),
    },
    "scores": {
        "context_id": pl.String(),
        "rollout_id": pl.String(),
        "condition": pl.String(),
        "protocol": pl.String(),
        "group_id": pl.String(),
        "success": pl.Boolean(),
        "n_tokens": pl.Int64(),
        "teacher_logprob": pl.Float64(),
        "teacher_mean": pl.Float64(),
        "student_logprob": pl.Float64(),
        "student_mean": pl.Float64(),
        "delta_sum": pl.Float64(),
        "delta_mean": pl.Float64(),
    },
    "tokens": {
        "context_id": pl.String(),
        "rollout_id": pl.String(),
        "token_ids": pl.List(pl.Int32),
        "teacher_logprob": pl.List(pl.Float32),
        "student_logprob": pl.List(pl.Float32),
        "entropy": pl.List(pl.Float32),
        "student_entropy": pl.List(pl.Float32),
        "teacher_rank": pl.List(pl.Int32),
        "student_rank": pl.List(pl.Int32),
    },
}
"""Columns of the tables of design section 3 (rollouts: ``mopd.rollouts.ROLLOUT_SCHEMA``), log-probs and
entropies in nats, ranks in the vocabulary from 1."""


class StudyError(ValueError):
    """The study folder cannot be used; the message says why and what to do."""


def write_parquet(frame: pl.DataFrame, path: Path, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write a table so that a reader sees the whole of it or the old one; ``metadata`` goes into the file's footer."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        frame.write_parquet(
            partial,
            compression="zstd",
            row_group_size=_rows_per_group(frame),
            metadata=dict(metadata) if metadata else None,
        )
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _rows_per_group(frame: pl.DataFrame) -> int:
    """Rows of about ``ROW_GROUP_BYTES`` in memory, so that a reader of one group of rollouts leaves the rest alone."""
    return max(16, ROW_GROUP_BYTES * frame.height // max(int(frame.estimated_size()), 1))


def write_json(value: Any, path: Path) -> None:
    """Write JSON so that a reader sees the whole of it or the old one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_shard(folder: Path, name: str, frame: pl.DataFrame, info: Mapping[str, Any]) -> None:
    """Write token scores and, last, the mark that makes them count: a shard of that name is whole or not there."""
    write_parquet(frame, folder / f"{name}.parquet")
    write_json(dict(info), folder / f"{name}.json")


def read_shard(folder: Path, name: str) -> tuple[pl.DataFrame, dict[str, Any]] | None:
    """Token scores and what their mark says; None if there is no whole shard of that name."""
    mark = folder / f"{name}.json"
    if not mark.exists():
        return None
    return pl.read_parquet(mark.with_suffix(".parquet")), json.loads(mark.read_text(encoding="utf-8"))


def _is_partial(file: Path) -> bool:
    """Whether a run that was killed left this file half written."""
    return file.name.startswith(".") and file.name.endswith(".partial")


def frame_hash(frame: pl.DataFrame) -> str:
    """Hash of a table's rows and column names, 16 hex digits."""
    return hashlib.sha256(frame.write_ndjson().encode("utf-8", "surrogatepass")).hexdigest()[:16]


def git_commit() -> str | None:
    """Commit of the checkout this code runs from, with ``+modified`` if tracked files differ from it.

    None outside a checkout, also where the package is installed somewhere inside another project's.
    """
    here = Path(__file__).resolve()
    try:
        _git("ls-files", "--error-unmatch", here.name, cwd=here.parent)
        commit = _git("rev-parse", "HEAD", cwd=here.parent)
        changed = _git("status", "--porcelain", "--untracked-files=no", cwd=here.parent)
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}+modified" if changed else commit


def _git(*arguments: str, cwd: Path) -> str:
    done = subprocess.run(["git", *arguments], cwd=cwd, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def package_versions() -> dict[str, str]:
    """Versions of the packages that a score can depend on, those that are installed."""
    found = {}
    for name in (
        "mopd",
        "numpy",
        "polars",
        "scikit-learn",
        "scipy",
        "torch",
        "transformers",
        "tokenizers",
        "vllm",
    ):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


class StudyFolder:
    """The folder of one study, owned by a fingerprint of everything that its scores depend on.

    Args:
        path: the folder; made if it is not there.
        fingerprint: of the study that is about to run.
        resume: go on with what is there.

    Raises:
        StudyError: the folder holds another study, or this one and ``resume`` is false, or files of something else.
    """

    _descriptor: int | None = None  # of the folder, while it is locked

    def __init__(self, path: str | Path, fingerprint: str, *, resume: bool) -> None:
        self.path = Path(path)
        self.shards = self.path / "shards"
        if self.path.is_dir():
            self._lock()
        try:
            self._claim(fingerprint, resume)
        except BaseException:
            self.close()
            raise
        self._lock()

    def _lock(self) -> None:
        """Keep other processes out until ``close``; the system gives the lock back when a process dies."""
        if self._descriptor is not None:
            return
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise StudyError(
                f"another process is working in {self.path}; wait for it, or give another --output"
            ) from None
        self._descriptor = descriptor

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes in."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _claim(self, fingerprint: str, resume: bool) -> None:
        owner = self.path / "fingerprint.json"
        if self.path.is_file():
            raise StudyError(f"{self.path} is a file; give a folder for the study")
        if owner.exists():
            theirs = self._owner(owner)
            if theirs != fingerprint:
                raise StudyError(
                    f"{self.path} holds another study (fingerprint {theirs}, this one is {fingerprint}): its rollouts, "
                    "model or settings differ; give another --output"
                )
            if not resume:
                raise StudyError(f"{self.path} holds this study already; go on with --resume, or give another --output")
        else:
            self.path.mkdir(parents=True, exist_ok=True)
            # what a run killed before it could claim the folder leaves is no reason to refuse it
            if any(not _is_partial(file) for file in self.path.iterdir()):
                raise StudyError(f"{self.path} is not empty and holds no study; give another --output")
            write_json({"fingerprint": fingerprint}, owner)
        self.shards.mkdir(exist_ok=True)
        for file in (*self.path.iterdir(), *self.shards.iterdir()):
            if _is_partial(file):
                file.unlink(missing_ok=True)

    @staticmethod
    def _owner(file: Path) -> str:
        try:
            return str(json.loads(file.read_text(encoding="utf-8"))["fingerprint"])
        except (ValueError, KeyError, TypeError) as error:
            raise StudyError(f"{file} is not the mark of a study; give another --output") from error

    def add_shard(self, frame: pl.DataFrame, info: Mapping[str, Any]) -> None:
        """Keep finished groups' token scores; ``info`` is written last and marks the shard as whole."""
        write_shard(self.shards, f"{len(list(self.shards.glob('*.json'))):06d}", frame, info)

    def read_shards(self) -> list[tuple[pl.DataFrame, dict[str, Any]]]:
        """All whole shards, in the order in which they were written."""
        marks = sorted(self.shards.glob("*.json"))
        return [shard for mark in marks if (shard := read_shard(self.shards, mark.stem)) is not None]

    def drop_shards(self) -> None:
        """Remove the shards once the finished tables stand."""
        for file in self.shards.glob("*"):
            file.unlink()
        self.shards.rmdir()

    @property
    def finished(self) -> bool:
        """Whether the tables are complete: ``study.json`` is written last."""
        return (self.path / "study.json").exists()

    def read_info(self) -> dict[str, Any]:
        """``study.json`` of a finished study."""
        return json.loads((self.path / "study.json").read_text(encoding="utf-8"))

    def write(self, name: str, frame: pl.DataFrame) -> None:
        """Write the table ``name`` (``scores`` and so on)."""
        write_parquet(frame, self.path / f"{name}.parquet")

    def read(self, name: str) -> pl.DataFrame:
        """Read the table ``name``."""
        return pl.read_parquet(self.path / f"{name}.parquet")
