"""Token scores kept between studies, so that a study with one more condition pays only for what is new.

A score belongs to the weights, their configuration and dtype, the packages that compute it, and the token ids of
context and response; names, templates and studies do not matter. What is no finite number is handed on but not kept.
Scores are appended in shards that are written whole or not at all. Several processes may use one folder: each sees
what was there when it began.
"""

from __future__ import annotations

import hashlib
import time
import uuid
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import polars as pl

from mopd.rollouts import content_id
from mopd.store import package_versions, write_parquet
from mopd.teachers.base import ScoreRequest, Teacher, TokenScores
from mopd.tokens import Codec

__all__ = ["SHARD_SCHEMA", "CachedTeacher", "score_key"]

SHARD_SCHEMA: dict[str, Any] = {
    "key": pl.Binary(),
    "logprob": pl.List(pl.Float32),
    "entropy": pl.List(pl.Float32),
    "rank": pl.List(pl.Int32),
    "top_ids": pl.List(pl.Int32),  # [T, K] row by row; null unless they were asked for
    "top_logprob": pl.List(pl.Float32),
}
"""A row is a scored (context, response); log-probs and entropies in nats."""

NOT_IDENTITY = ("model", "tokenizer_and_template", "mode")
"""Provenance that does not change a score beyond rounding, given the ids."""
PACKAGES = ("mopd", "torch", "transformers")
"""Another version of them may compute otherwise. That of vLLM is in the teacher's own provenance."""
FLUSH_SECONDS = 10.0
SHARDS_IN_MEMORY = 8


def score_key(context_ids: np.ndarray, response_ids: np.ndarray) -> bytes:
    """Hash of the ids of context and response, 16 bytes."""
    digest = hashlib.sha256(len(context_ids).to_bytes(8, "little"))
    digest.update(np.ascontiguousarray(context_ids, dtype="<i4").tobytes())
    digest.update(np.ascontiguousarray(response_ids, dtype="<i4").tobytes())
    return digest.digest()[:16]


class CachedTeacher:
    """A teacher that asks another one only for what it has not said before.

    Use it as a context manager, or call ``flush`` at the end: scores are written every ``FLUSH_SECONDS``, and a killed
    process loses those since.

    Args:
        teacher: gives the scores that are not there.
        folder: shared by studies and models; each set of weights has a folder of its own in it.

    Raises:
        ValueError: the teacher does not know the hash of its weights.
    """

    def __init__(self, teacher: Teacher, folder: str | Path) -> None:
        provenance = teacher.provenance()
        if provenance.get("weights") is None:
            raise ValueError(
                f"the scores of {teacher.name!r} cannot be kept: its weights have no hash to know them by; load it by "
                "HFTeacher.load, or give HFTeacher a weights_hash"
            )
        self.teacher = teacher
        identity = {name: value for name, value in provenance.items() if name not in NOT_IDENTITY}
        versions = {name: version for name, version in package_versions().items() if name in PACKAGES}
        self.folder = Path(folder) / content_id(identity, versions, list(SHARD_SCHEMA))
        self.cache_hits = 0
        self._read = lru_cache(maxsize=SHARDS_IN_MEMORY)(pl.read_parquet)
        self._place = self._index()
        self._new: dict[bytes, TokenScores] = {}
        self._flushed = time.monotonic()

    @property
    def name(self) -> str:
        return self.teacher.name

    @property
    def codec(self) -> Codec:
        return self.teacher.codec

    @property
    def window(self) -> int | None:
        return self.teacher.window

    @property
    def tokens_forwarded(self) -> int:
        return self.teacher.tokens_forwarded

    def provenance(self) -> Mapping[str, Any]:
        """That of the teacher: where a score was kept changes nothing about it."""
        return self.teacher.provenance()

    def score(self, requests: Sequence[ScoreRequest]) -> list[TokenScores]:
        keys = [score_key(r.context_ids, r.response_ids) for r in requests]
        found = self._known(set(keys))
        self.cache_hits += sum(key in found for key in keys)
        missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in found}
        if missing:
            scored = dict(zip(missing, self.teacher.score(list(missing.values())), strict=True))
            self._new |= {key: scores for key, scores in scored.items() if _finite(scores)}
            found |= scored
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()
        return [found[key] for key in keys]

    def flush(self) -> None:
        """Write what is new as one shard."""
        if self._new:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"{uuid.uuid4().hex}.parquet"
            write_parquet(_shard(self._new), path)
            self._place |= {key: (path, row) for row, key in enumerate(self._new)}
            self._new = {}
        self._flushed = time.monotonic()

    def __enter__(self) -> CachedTeacher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()

    def _index(self) -> dict[bytes, tuple[Path, int]]:
        """Shard and row of every score in the folder."""
        place: dict[bytes, tuple[Path, int]] = {}
        for path in sorted(self.folder.glob("*.parquet")):
            try:
                if pl.read_parquet_schema(path) != SHARD_SCHEMA:
                    raise ValueError("it is no shard of scores")
                keys = pl.read_parquet(path, columns=["key"])["key"]
            except (OSError, ValueError, pl.exceptions.PolarsError) as error:
                warnings.warn(f"{path} is left out of the score cache: {error}", stacklevel=3)
                continue
            place |= {key: (path, row) for row, key in enumerate(keys)}
        return place

    def _known(self, keys: Iterable[bytes]) -> dict[bytes, TokenScores]:
        found = {key: self._new[key] for key in keys if key in self._new}
        shards: dict[Path, dict[bytes, int]] = {}
        for key in keys:
            if key not in found and key in self._place:
                path, row = self._place[key]
                shards.setdefault(path, {})[key] = row
        for path, rows in shards.items():
            part = self._read(path)[list(rows.values())]
            for key, values in zip(rows, part.iter_rows(named=True), strict=True):
                found[key] = _scores(values)
        return found


def _finite(scores: TokenScores) -> bool:
    """Whether all is numbers: an overflow or a fault of the hardware must not be remembered."""
    values = (scores.logprob, scores.entropy, scores.top_logprob)
    return all(value is None or bool(np.isfinite(value).all()) for value in values)


def _shard(scores: Mapping[bytes, TokenScores]) -> pl.DataFrame:
    columns = {
        name: [
            None if value is None else value.ravel().tolist() for value in (getattr(s, name) for s in scores.values())
        ]
        for name in SHARD_SCHEMA
        if name != "key"
    }
    return pl.DataFrame({"key": list(scores)} | columns, schema=SHARD_SCHEMA)


def _scores(row: Mapping[str, Any]) -> TokenScores:
    n = len(row["logprob"])

    def array(name: str, dtype: type) -> Any:
        return None if row[name] is None else np.array(row[name], dtype=dtype)

    top_ids, top_logprob = array("top_ids", np.int32), array("top_logprob", np.float32)
    return TokenScores(
        logprob=array("logprob", np.float32),
        entropy=array("entropy", np.float32),
        rank=array("rank", np.int32),
        top_ids=None if top_ids is None else top_ids.reshape(n, -1),
        top_logprob=None if top_logprob is None else top_logprob.reshape(n, -1),
    )
