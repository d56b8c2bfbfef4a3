"""Checkpoints that a kill cannot spoil.

transformers writes weights, optimiser, scheduler, random states and its own state into ``checkpoint-N``. We add the
averaged teacher and what the evidence has counted, and last of all a mark: a folder without the mark was being written
when the run died, and is passed over. Only then older checkpoints go, so there is a whole one at every moment.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mopd.store import write_json

__all__ = ["best_checkpoint", "latest", "mark_complete", "prune", "read_mark"]

MARK = "complete.json"


def step_of(checkpoint: Path) -> int:
    """The optimiser steps behind a checkpoint."""
    return int(checkpoint.name.rpartition("-")[2])


def whole(output: Path) -> list[Path]:
    """Checkpoints that were written to their end, the oldest first."""
    found = [p for p in output.glob("checkpoint-*") if p.name.rpartition("-")[2].isdigit() and (p / MARK).is_file()]
    return sorted(found, key=step_of)


def latest(output: Path) -> Path | None:
    """The last whole checkpoint of a run; None if there is none."""
    found = whole(output)
    return found[-1] if found else None


def mark_complete(checkpoint: Path, state: Mapping[str, Any]) -> None:
    """Say that a checkpoint is whole, with what the evidence has counted so far."""
    write_json(dict(state), checkpoint / MARK)


def read_mark(checkpoint: Path) -> dict[str, Any]:
    """What ``mark_complete`` was given."""
    return json.loads((checkpoint / MARK).read_text(encoding="utf-8"))


def best_checkpoint(output: Path) -> Path | None:
    """The checkpoint with the best evaluation so far, as ``best.json`` says; None before the first."""
    note = output / "best.json"
    if not note.is_file():
        return None
    return output / json.loads(note.read_text(encoding="utf-8"))["checkpoint"]


def prune(output: Path, keep: int) -> None:
    """Remove all but the last ``keep`` whole checkpoints and the best one, and what kills have left half done.

    A folder loses its mark before anything else, so that a kill on the way leaves none that looks whole.
    """
    stay = {p.name for p in whole(output)[-keep:]}
    best = best_checkpoint(output)
    if best is not None:
        stay.add(best.name)
    for folder in output.glob("checkpoint-*"):
        if folder.name not in stay:
            (folder / MARK).unlink(missing_ok=True)
            shutil.rmtree(folder)
