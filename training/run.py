"""Train: ``python -m training.run --config FILE.toml``, or ``accelerate launch ... -m training.run`` on many GPUs.

The story of a run: read the configuration and the prompts, refuse what cannot work, claim the folder, build the
trainer, go back to the last checkpoint if one is to be resumed, train, and leave a model, the study's tables and the
metrics. ``--dry-run`` stops after the second step and says what would be done.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mopd import models
from mopd.store import git_commit, package_versions, write_json
from mopd.tokens import HFCodec
from mopd.verifiers import VerifierUnavailable
from training import checkpoints
from training.config import ConfigError, RunConfig, TrainingError
from training.data import Prompts, keep_short, load_prompts
from training.flags import add_flags, from_flags
from training.machine import check_packages, lacking
from training.preview import describe, estimate_memory
from training.rewards import Judge

if TYPE_CHECKING:
    from training.trainer import PeerTrainer

__all__ = ["main"]

NOTE = "run.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit code 2 is bad input, with the mend on stderr."""
    flags = _parse(argv)
    try:
        config = from_flags(flags)
        prompts = load_prompts(config.data)
        if flags.dry_run:
            print(_plan(config, prompts))
            return 0
        _train(config, prompts, resume=flags.resume)
    except (ValueError, OSError, VerifierUnavailable) as error:
        _fail(error)
    except (RuntimeError, MemoryError) as error:
        print(f"error: {_why(error)}", file=sys.stderr)
        raise SystemExit(1) from error
    return 0


def _why(error: RuntimeError | MemoryError) -> str:
    """What ended a run; anything but a ``TrainingError`` and memory that ran out is a fault, and raised again."""
    if isinstance(error, TrainingError):
        return str(error)
    from mopd.teachers.memory import out_of_memory

    if not out_of_memory(error):
        raise error
    return (
        f"out of memory outside a step ({error}): free some and go on with --resume; or begin anew, under another "
        "--output, with a lower max_response_tokens, prompts_per_step or evaluate_k"
    )


def _train(config: RunConfig, prompts: Prompts, *, resume: bool) -> None:
    processes, first = _world()
    codec, teacher_codec = _codecs(config)
    limit = config.rollouts.max_prompt_tokens
    prompts = keep_short(prompts, codec, limit, drop=config.data.long_prompts == "drop")
    check_packages(config)
    judge = _judge(config)
    judge.check((*prompts.train, *prompts.held_out))
    _check_memory(config, processes)
    checkpoint = _claim(config, resume=resume, first=first)
    trainer = _trainer(config, prompts, judge, codec, teacher_codec, processes, checkpoint)
    if checkpoint is not None:
        trainer.restore(checkpoint)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    _finish(config, trainer, codec)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m training.run",
        description=(__doc__ or "").split("\n\n")[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dry-run", action="store_true", help="print the resolved plan and exit")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --output")
    add_flags(parser)
    return parser.parse_args(argv)


def _fail(error: BaseException) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2)


def _world() -> tuple[int, bool]:
    """How many processes there are, and whether this is the first."""
    return int(os.environ.get("WORLD_SIZE", "1")), os.environ.get("RANK", "0") == "0"


def _codec(name: str, config: RunConfig) -> HFCodec:
    from transformers import AutoTokenizer

    trust = config.model.trust_remote_code
    tokenizer = AutoTokenizer.from_pretrained(models.resolve(name, trust_remote_code=trust), trust_remote_code=trust)
    return HFCodec(tokenizer, name=name, template_kwargs=config.model.template_kwargs)


def _codecs(config: RunConfig) -> tuple[HFCodec, HFCodec]:
    """Tokenizers of the student and of what the teacher reads, which must have one vocabulary."""
    student = _codec(config.model.model, config)
    if config.teacher.teacher_model is None:
        return student, student
    from training.teachers import check_vocabulary

    teacher = _codec(config.teacher.teacher_model, config)
    check_vocabulary(student, teacher)
    return student, teacher


def _judge(config: RunConfig) -> Judge:
    return Judge(config.data.reward, allow_unsandboxed=config.data.allow_unsandboxed)


def _plan(config: RunConfig, prompts: Prompts) -> str:
    """The plan, and what this machine lacks for it; what no machine could run is an error, as in the run itself."""
    lacks = lacking(config, _judge(config), (*prompts.train, *prompts.held_out))
    return "\n\n".join([_resolved(config, prompts), *(f"would not start on this machine: {why}" for why in lacks)])


def _resolved(config: RunConfig, prompts: Prompts) -> str:
    processes = _world()[0] if "WORLD_SIZE" in os.environ else config.run.processes
    try:
        student, codec = _codecs(config)
    except (OSError, models.ModelError) as error:
        note = f"(the tokenizer cannot be read: {str(error).splitlines()[0]})\n"
        return note + describe(config, prompts, None, processes)
    limit = config.rollouts.max_prompt_tokens
    prompts = keep_short(prompts, student, limit, drop=config.data.long_prompts == "drop")
    return describe(config, prompts, codec, processes)


