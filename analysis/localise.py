"""Does Δ fall where the error is?

``measure`` takes a finished study and says how well −Δ finds wrong steps under each condition. What the checker of
equations finds is in every study already; further labels are asked for:

  --planted N   plants an error in up to N correct rollouts a group and scores them with the study's teacher
  --labels      a ProcessBench or PRM800K file whose solutions are the study's rollouts: nothing is forwarded
  --programs    runs the study's programs on a suite's tests; lines that only failing tests execute are suspect

``convert`` makes rollouts of a ProcessBench or PRM800K file, to be studied first.

examples:
  python -m analysis.localise measure studies/mine --planted 4
  python -m analysis.localise convert gsm8k.json --output gsm8k.parquet
  python -m analysis.localise measure studies/gsm8k --labels gsm8k.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from analysis import signal_quality
from analysis.cli import Help, add_config, fail, parse, progress_bars
from analysis.signal_quality import kept_scores, load_teacher, scoring_engine
from analysis.tables import text_table
from mopd import models, tasks
from mopd.conditions import condition
from mopd.contexts import Templates
from mopd.localisation import LOCALISATION, localisation_table, step_scores
from mopd.planted import plant_errors, planted_protocol
from mopd.process_data import read_process_data
from mopd.rollouts import prompt_key, read_rollouts
from mopd.store import write_parquet
from mopd.study import StudyConfig, run_study
from mopd.suspects import suspect_steps
from mopd.tokens import ByteCodec, Codec, HFCodec
from mopd.verifiers import VerifierUnavailable

__all__ = ["main"]


def build_parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.localise", description=__doc__, formatter_class=Help, allow_abbrev=False
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    measure = commands.add_parser("measure", help="how well a study's deltas find wrong steps", formatter_class=Help)
    measure.add_argument("study", type=Path, help="folder of a finished study")
    measure.add_argument("--planted", type=int, default=0, metavar="N", help="most planted errors a group; 0 for none")
    measure.add_argument("--labels", type=Path, metavar="FILE", help="ProcessBench or PRM800K")
    measure.add_argument("--programs", metavar="TASK", help="suite whose tests the programs are run on, such as code")
    measure.add_argument("--task-source", type=Path, metavar="FILE", help="file of that suite, if it is a benchmark")
    measure.set_defaults(run=measure_command)
    convert = commands.add_parser("convert", help="rollouts of an annotated file", formatter_class=Help)
    convert.add_argument("file", type=Path, help="ProcessBench or PRM800K: .json, .jsonl or .parquet")
    convert.add_argument("--output", type=Path, required=True, metavar="FILE.parquet", help="where the rollouts go")
    convert.set_defaults(run=convert_command)
    for command in (measure, convert):
        add_config(command)
    return parser, dict(commands.choices)


def main(argv: Sequence[str] | None = None) -> int:
    parser, commands = build_parser()
    words = list(sys.argv[1:] if argv is None else argv)
    args = parse(commands[words[0]], words[1:]) if words and words[0] in commands else parser.parse_args(words)
    try:
        print(args.run(args))
    except (ValueError, OSError, FloatingPointError, VerifierUnavailable) as error:
        fail(error)
    except KeyboardInterrupt:
        print("\ninterrupted; scored groups are kept: go on with the same command", file=sys.stderr)
        return 130
    return 0


def convert_command(args: argparse.Namespace) -> str:
    data = read_process_data(args.file)
    write_parquet(data.rollouts, args.output)
    for row in data.bad:
        print(f"left out: {row}", file=sys.stderr)
    labelled = data.steps["wrong"].count()
    return (
        f"{data.rollouts.height} solutions of {data.rollouts['group_id'].n_unique()} problems, {labelled} labelled "
        f"steps, {len(data.bad)} rows left out\nrollouts: {args.output}"
    )


def measure_command(args: argparse.Namespace) -> str:
    """Measure what was asked for, keep it in ``localisation.parquet`` of the study, and show all that is there."""
    info = study_info(args.study)
    before = pl.read_parquet(args.study / "localisation.parquet")
    made = []
    if args.planted:
        made.append(planted_errors(args.study, info, args.planted))
    if args.labels:
        made.append(from_scores(args.study, info, annotated_steps(args.study, args.labels)))
    if args.programs:
        made.append(from_scores(args.study, info, program_steps(args.study, args.programs, args.task_source)))
    table = pl.concat([before, *made]).unique(list(LOCALISATION)[:5], keep="last", maintain_order=True)
    write_parquet(table, args.study / "localisation.parquet")
    return "\n\n".join([f"Where delta falls in {args.study}", *localisation_text(table)])


def study_info(folder: Path) -> dict[str, Any]:
    """``study.json`` of a finished study.

    Raises:
        ValueError: there is none.
    """
    path = folder / "study.json"
    if not path.is_file() or not (folder / "localisation.parquet").is_file():
        raise ValueError(f"{folder} is no finished study; make one with python -m analysis.signal_quality")
    return json.loads(path.read_text(encoding="utf-8"))


def settings(info: Mapping[str, Any]) -> dict[str, Any]:
    return {name: info["config"][name] for name in ("draws", "seed", "confidence")}


def planted_errors(folder: Path, info: Mapping[str, Any], per_group: int) -> pl.DataFrame:
    """Plant errors in the study's groups and score them, in the folder ``planted`` of the study."""
    arguments = study_arguments(folder, info)
    config = planted_config(info["config"])
    errors = plant_errors(read_rollouts(folder / "rollouts.parquet"), per_group=per_group, seed=config.seed)
    teacher = load_teacher(arguments)
    with kept_scores(teacher, arguments) as scoring:
        study = run_study(
            errors.rollouts,
            scoring,
            config,
            folder=folder / "planted" / str(per_group),
            resume=True,
            protocols={"planted": planted_protocol(errors.of)},
            progress=progress_bars(),
            engine=scoring_engine(arguments),
        )
    scores = step_scores(study.tokens, errors.steps, teacher.codec)
    return localisation_table(study.assignments, scores, **config.measuring())


