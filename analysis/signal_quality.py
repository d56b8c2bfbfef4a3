"""Which peer context gives a teacher signal that agrees with the verifier?

Takes rollout groups, builds every context condition for them, scores each response under each context with a
teacher model, and prints how well the scores rank successes above failures, on the same pairs for every condition.

examples:
  python -m analysis.signal_quality                                   the shipped sample, the embedded model
  python -m analysis.signal_quality --teacher oracle                  a scripted teacher: AUC must be 1.000
  python -m analysis.signal_quality --rollouts mine.parquet --model Qwen/Qwen3-4B --output studies/mine
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from analysis.cli import Help, add_config, fail, parse, progress_bars
from analysis.published import published_protocol, published_text
from analysis.tables import counts_text, power_text, protocol_tables, surface_text
from mopd.conditions import CONTROLS, DEFAULT_CONDITIONS, ORDERS, parse_conditions
from mopd.contexts import Templates
from mopd.dose import largest_grid, other_orders, sweep
from mopd.models import cache_folder
from mopd.peers import PROTOCOLS
from mopd.ray_engine import RayEngine
from mopd.rollouts import groups_of, read_rollouts
from mopd.samples import DEFAULT_SAMPLE, SAMPLES, sample_path
from mopd.scoring import Engine, InProcess
from mopd.study import SCORES, Study, StudyConfig, fingerprint, run_study
from mopd.teachers.base import Teacher
from mopd.teachers.cache import CachedTeacher
from mopd.teachers.scripted import SCRIPTED, ScriptedTeacher

__all__ = ["main"]

MODEL_TEACHERS = ("hf", "vllm")
NO_VLLM = (
    "vLLM cannot be imported here ({error}); install it with `pip install 'mopd[vllm]'` (a GPU) or `make setup-vllm` "
    "(the CPU build, in .venv-vllm), or score with --teacher hf"
)
SAMPLE_LIMIT = 8  # groups of the shipped sample that a study without --rollouts takes: minutes on two cores


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.signal_quality", description=__doc__, formatter_class=Help, allow_abbrev=False
    )
    add = parser.add_argument
    add(
        "--rollouts",
        default=DEFAULT_SAMPLE,
        help=f"parquet or JSONL file, study folder, or sample: {', '.join(SAMPLES)}",
    )
    add("--model", default="smollm2-135m", help="teacher and student: preset, hub id or local folder")
    add(
        "--teacher",
        default="hf",
        choices=(*MODEL_TEACHERS, *SCRIPTED),
        help="hf and vllm run --model with transformers or vLLM; the others follow a script",
    )
    add("--vllm-url", metavar="URL", help="score through this running vLLM server, which has a --dtype of its own")
    add("--served-model", metavar="NAME", help="the server's name for --model, if it differs")
    add(
        "--conditions",
        nargs="+",
        default=list(DEFAULT_CONDITIONS),
        metavar="NAME",
        help=f"also feedback, failure_when_no_success, any {{k}}s{{m}}f and summary_{{k}}; 'default' stands for these, "
        f"'controls' for {', '.join(CONTROLS)}",
    )
    add("--sweep", nargs=2, type=int, metavar=("K", "M"), help="also the grid up to K successes and M failures")
    add(
        "--orders",
        nargs="+",
        choices=tuple(ORDERS),
        help="also show successes and failures in these orders: failures first, or as they stand in the seeded line",
    )
    add("--match", default="blocks", choices=("blocks", "tokens"), help="what controls have in common with 2s1f")
    add("--protocol", nargs="+", default=["leave_pair_out"], choices=(*PROTOCOLS, "all"), help="who may be whose peer")
    add("--score", nargs="+", default=["teacher_mean", "delta_mean"], choices=SCORES, help="which scores are printed")
    add("--limit", type=int, help=f"groups with something to compare (of a sample: {SAMPLE_LIMIT}; 0 takes all)")
    add("--seed", type=int, default=0, help="order of peers, splits, bootstrap, scripted teachers")
    add("--output", type=Path, help="folder of the study (default: studies/ROLLOUTS-TEACHER-FINGERPRINT)")
    add("--resume", action="store_true", help="go on with the study in --output")
    add(
        "--success-threshold",
        type=float,
        help="a reward from here on is a success (default: the success column, or 1.0)",
    )
    add("--max-context-tokens", type=int, help="most tokens of a context (default: what the model's window leaves)")
    add("--on-overflow", default="shorten", choices=("shorten", "error"), help="a context over its budget")
    add("--templates", type=Path, metavar="FILE.toml", help="wording of the contexts, a [templates] table")
    add("--reference", default="question_only", help="condition that the others are contrasted with")
    add("--draws", type=int, default=2000, help="bootstrap draws")
    add("--confidence", type=float, default=0.95, help="of the intervals")
    add("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of the model's weights")
    add("--device", help="torch device (default: the GPU if there is one)")
    add("--token-budget", type=int, help="most tokens in one forward (default: found; halves when memory runs out)")
    add(
        "--score-cache", type=Path, metavar="DIR", help="scores shared by studies (default: in the user's cache folder)"
    )
    add("--no-score-cache", action="store_true", help="neither read nor keep scores of other studies")
    add("--engine", default="local", choices=("local", "ray"), help="score in this process, or by actors of Ray")
    add("--ray-actors", type=int, metavar="N", help="models at work (default: one for each GPU, else for each node)")
    add("--ray-address", help="of a cluster, or auto (default: Ray is started on this machine alone)")
    add("--chat-template-kwargs", default="{}", metavar="JSON", help='such as {"enable_thinking": false}')
    add("--trust-remote-code", action="store_true", help="run code that comes with the model")
    add("--power", action="store_true", help="also plan a larger study, with this one as its pilot")
    add("--no-report", action="store_true", help="leave report.html unwritten; analysis.report makes it later")
    add("--published", action="store_true", help="also show the released scripts' procedure, to compare")
    add_config(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(build_parser(), argv)
    try:
        study, folder = run(args)
    except (ValueError, OSError, FloatingPointError) as error:  # RolloutError, StudyError and the like are ValueErrors
        fail(error)
    except KeyboardInterrupt:
        print("\ninterrupted; finished groups are kept: go on with --resume and the same --output", file=sys.stderr)
        return 130
    print("\n".join(["", report(study, args), "", f"study: {folder}"]))
    if not args.no_report:
        write_page(folder)
    return 0


def write_page(folder: Path) -> None:
    """``report.html`` of a study that is finished, so that nothing here can cost it."""
    try:
        from analysis.report import write_report  # Altair and Vega load slowly

        print(f"report: {write_report(folder)[0]}")
    except ImportError as error:
        print(f"no report.html: {error}; pip install '.[report]', then analysis.report {folder}", file=sys.stderr)
    except (ValueError, OSError) as error:
        print(f"no report.html: {error}; make it with python -m analysis.report {folder}", file=sys.stderr)


def run(args: argparse.Namespace) -> tuple[Study, Path]:
    """The study that the arguments describe, and the folder it was written to."""
    protocols = list(PROTOCOLS) if "all" in args.protocol else args.protocol
    rollouts = read_rollouts(rollouts_path(args.rollouts), success_threshold=args.success_threshold)
    config = StudyConfig(
        conditions=conditions_of(args, rollouts),
        protocols=protocols,
        seed=args.seed,
        limit=group_limit(args),
        max_context_tokens=args.max_context_tokens,
        on_overflow=args.on_overflow,
        match=args.match,
        templates=Templates.from_toml(args.templates) if args.templates else Templates(),
        reference=args.reference,
        draws=args.draws,
        confidence=args.confidence,
    )
    teacher = load_teacher(args)
    chosen = {name: PROTOCOLS[name] for name in protocols}
    if args.published:
        chosen["published"] = published_protocol
    folder = args.output or default_folder(args, rollouts, teacher, config)
    with kept_scores(teacher, args) as scoring:
        study = run_study(
            rollouts,
            scoring,
            config,
            folder=folder,
            resume=args.resume or args.output is None,
            protocols=chosen,
            progress=progress_bars(),
            arguments={k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
            engine=scoring_engine(args),
        )
    return study, folder


def conditions_of(args: argparse.Namespace, rollouts: pl.DataFrame) -> list[str]:
    """The conditions asked for by name, by ``--sweep`` (as far as some group can fill it) and by ``--orders``."""
    names = [c.name for c in parse_conditions(args.conditions)]
    if args.sweep:
        sweep(*args.sweep)  # refuses what is no grid
        k, m = largest_grid(groups_of(rollouts), *args.sweep)
        names += sweep(k, m) if k + m else ()
        if [k, m] != list(args.sweep):
            print(f"--sweep {args.sweep[0]} {args.sweep[1]}: no group can fill more than {k} {m}", file=sys.stderr)
    return [*names, *other_orders(dict.fromkeys(names), args.orders or ())]


def kept_scores(teacher: Teacher, args: argparse.Namespace) -> AbstractContextManager[Teacher]:
    """The teacher behind the score cache; a scripted one costs nothing to ask."""
    folder = score_folder(args)
    if folder is None or args.engine == "ray":  # whose actors keep what they score
        return nullcontext(teacher)
    return CachedTeacher(teacher, folder)


def score_folder(args: argparse.Namespace) -> Path | None:
    """Where scores are kept between studies."""
    if args.no_score_cache or args.teacher in SCRIPTED:
        return None
    return args.score_cache or cache_folder() / "scores"


def scoring_engine(args: argparse.Namespace) -> Engine:
    """Who scores the groups."""
    if args.engine == "local":
        given = [name for name in ("ray_actors", "ray_address") if getattr(args, name) is not None]
        if given:
            raise ValueError(f"--{given[0].replace('_', '-')} is for --engine ray; add that, or leave it out")
        return InProcess()
    return RayEngine(
        load=teacher_loader(args), cache=score_folder(args), actors=args.ray_actors, address=args.ray_address
    )


def group_limit(args: argparse.Namespace) -> int | None:
    if args.limit is None:
        return SAMPLE_LIMIT if args.rollouts in SAMPLES and args.teacher in MODEL_TEACHERS else None
    return args.limit or None


def rollouts_path(name: str) -> str | Path:
    return sample_path(name) if name in SAMPLES else name


def load_teacher(args: argparse.Namespace) -> Teacher:
    """The teacher; one that other processes load is only described here."""
    if args.vllm_url and args.teacher in SCRIPTED:
        raise ValueError(f"--teacher {args.teacher} follows a script; leave --vllm-url out")
    if args.engine == "ray" and (args.vllm_url or args.teacher == "vllm"):
        raise ValueError("--engine ray gives each of its workers a model of transformers; leave --teacher vllm out")
    if args.teacher in SCRIPTED:
        return teacher_loader(args)()
    common: dict[str, Any] = {"template_kwargs": template_kwargs(args), "trust_remote_code": args.trust_remote_code}
    if args.vllm_url:
        return server_teacher(args, common)
    if args.teacher == "vllm":
        return vllm_teacher(args, common)
    from mopd.teachers.hf import HFTeacher  # torch is loaded only when a model is

    return (
        HFTeacher.describe(args.model, dtype=args.dtype, **common) if args.engine == "ray" else teacher_loader(args)()
    )


def teacher_loader(args: argparse.Namespace) -> Callable[[], Teacher]:
    """What gives a scripted teacher or one of transformers, in this process or in another one."""
    if args.teacher in SCRIPTED:
        return partial(ScriptedTeacher, args.teacher, seed=args.seed)
    from mopd.teachers.hf import HFTeacher

    return partial(
        HFTeacher.load,
        args.model,
        dtype=args.dtype,
        device=args.device,
        template_kwargs=template_kwargs(args),
        trust_remote_code=args.trust_remote_code,
        token_budget=args.token_budget,
    )


def server_teacher(args: argparse.Namespace, common: Mapping[str, Any]) -> Teacher:
    if args.device or args.token_budget:
        raise ValueError(
            "--device and --token-budget are for a model that is loaded here; leave --vllm-url or them out"
        )
    from mopd.teachers.server import ServerTeacher

    return ServerTeacher.connect(args.vllm_url, args.model, served=args.served_model, **common)


def vllm_teacher(args: argparse.Namespace, common: Mapping[str, Any]) -> Teacher:
    if args.device:
        raise ValueError("vLLM finds its devices itself; leave --device out, or choose with CUDA_VISIBLE_DEVICES")
    try:
        from mopd.teachers.vllm import VLLMTeacher
    except ImportError as error:
        raise ValueError(NO_VLLM.format(error=error)) from error
    return VLLMTeacher.load(args.model, dtype=args.dtype, token_budget=args.token_budget, **common)


def template_kwargs(args: argparse.Namespace) -> dict[str, Any]:
    try:
        kwargs: Any = json.loads(args.chat_template_kwargs)
    except json.JSONDecodeError as error:
        raise ValueError(f"--chat-template-kwargs is not JSON: {error}") from error
    if not isinstance(kwargs, dict):
        raise ValueError(f"--chat-template-kwargs must be a JSON object, got {args.chat_template_kwargs}")
    return kwargs


def default_folder(args: argparse.Namespace, rollouts: pl.DataFrame, teacher: Teacher, config: StudyConfig) -> Path:
    """A folder that belongs to exactly this study, so that the same command finds it again."""
    source = Path(args.rollouts).stem or "rollouts"
    extra = "-published" if args.published else ""
    name = teacher.name.strip("/").replace("/", "--")
    return Path("studies") / f"{source}-{name}{extra}-{fingerprint(rollouts, teacher, config)[:8]}"


def report(study: Study, args: argparse.Namespace) -> str:
    """What stands on stdout."""
    info = study.info
    who = args.model if args.teacher in MODEL_TEACHERS else f"scripted teacher {args.teacher}"
    parts = [f"Signal quality of {who} on {args.rollouts}", counts_text(study)]
    parts += [protocol_tables(study, score) for score in args.score]
    if args.sweep or args.orders:
        parts += [surface_text(study, score) for score in args.score]
    if args.power:
        parts += [power_text(study, score) for score in args.score]
    if args.published:
        parts.append(published_text(study))
    by = f" of work by {info['engine']['actors']} actors" if info["engine"].get("actors") else ""
    if info["tokens_forwarded"] or info["cache_hits"]:
        # What vLLM's cache did not hold is asked twice, and an earlier version's shards count a token less a row.
        saved = max(0, info["tokens_asked"] - info["tokens_forwarded"])
        parts.append(
            f"{study.scores.height} (context, target) rows scored in {info['seconds']['scoring']:.0f} s{by}: "
            f"{info['tokens_forwarded']:,} tokens forwarded, {saved:,} saved, "
            f"{info['cache_hits']:,} scores from the cache"
        )
    return "\n\n".join(parts)


if __name__ == "__main__":
    raise SystemExit(main())
