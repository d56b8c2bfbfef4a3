"""``metrics.jsonl`` and the collapse alarm, fed by what the trainer logs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback

from training.alarm import CollapseAlarm
from training.config import OutputConfig

__all__ = ["Recorder", "rewind"]

FILE = "metrics.jsonl"


def rewind(output: Path, step: int | None) -> list[dict[str, Any]]:
    """The lines up to a step, after the rest (or, without a step, the file) has been removed."""
    file = output / FILE
    if step is None or not file.exists():
        file.unlink(missing_ok=True)
        return []
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    kept = [line for line in lines if line["step"] <= step]
    partial = file.with_name(f".{FILE}.partial")
    partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    partial.replace(file)
    return kept


class Recorder(TrainerCallback):
    """Writes a line for every log, and raises the alarm.

    Args:
        run: the thresholds, and where to write.
        before: lines of the run that is resumed, which the alarm must know.
    """

    def __init__(self, run: OutputConfig, before: list[dict[str, Any]]) -> None:
        self.run = run
        self.alarm = CollapseAlarm(window=run.alarm_window, drop=run.alarm_drop, growth=run.alarm_length)
        for line in before:
            self.alarm.look(line)
        self.stop = False

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if not state.is_world_process_zero or not logs:
            return
        line = {"step": state.global_step, **logs}
        signs = self.alarm.look(line)
        if signs:
            line["alarm"] = signs
            self.stop = self.run.alarm_stops
            for sign in signs:
                print(f"alarm at step {state.global_step}: {sign}", file=sys.stderr)
        with (self.run.output / FILE).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Evaluate at the last step whatever its number; stop all processes together (the first alone has seen the
        alarm), and not amid the updates on one batch, from where no checkpoint can be resumed."""
        if self.run.evaluate_every and state.global_step >= state.max_steps:
            control.should_evaluate = True
        if self.run.alarm_stops:
            (stop,) = broadcast_object_list([self.stop])
            if stop and state.global_step % args.num_iterations == 0:
                control.should_training_stop = control.should_save = True