def study_arguments(folder: Path, info: Mapping[str, Any]) -> argparse.Namespace:
    """The options that the study was made with.

    Raises:
        ValueError: it was not made by a command, so that its teacher cannot be loaded again.
    """
    if not info["arguments"]:
        raise ValueError(
            f"{folder} was not made by python -m analysis.signal_quality, so its teacher is not known here; "
            "use mopd.planted in Python"
        )
    arguments = argparse.Namespace(**vars(signal_quality.build_parser().parse_args([])) | info["arguments"])
    if arguments.score_cache:
        arguments.score_cache = Path(arguments.score_cache)
    return arguments


def planted_config(values: Mapping[str, Any]) -> StudyConfig:
    """The study's settings, without its limit and without conditions whose peers come from other groups: a planted
    error must never be shown as a peer, and a lending group may hold one."""
    kept = [name for name in values["conditions"] if condition(name).source == "group"]
    known = {f.name for f in dataclasses.fields(StudyConfig)} - {"protocols", "limit"}
    options: dict[str, Any] = {name: value for name, value in values.items() if name in known}
    options["conditions"] = kept
    options["reference"] = values["reference"] if values["reference"] in kept else "question_only"
    options["templates"] = Templates(**values["templates"])
    return StudyConfig(**options)


def from_scores(folder: Path, info: Mapping[str, Any], steps: pl.DataFrame) -> pl.DataFrame:
    """Localisation of labelled steps of the study's own rollouts, from scores that are there."""
    tokens = pl.read_parquet(folder / "tokens.parquet")
    scores = step_scores(tokens, steps, codec_of(info))
    return localisation_table(pl.read_parquet(folder / "assignments.parquet"), scores, **settings(info))


