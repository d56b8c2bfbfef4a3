"""Rollouts: sample them from a model, bring another tool's, look at them.

``python -m analysis.rollouts generate`` samples groups of rollouts on a task suite, judges them with the suite's
verifier, and writes ``rollouts.parquet``. A run that was broken off goes on with the same command.
``python -m analysis.rollouts import PATH`` reads another tool's dump and says what became of every record.
``python -m analysis.rollouts show PATH`` prints success, length and diversity of either.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from tqdm import tqdm

from analysis.cli import Help, add_config, parse
from analysis.rollout_files import add_import, add_show
from mopd import tasks
from mopd.conditions import condition
from mopd.generation import GenerationError, GenerationJob, Sampler, Sampling, generate
from mopd.models import DEFAULT_PRESET
from mopd.peers import leave_pair_out
from mopd.rollouts import Group, groups_of
from mopd.verifiers import VerifierUnavailable

PAPER_BEST = "2s1f"


def load_sampler(options: argparse.Namespace) -> Sampler:
    """The model behind the backend that was asked for; engines are imported here and not before."""
    common: dict[str, Any] = {
        "template_kwargs": options.chat_template_kwargs,
        "trust_remote_code": options.trust_remote_code,
    }
    if options.vllm_url:
        from mopd.generation.server import ServerSampler

        return ServerSampler.connect(options.vllm_url, options.model, served=options.served_model, **common)
    if options.backend == "vllm":
        try:
            from mopd.generation.vllm import VLLMSampler
        except ImportError as error:
            raise GenerationError(
                f"vLLM cannot be imported here ({error}); install it with `pip install 'mopd[vllm]'` (a GPU) or "
                "`make setup-vllm` (the CPU build, in .venv-vllm), or sample with --backend hf"
            ) from error
        return VLLMSampler.load(options.model, dtype=options.dtype or "bfloat16", seed=options.seed, **common)
    from mopd.generation.hf import HFSampler

    return HFSampler.load(options.model, dtype=options.dtype or "float32", device=options.device, **common)


def fills(group: Group, name: str) -> bool:
    """Whether some pair of the group defines the condition under leave_pair_out."""
    return any(unit.peers is not None for unit in leave_pair_out(group, condition(name), 0))


def counts(rollouts: pl.DataFrame) -> pl.DataFrame:
    """A row per task: groups, mixed groups, groups that fill 2s1f, success rate, length in tokens."""
    groups = pl.DataFrame(
        {
            "task": group.task,
            "mixed": bool(group.successes and group.failures),
            "fills": fills(group, PAPER_BEST),
        }
        for group in groups_of(rollouts)
    )
    per_group = groups.group_by("task", maintain_order=True).agg(
        groups=pl.len(), mixed=pl.col("mixed").sum(), fills_2s1f=pl.col("fills").sum()
    )
    per_task = rollouts.group_by("task", maintain_order=True).agg(
        rollouts=pl.len(),
        success_rate=pl.col("success").mean(),
        unjudged=pl.col("success").is_null().sum(),
        cut=(~pl.col("finished")).sum(),
        mean_tokens=pl.col("response_ids").list.len().mean(),
    )
    return per_group.join(per_task, on="task", how="left", validate="1:1", maintain_order="left")


def print_counts(table: pl.DataFrame) -> None:
    with pl.Config(
        tbl_rows=-1, tbl_cols=-1, tbl_width_chars=140, float_precision=3, tbl_hide_dataframe_shape=True,
        tbl_hide_column_data_types=True, tbl_formatting="ASCII_MARKDOWN",
    ):  # fmt: skip
        print(table)


def generate_command(options: argparse.Namespace) -> None:
    items = [
        item
        for name in dict.fromkeys(options.task)
        for item in tasks.load(
            name, limit=options.limit, seed=options.task_seed, source=options.task_source, strict=options.strict
        )
    ]
    given = options.max_tokens is not None
    caps = {} if given else {item.task: tasks.TASKS[item.task].max_tokens for item in items}
    job = GenerationJob(
        items=items,
        sampling=Sampling(
            temperature=options.temperature,
            top_p=options.top_p,
            max_tokens=options.max_tokens if given else max(caps.values(), default=1),
            seed=options.seed,
        ),
        caps=caps,
        group_size=options.group_size,
        output=options.output,
        batch_size=options.batch_size,
        allow_unsandboxed=options.allow_unsandboxed,
    )
    sampler = load_sampler(options)
    started = time.perf_counter()
    with tqdm(total=len(job.items) * job.group_size, unit="rollout", desc=options.model) as bar:
        rollouts = generate(job, sampler, progress=bar.update)
    print_counts(counts(rollouts))
    print(f"{rollouts.height} rollouts in {options.output} ({time.perf_counter() - started:.0f} s)")


def _parser() -> tuple[argparse.ArgumentParser, Mapping[str, argparse.ArgumentParser]]:
    """The parser that lists the commands, and the parser of each."""
    parser = argparse.ArgumentParser(prog="python -m analysis.rollouts", description=__doc__, formatter_class=Help)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    _add_generate(commands)
    add_import(commands)
    add_show(commands)
    return parser, commands.choices


def _add_generate(commands: Any) -> None:
    command = commands.add_parser("generate", help="sample rollouts from a model", formatter_class=Help)
    known = ", ".join(tasks.TASKS)
    command.add_argument("--task", nargs="+", default=["arithmetic"], help=f"suites: {known}, or all")
    command.add_argument("--task-seed", type=int, default=0, help="seed that draws the suite's prompts")
    command.add_argument("--task-source", metavar="PATH", help="file or hub id of a benchmark, not its own place")
    command.add_argument("--strict", action="store_true", help="refuse a benchmark with a bad row, not drop the row")
    command.add_argument("--limit", type=int, help="prompts of each suite; its own number if left out")
    command.add_argument("--model", default=DEFAULT_PRESET, help="preset, hub id or local folder")
    command.add_argument("--group-size", type=int, default=8, help="rollouts of each prompt")
    command.add_argument("--backend", choices=("hf", "vllm"), default="hf", help="what runs the model")
    command.add_argument("--temperature", type=float, default=0.8, help="above 0")
    command.add_argument("--top-p", type=float, default=1.0, help="probability mass kept; 1 keeps all")
    command.add_argument("--max-tokens", type=int, help="most tokens of a response; each suite's own if left out")
    command.add_argument("--seed", type=int, default=0, help="seed of the sampling")
    command.add_argument("--batch-size", type=int, default=64, help="sequences sampled at a time")
    command.add_argument("--output", type=Path, default=Path("rollouts.parquet"), help="file to write")
    command.add_argument("--vllm-url", metavar="URL", help="sample from this running server instead")
    command.add_argument("--served-model", metavar="NAME", help="the server's name for --model, if it differs")
    command.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of the weights; float32 with hf, bfloat16 with vllm"
    )
    command.add_argument("--device", help="torch device for --backend hf; a GPU if there is one")
    command.add_argument(
        "--chat-template-kwargs", type=json.loads, default={}, metavar="JSON", help="for the chat template"
    )
    command.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    command.add_argument("--allow-unsandboxed", action="store_true", help="judge code without bubblewrap")
    add_config(command)
    command.set_defaults(run=generate_command)


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    parser, commands = _parser()
    name = parser.parse_known_args(argv)[0].command
    options = parse(commands[name], argv[1:])
    try:
        options.run(options)
    except (ValueError, OSError, VerifierUnavailable) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        again = "; the same command goes on where this one was" if name == "generate" else ""
        print(f"stopped{again}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
