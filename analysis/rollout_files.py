"""The commands ``import`` and ``show`` of ``analysis.rollouts``: files of rollouts, other tools' and our own."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
from tqdm import tqdm

from analysis.cli import Help, add_config
from analysis.summary import summarise
from mopd import models
from mopd.diversity import DEFAULT_K
from mopd.importers import FORMATS, Imported, holds_own_table, import_rollouts
from mopd.importers.base import Decode
from mopd.rollouts import read_rollouts
from mopd.samples import SAMPLES, sample_path
from mopd.store import write_parquet

__all__ = ["METADATA_KEY", "add_import", "add_show", "import_command", "load_decode", "load_rollouts", "show_command"]

METADATA_KEY = "mopd.import"
"""Key in the footer of an imported file under which its provenance report is kept, as JSON."""


def import_command(options: argparse.Namespace) -> None:
    """Bring another tool's dump to our table, and print what became of it."""
    output: Path = options.output
    if output.suffix != ".parquet":
        raise ValueError(f"the output must end in .parquet, got {str(output)!r}")
    if output.exists() and not options.overwrite:
        raise ValueError(f"{output} exists already; give another --output, or --overwrite to replace it")
    if not output.parent.is_dir():
        raise ValueError(f"there is no folder {str(output.parent)!r} to write {output.name} into; make it first")
    result = _imported(options)
    report = json.dumps(asdict(result.report), ensure_ascii=False)
    write_parquet(result.frame, output, metadata={METADATA_KEY: report})
    print(result.report)
    print(f"{result.frame.height} rollouts in {output}")


def _imported(options: argparse.Namespace) -> Imported:
    return import_rollouts(
        options.path,
        format=options.format,
        strict=options.strict,
        prompt_as=options.prompt_as,
        success_threshold=1.0 if options.success_threshold is None else options.success_threshold,
        reward_key=options.reward_key,
        decode=load_decode(options.tokenizer) if options.tokenizer else None,
        policy=options.policy,
        task=options.task,
    )


def load_decode(name: str) -> Decode:
    """``decode`` of the tokenizer of a preset, a hub id or a local folder; no weights are fetched.

    Raises:
        ValueError: there is no tokenizer under that name.
    """
    from transformers import AutoTokenizer

    where = models.resolve(name) if name in models.PRESETS else Path(name).expanduser()
    try:
        return AutoTokenizer.from_pretrained(where if where.is_dir() else name).decode
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"no tokenizer {name!r} ({reason}); give a preset ({', '.join(models.PRESETS)}), a hub id or a folder"
        ) from error


def show_command(options: argparse.Namespace) -> None:
    """Print what a rollout table, or another tool's dump, holds."""
    if wrong := [k for k in options.k if k < 1]:
        raise ValueError(f"--k must be at least 1, got {wrong[0]}")
    frame = load_rollouts(options)

    def track(groups: Sequence[pl.DataFrame]) -> Iterable[pl.DataFrame]:
        return tqdm(groups, desc="diversity", unit="group", leave=False)

    print(summarise(frame, k=options.k, track=track))


def load_rollouts(options: argparse.Namespace) -> pl.DataFrame:
    """A sample, a table of ours, an ``hf://`` path, or whatever the importers recognise (its report is printed)."""
    path: str = options.path
    if path in SAMPLES:
        return read_rollouts(sample_path(path), success_threshold=options.success_threshold)
    if path.startswith("hf://") or (options.format == "auto" and holds_own_table(path)):
        return read_rollouts(path, success_threshold=options.success_threshold)
    result = _imported(options)
    print(f"{result.report}\n")
    return result.frame


def add_import(commands: Any) -> None:
    """Add the subcommand ``import``."""
    command = commands.add_parser(
        "import", help="bring another tool's rollouts to our table", formatter_class=Help, allow_abbrev=False
    )
    command.add_argument("path", metavar="PATH", help="a file, a folder (searched to the bottom) or a pattern")
    command.add_argument("--output", type=Path, default=Path("rollouts.parquet"), help="file to write")
    command.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    _add_reading(command)
    add_config(command)
    command.set_defaults(run=import_command)


def add_show(commands: Any) -> None:
    """Add the subcommand ``show``."""
    command = commands.add_parser(
        "show", help="what a file of rollouts holds", formatter_class=Help, allow_abbrev=False
    )
    command.add_argument(
        "path",
        metavar="PATH",
        help=f"our parquet or JSONL (a file, a study folder, an hf:// path), a sample ({', '.join(SAMPLES)}), or any "
        "dump that `import` reads",
    )
    command.add_argument("--k", type=int, nargs="+", default=list(DEFAULT_K), metavar="K", help="for pass@k")
    _add_reading(command)
    add_config(command)
    command.set_defaults(run=show_command)


def _add_reading(command: argparse.ArgumentParser) -> None:
    """How another tool's dump is read."""
    add = command.add_argument
    add("--format", default="auto", choices=("auto", *FORMATS), help="what wrote the dump; auto looks at the files")
    add("--strict", action="store_true", help="refuse the dump at the first record that would be dropped")
    add("--prompt-as", default="messages", choices=("messages", "text"), help="split rendered prompts, or keep them")
    add(
        "--success-threshold",
        type=float,
        metavar="REWARD",
        help="a reward from here on is a success (default: 1.0, or the success column of a table of ours)",
    )
    add("--reward-key", metavar="KEY", help="which reward, of several: a column, a+b, a scorer, scorer/key")
    add("--tokenizer", metavar="MODEL", help="preset, hub id or folder, where the dump holds token ids only")
    add("--policy", help="the model that sampled, where the dump does not tell")
    add("--task", help="name of the task, where the dump does not tell")