def codec_of(info: Mapping[str, Any]) -> Codec:
    """The tokenizer of the study's teacher, without its weights."""
    if info["teacher"]["teacher"] != "hf":
        return ByteCodec()
    from transformers import AutoTokenizer

    arguments = info["arguments"]
    trust = bool(arguments.get("trust_remote_code"))
    folder = models.resolve(info["teacher"]["model"], trust_remote_code=trust)
    kwargs = json.loads(arguments.get("chat_template_kwargs") or "{}")
    codec = HFCodec(AutoTokenizer.from_pretrained(folder, trust_remote_code=trust), template_kwargs=kwargs)
    if codec.hash != info["teacher"]["tokenizer_and_template"]:
        raise ValueError(
            f"the tokenizer of {info['teacher']['model']} is another one than when the study was made; "
            "make the study again"
        )
    return codec


def annotated_steps(folder: Path, labels: Path) -> pl.DataFrame:
    """The labelled steps of an annotated file that belong to rollouts of the study.

    Raises:
        ValueError: none does.
    """
    data = read_process_data(labels)
    rollouts = pl.read_parquet(folder / "rollouts.parquet", columns=["rollout_id"])
    steps = data.steps.join(rollouts, on="rollout_id", how="semi")
    if steps.is_empty():
        raise ValueError(
            f"no solution of {labels} is among the rollouts of {folder}; make rollouts of it with "
            "python -m analysis.localise convert, and study those"
        )
    return steps


def program_steps(folder: Path, task: str, source: Path | None) -> pl.DataFrame:
    """Executed lines of the study's failed programs.

    Raises:
        ValueError: no prompt of the study is one of the suite's.
    """
    items = {prompt_key(item.prompt): item for item in tasks.load(task, source=source) if item.verifier == "code"}
    rollouts = pl.read_parquet(folder / "rollouts.parquet").filter(~pl.col("success"))
    programs = list(_programs(rollouts, items))
    if not programs:
        raise ValueError(
            f"no failed rollout of {folder} answers a prompt of the suite {task!r} that has tests; "
            "name the suite that the rollouts were made on, with --task-source if it was a file"
        )
    bars = progress_bars()
    return suspect_steps(programs, progress=lambda done: bars("programs run", done, len(programs)))


def _programs(
    rollouts: pl.DataFrame, items: Mapping[str, tasks.TaskItem]
) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for rollout_id, prompt, response in rollouts.select("rollout_id", "prompt", "response").iter_rows():
        item = items.get(prompt_key(prompt if isinstance(prompt, str) else tuple(prompt)))
        if item is not None and response:
            yield rollout_id, response, item.reference


def localisation_text(table: pl.DataFrame) -> list[str]:
    """One text table for each protocol and source, of all tasks together where there are several."""
    widest = "all" if "all" in table["task"].unique() else None
    rows = table.filter(pl.col("task") == widest) if widest else table
    parts = []
    for (protocol, source), part in rows.group_by("protocol", "source", maintain_order=True):
        cells = {(r["condition"], r["metric"]): r for r in part.iter_rows(named=True)}
        first = part.row(0, named=True)
        body = [
            [name, *(_cell(cells[name, metric]) for metric in ("auroc", "top1", "reciprocal_rank"))]
            for name in part["condition"].unique(maintain_order=True)
        ]
        chance = ["chance", *(_number(cells[body[0][0], m]["chance"]) for m in ("auroc", "top1", "reciprocal_rank"))]
        title = (
            f"errors by {source}, protocol {protocol}: {first['n_targets']} targets in {first['n_groups']} groups "
            f"have a wrong and a right step, {first['n_undefined']} have not"
        )
        parts.append(
            "\n".join([title, text_table(["condition", "AUROC", "top-1", "reciprocal rank"], [*body, chance])])
        )
    return parts or ["no target of this study has a wrong and a right step"]


def _cell(row: Mapping[str, Any]) -> str:
    if row["value"] is None:
        return "undefined"
    interval = "" if row["ci_low"] is None else f" [{row['ci_low']:.3f}, {row['ci_high']:.3f}]"
    return f"{row['value']:.3f}{interval}"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    raise SystemExit(main())