def _check_memory(config: RunConfig, processes: int) -> None:
    """Refuse a run on one unsharded process that cannot hold what it must."""
    import torch

    from mopd.teachers.memory import free_bytes

    if processes > 1:
        return
    free = free_bytes(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    need = estimate_memory(config).total
    if need > free:
        raise ConfigError(
            f"out of memory before the first step: weights, optimiser, teacher and one forward's logits need at least "
            f"{need / 2**30:.1f} GiB and {free / 2**30:.1f} are free; lower micro_batch (now "
            f"{config.optimizer.micro_batch}) or max_response_tokens, use lora_rank, or shard over processes"
        )


def _claim(config: RunConfig, *, resume: bool, first: bool) -> Path | None:
    """The checkpoint to go on from, once the folder is known to be this run's.

    Raises:
        ConfigError: it holds another run, this one without ``--resume``, or something else.
    """
    output = config.run.output
    note = output / NOTE
    checkpoint = checkpoints.latest(output) if resume else None
    if not first:
        return checkpoint
    if output.is_file():
        raise ConfigError(f"{output} is a file: give a folder as --output")
    if note.is_file():
        theirs = json.loads(note.read_text(encoding="utf-8"))
        if theirs["fingerprint"] != config.fingerprint:
            raise ConfigError(
                f"{output} holds a run with other settings ({_differences(theirs['config'], config.as_dict())}): give "
                "another --output"
            )
        if not resume:
            raise ConfigError(f"{output} holds this run already: go on with --resume, or give another --output")
    elif output.is_dir() and any(output.iterdir()):
        raise ConfigError(f"{output} is not empty and holds no run: give another --output")
    output.mkdir(parents=True, exist_ok=True)
    write_json(
        {
            "fingerprint": config.fingerprint,
            "config": config.as_dict(),
            "wording": dataclasses.asdict(config.teacher.wording),
            "git_commit": git_commit(),
            "packages": package_versions(),
        },
        note,
    )
    return checkpoint


def _differences(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    def flat(values: dict[str, Any]) -> dict[str, Any]:
        return {
            key: value
            for name, table in values.items()
            for key, value in (table if isinstance(table, dict) else {name: table}).items()
        }

    was, now = flat(theirs), flat(ours)
    return ", ".join(f"{key} {was.get(key)!r} there, {now[key]!r} now" for key in now if was.get(key) != now[key])


def _trainer(
    config: RunConfig,
    prompts: Prompts,
    judge: Judge,
    codec: HFCodec,
    teacher_codec: HFCodec,
    processes: int,
    checkpoint: Path | None,
) -> PeerTrainer:
    from training.arguments import trl_arguments
    from training.evidence import Evidence
    from training.recorder import Recorder, rewind
    from training.teachers import lora_config
    from training.trainer import PeerTrainer

    arguments = trl_arguments(config, processes, resuming=checkpoint is not None)
    evidence = Evidence(
        config=config,
        prompts=len(prompts.train),
        policy=config.model.model,
        teacher=config.teacher.teacher_model or f"{config.teacher_kind} of {config.model.model}",
    )
    first = _world()[1]
    lines = rewind(config.run.output, None if checkpoint is None else checkpoints.step_of(checkpoint)) if first else []
    if first and checkpoint is None:
        for file in evidence.steps.glob("*.parquet"):
            file.unlink()
    return PeerTrainer(
        config,
        arguments=arguments,
        student=str(models.resolve(config.model.model, trust_remote_code=config.model.trust_remote_code)),
        codec=codec,
        teacher_codec=teacher_codec,
        prompts=prompts,
        judge=judge,
        evidence=evidence,
        callbacks=[Recorder(config.run, lines)],
        peft_config=lora_config(config.model) if config.model.lora_rank else None,
    )


def _finish(config: RunConfig, trainer: PeerTrainer, codec: HFCodec) -> None:
    """Leave the model, the tables, and where the best checkpoint is."""
    folder = config.run.output / "model"
    trainer.save_model(str(folder))
    if not trainer.accelerator.is_main_process:
        return
    trainer.evidence.finish()
    best = checkpoints.best_checkpoint(config.run.output)
    print(f"model: {folder}")
    print(f"best checkpoint: {best or 'none was evaluated'}")
    print(f"rollouts, tables and metrics: {config.run.output}")
    if config.run.push_to_hub is not None:
        from huggingface_hub import HfApi

        api = HfApi()
        api.create_repo(config.run.push_to_hub, exist_ok=True)
        api.upload_folder(repo_id=config.run.push_to_hub, folder_path=folder)


if __name__ == "__main__":
    sys.exit(main())
