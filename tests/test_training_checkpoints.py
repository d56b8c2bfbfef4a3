"""Which checkpoints count, and which go."""

from __future__ import annotations

import json
from pathlib import Path

from training import checkpoints
from training.recorder import rewind


def make(output: Path, step: int, *, whole: bool = True) -> Path:
    folder = output / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text("weights")
    if whole:
        checkpoints.mark_complete(folder, {"solved": ["a"]})
    return folder


def test_a_checkpoint_that_was_not_written_to_its_end_is_passed_over(tmp_path: Path) -> None:
    assert checkpoints.latest(tmp_path) is None
    make(tmp_path, 9)
    make(tmp_path, 10)
    make(tmp_path, 100, whole=False)
    assert checkpoints.latest(tmp_path) == tmp_path / "checkpoint-10"
    assert checkpoints.read_mark(tmp_path / "checkpoint-10") == {"solved": ["a"]}
    assert checkpoints.step_of(tmp_path / "checkpoint-10") == 10


def test_the_last_and_the_best_stay(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        make(tmp_path, step)
    make(tmp_path, 5, whole=False)
    (tmp_path / "best.json").write_text(json.dumps({"checkpoint": "checkpoint-1"}))
    checkpoints.prune(tmp_path, keep=2)
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-3", "checkpoint-4"]
    assert checkpoints.best_checkpoint(tmp_path) == tmp_path / "checkpoint-1"


def test_metrics_are_wound_back_to_the_checkpoint_even_if_a_line_is_torn(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.5}\n{"step": 3, "loss": 0.4}\n{"step": 4, "lo')
    assert rewind(tmp_path, 2) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}]
    assert file.read_text().count("\n") == 2
    assert rewind(tmp_path, None) == []
    assert not file.exists()
