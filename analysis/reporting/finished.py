"""A finished study as it stands in its folder: its tables as far as they are there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from mopd.metrics import ALL_TASKS
from mopd.peers import CONFOUNDED, PROTOCOLS
from mopd.planted import SOURCE as PLANTED
from mopd.store import StudyError

__all__ = ["FinishedStudy"]

NEEDED = ("assignments", "contrasts", "group_values", "metrics", "rollouts")
READ = (*NEEDED, "calibration", "confounds", "derived", "localisation", "marks", "reliability")
"""Tables that are read whole; the others grow with the tokens, and ``rows`` looks up what is shown of them."""


@dataclass(frozen=True, kw_only=True)
class FinishedStudy:
    """Tables of a study folder by name, and ``study.json``. A table that was not made is not in ``tables``."""

    path: Path
    info: Mapping[str, Any]
    tables: Mapping[str, pl.DataFrame]

    @classmethod
    def read(cls, path: str | Path) -> FinishedStudy:
        """Read a folder.

        Raises:
            StudyError: it holds no finished study, or a table cannot be read.
        """
        path = Path(path)
        if not (path / "study.json").is_file():
            raise StudyError(
                f"{path} holds no finished study (no study.json); make one with "
                f"python -m analysis.signal_quality --output {path}"
            )
        try:
            info = json.loads((path / "study.json").read_text(encoding="utf-8"))
            tables = {name: pl.read_parquet(file) for name in READ if (file := path / f"{name}.parquet").is_file()}
        except (ValueError, OSError, pl.exceptions.PolarsError) as error:
            raise StudyError(f"{path} cannot be read: {error}; make the study again") from error
        missing = [name for name in NEEDED if name not in tables]
        if missing:
            raise StudyError(f"{path} lacks {', '.join(f'{name}.parquet' for name in missing)}; make the study again")
        return cls(path=path, info=info, tables=tables)

    def table(self, name: str) -> pl.DataFrame | None:
        """A table that may not have been made."""
        return self.tables.get(name)

    def rows(self, name: str, **wanted: str) -> pl.DataFrame | None:
        """The rows of a large table whose columns have these values; None if it was not made."""
        file = self.path / f"{name}.parquet"
        return pl.scan_parquet(file).filter(**wanted).collect() if file.is_file() else None

    @property
    def task(self) -> str | None:
        """The widest task: all of them together if there are several; None if nothing was compared."""
        tasks = self.tables["metrics"]["task"].unique().sort().to_list()
        return (ALL_TASKS if ALL_TASKS in tasks else tasks[0]) if tasks else None

    @property
    def tasks(self) -> list[str]:
        """The single tasks."""
        return [t for t in self.tables["metrics"]["task"].unique().sort().to_list() if t != ALL_TASKS]

    @property
    def fair_protocols(self) -> list[str]:
        """Protocols whose metrics are a test, in the order asked for."""
        return [name for name in self.info["config"]["protocols"] if name in PROTOCOLS and name not in CONFOUNDED]

    @property
    def protocol(self) -> str:
        """The first fair protocol, which figures and findings are about; "" if there is none."""
        return self.fair_protocols[0] if self.fair_protocols else ""

    @property
    def located(self) -> pl.DataFrame | None:
        """The rows of ``localisation`` that figures and findings are about: those of the widest task and the protocol,
        and those of planted errors, which have a protocol of their own and may be of fewer tasks."""
        table = self.table("localisation")
        if table is None:
            return None
        planted = table.filter(source=PLANTED)
        tasks = planted["task"].unique().sort().to_list()
        widest = ALL_TASKS if ALL_TASKS in tasks else "".join(tasks[:1])
        here = table.filter(pl.col("source") != PLANTED, task=self.task or "", protocol=self.protocol)
        return pl.concat([here, planted.filter(task=widest)])

    @property
    def confidence(self) -> float:
        """Of the intervals."""
        return float(self.info["config"]["confidence"])
