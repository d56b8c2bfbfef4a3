"""What the pages show, read from study folders; no number is computed here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl

__all__ = ["read_info", "read_table", "studies_in"]


def studies_in(root: Path) -> list[Path]:
    """Finished studies directly under a folder (or the folder itself), the newest first."""
    found = [root, *(p for p in root.iterdir() if p.is_dir())] if root.is_dir() else []
    finished = [p for p in found if (p / "study.json").is_file()]
    return sorted(finished, key=lambda p: (p / "study.json").stat().st_mtime, reverse=True)


def read_info(study: Path) -> dict[str, Any]:
    """``study.json``."""
    return json.loads((study / "study.json").read_text(encoding="utf-8"))


def read_table(study: Path, name: str) -> pl.DataFrame:
    """One table of a study."""
    return pl.read_parquet(study / f"{name}.parquet")
