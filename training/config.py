"""What a run does: TOML tables and flags into validated, frozen dataclasses.

A TOML file has one table for each class here (``[model]``, ``[data]``, ...), and every key of a table is a flag of the
command line as well (``learning_rate`` is ``--learning-rate``), which wins over the file. Defaults are the paper's
(arXiv 2605.12652) where it has one. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from mopd.conditions import Condition
from mopd.contexts import Templates
from mopd.rollouts import content_id
from training.methods import METHODS, Method, check_condition

__all__ = ["CONFIGS", "SECTIONS", "SECTION_OF", "ConfigError", "RunConfig", "TrainingError", "read_config"]

CONFIGS = Path(__file__).parent / "configs"
"""Where the shipped configurations are; ``--config NAME`` finds them without a path."""

Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
STRICT = ConfigDict(extra="forbid")


class ConfigError(ValueError):
    """The configuration cannot be run; the message names the key and how to mend it."""


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelConfig:
    """The student.

    Attributes:
        model: a preset of ``mopd.models``, a hub id or a local folder.
        precision: of the arithmetic; weights and optimiser are float32 always, since steps of 1e-5 are lost in
            bfloat16.
        trust_remote_code: run code that comes with the model.
        attention: attention implementation of transformers; None takes its default.
        gradient_checkpointing: compute activations twice rather than keep them.
        lora_rank: rank of LoRA adapters; 0 trains all weights.
        lora_alpha: scale of the adapters.
        lora_targets: modules that get an adapter; ``all-linear`` for every linear layer.
        template_kwargs: handed through to the chat template, such as ``{enable_thinking = false}``.
    """

    model: str = "smollm2-135m"
    precision: Literal["float32", "bfloat16"] = "float32"
    trust_remote_code: bool = False
    attention: str | None = None
    gradient_checkpointing: bool = True
    lora_rank: Annotated[int, Field(ge=0)] = 0
    lora_alpha: Positive = 32.0
    lora_targets: tuple[str, ...] = ("all-linear",)
    template_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DataConfig:
    """Prompts and rewards.

    Attributes:
        task: suite or benchmark of ``mopd.tasks``.
        source: file or hub id of a benchmark, instead of its own place on the hub.
        topics: only items of these topics; empty for all.
        prompts: how many to train on; None for all that the task has.
        held_out: how many to evaluate on; they are never trained on.
        data_seed: draws the prompts, and their order.
        reward: ``task`` for the task's own verifier, or ``module:function``, called as
            ``function(response, reference)`` with the item's reference and giving a number, a
            ``mopd.verifiers.Verdict``, or None where it cannot tell.
        success_threshold: a rollout succeeds if its reward is at least this.
        long_prompts: a prompt over ``max_prompt_tokens`` is an ``error``, or is left out and counted (``drop``).
        allow_unsandboxed: run generated code even where bubblewrap is missing.
    """

    task: str = "arithmetic"
    source: str | None = None
    topics: tuple[str, ...] = ()
    prompts: Count | None = None
    held_out: Count = 32
    data_seed: int = 0
    reward: str = "task"
    success_threshold: float = 1.0
    long_prompts: Literal["error", "drop"] = "error"
    allow_unsandboxed: bool = False

    def __post_init__(self) -> None:
        if self.reward != "task" and not all(self.reward.partition(":")[::2]):
            raise ValueError(f"reward must be 'task' or 'module:function', got {self.reward!r}")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RolloutConfig:
    """How groups are sampled.

    Attributes:
        group_size: rollouts of a prompt.
        prompts_per_step: groups of a step.
        max_prompt_tokens: of the student's prompt.
        max_response_tokens: of a response.
        temperature: of the sampling; the losses see logits divided by it, as TRL does.
        top_p: probability mass that is kept.
        engine: ``transformers``; ``vllm-colocate``, in the training processes; ``vllm-server``, a server that
            ``trl vllm-serve`` runs elsewhere.
        vllm_url: of the server.
        vllm_memory: share of a GPU's memory that a colocated vLLM takes.
        vllm_tensor_parallel: GPUs of one colocated vLLM.
    """

    group_size: Annotated[int, Field(ge=2)] = 8
    prompts_per_step: Count = 32
    max_prompt_tokens: Count = 2048
    max_response_tokens: Count = 4096
    temperature: Positive = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    engine: Literal["transformers", "vllm-colocate", "vllm-server"] = "transformers"
    vllm_url: str | None = None
    vllm_memory: Annotated[float, Field(gt=0, lt=1)] = 0.3
    vllm_tensor_parallel: Count = 1

    def __post_init__(self) -> None:
        if (self.engine == "vllm-server") != (self.vllm_url is not None):
            raise ValueError("vllm_url goes with engine = 'vllm-server', and that needs it: http://HOST:PORT")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TeacherConfig:
    """Who the teacher is and what it is shown.

    Attributes:
        condition: context (``mopd.conditions``); None takes the method's.
        teacher: ``ema`` of the student, the ``live`` student, the ``frozen`` initial student, or an ``external``
            model; None takes the method's.
        ema_rate: share of the student that enters the average at each step.
        teacher_model: the external model, as ``model``.
        max_context_tokens: most tokens of a context.
        on_overflow: ``shorten`` the peers of a context over its budget, or ``error``.
        templates: TOML file with the wording of contexts.
        peer_seed: of the order of peers.
    """

    condition: str | None = None
    teacher: Literal["ema", "live", "frozen", "external"] | None = None
    ema_rate: Annotated[float, Field(gt=0, le=1)] = 0.05
    teacher_model: str | None = None
    max_context_tokens: Count = 10_240
    on_overflow: Literal["shorten", "error"] = "shorten"
    templates: Path | None = None
    peer_seed: int = 0

    def __post_init__(self) -> None:
        _ = self.wording  # a file that cannot be read is refused now

    @cached_property
    def wording(self) -> Templates:
        """The templates themselves, as the file had them when the configuration was read."""
        return Templates() if self.templates is None else Templates.from_toml(self.templates)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LossConfig:
    """The loss (``training.losses``).

    Attributes:
        alpha: of the generalised Jensen-Shannon divergence: 0 forward KL, 1 reverse KL.
        divergence: over the ``full`` vocabulary, the student's ``top_k`` tokens, or the ``sampled`` token alone
            (reverse KL only).
        top_k: tokens of ``top_k``.
        tail: whether what is beyond the top k is one more bucket; if not, the top k are renormalised.
        importance_clip: most that the ratio of the current to the sampling policy may weigh a token; None for no
            correction.
        distillation_weight: share of the distillation in the loss; the rest is the policy gradient.
        average: ``token``: every token of a step weighs alike; ``sequence``: every response does.
        advantage: of the policy gradient: rewards less their group's mean, divided by the standard deviation of the
            ``group``, of the ``batch``, or not (``none``).
        clip_low: lower clip of the policy ratio.
        clip_high: upper clip of the policy ratio.
        dpo_beta: how much a preference may cost in divergence from the reference.
    """

    alpha: Share = 0.5
    divergence: Literal["full", "top_k", "sampled"] = "top_k"
    top_k: Count = 100
    tail: bool = True
    importance_clip: Positive | None = 2.0
    distillation_weight: Share = 1.0
    average: Literal["token", "sequence"] = "token"
    advantage: Literal["group", "batch", "none"] = "group"
    clip_low: Share = 0.2
    clip_high: Positive = 0.2
    dpo_beta: Positive = 0.1

    def __post_init__(self) -> None:
        if self.divergence == "sampled" and self.alpha != 1:
            raise ValueError(
                f"the sampled token gives the reverse KL alone: set alpha = 1, got {self.alpha}; or take "
                "divergence = 'top_k'"
            )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OptimizerConfig:
    """How weights move.

    Attributes:
        steps: optimiser steps.
        learning_rate: at its highest.
        schedule: of the learning rate after the warm-up.
        warmup_steps: steps of linear warm-up.
        weight_decay: of AdamW.
        max_grad_norm: gradients are scaled down to this norm.
        micro_batch: responses that a process forwards at once.
        updates_per_batch: optimiser steps on the same rollouts; above 1 the importance clip comes into play.
    """

    steps: Count = 100
    learning_rate: Positive = 1e-5
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    weight_decay: Rate = 0.0
    max_grad_norm: Positive = 1.0
    micro_batch: Count = 8
    updates_per_batch: Count = 1


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OutputConfig:
    """What is measured, kept and told.

    Attributes:
        output: the run's folder.
        seed: of weights that are drawn and of the sampling.
        save_every: steps between checkpoints.
        keep: checkpoints that stay, besides the best one.
        evaluate_every: steps between evaluations on the held-out prompts, besides the first and the last; 0 never.
        evaluate_k: responses to each held-out prompt, the k of mean@k and pass@k.
        best_metric: which evaluation metric decides the best checkpoint, the highest value winning.
        evidence: whether every step's rollouts, contexts and per-token scores are written.
        report_to: ``tensorboard``, ``trackio``, ``wandb``; ``metrics.jsonl`` is always written.
        push_to_hub: hub id to which the model is pushed at the end; None never pushes.
        alarm_window: evaluations (or steps, for what every step measures) over which the collapse alarm looks.
        alarm_drop: relative fall of pass@k or diversity that raises it while mean@k rises.
        alarm_length: growth of the mean length over the window that raises it, as a factor; also by how much the
            shares of responses cut and of those with a heading must have grown.
        alarm_stops: whether the alarm ends the run, after a checkpoint.
        processes: how many processes the recipe is meant for, which is what ``--dry-run`` reckons with.
    """

    output: Path = Path("runs/mopd")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    save_every: Count = 10
    keep: Count = 2
    evaluate_every: Annotated[int, Field(ge=0)] = 10
    evaluate_k: Count = 8
    best_metric: str = "mean"
    evidence: bool = True
    report_to: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ()
    push_to_hub: str | None = None
    alarm_window: Annotated[int, Field(ge=2)] = 5
    alarm_drop: Share = 0.15
    alarm_length: Annotated[float, Field(gt=1)] = 2.0
    alarm_stops: bool = False
    processes: Count = 1

    def __post_init__(self) -> None:
        if self.best_metric not in ("mean", "pass"):
            raise ValueError(f"best_metric must be 'mean' (mean@k) or 'pass' (pass@k), got {self.best_metric!r}")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RunConfig:
    """A run: one class for each TOML table, and the rules that tie them together."""

    method: str = "mopd"
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    rollouts: RolloutConfig = dataclasses.field(default_factory=RolloutConfig)
    teacher: TeacherConfig = dataclasses.field(default_factory=TeacherConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    run: OutputConfig = dataclasses.field(default_factory=OutputConfig)

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"unknown method {self.method!r}; known are {', '.join(METHODS)}")
        self._check_teacher()
        self._check_saving()
        self.accumulation(self.run.processes)

    def _check_teacher(self) -> None:
        method, asked = self.recipe, self.teacher
        if asked.condition is not None and not method.any_condition and asked.condition != method.condition:
            raise ValueError(
                f"method {method.name} takes no condition, got {asked.condition!r}: method mopd trains on any"
                if method.condition is None
                else f"method {method.name} has the condition {method.condition}, got {asked.condition!r}: method "
                "mopd trains on any"
            )
        if method.condition is not None:
            check_condition(
                asked.condition or method.condition, self.rollouts.group_size, self.rollouts.prompts_per_step
            )
        if asked.teacher is not None and (method.teacher is None or method.objective == "preference"):
            raise ValueError(f"method {method.name} chooses no teacher, got {asked.teacher!r}: leave teacher out")
        if method.name == "opd" and self.teacher_kind != "external":
            raise ValueError(
                f"method opd needs another model as teacher, got {self.teacher_kind!r}: under the question alone a "
                "self-teacher has nothing to say"
            )
        if (self.teacher_kind == "external") != (asked.teacher_model is not None):
            raise ValueError(
                "teacher_model goes with teacher = 'external' (method opd has it), and that needs teacher_model: a "
                f"preset, hub id or folder; got teacher {self.teacher_kind!r} and teacher_model {asked.teacher_model!r}"
            )
        if self.loss.distillation_weight == 0 and method.objective == "distil":
            raise ValueError("distillation_weight = 0 leaves the policy gradient alone: say method = 'grpo'")

    def _check_saving(self) -> None:
        run, updates, steps = self.run, self.optimizer.updates_per_batch, self.optimizer.steps
        if steps % updates:
            raise ValueError(
                f"steps must be a multiple of updates_per_batch, so that the last checkpoint, from which a longer run "
                f"goes on, does not stand amid the updates on one batch; got {steps} and {updates}"
            )
        if run.save_every % updates:
            raise ValueError(
                f"save_every must be a multiple of updates_per_batch, so that a checkpoint never stands amid the "
                f"updates on one batch; got {run.save_every} and {updates}"
            )
        if run.evaluate_every % run.save_every:
            raise ValueError(
                f"evaluate_every must be a multiple of save_every, so that the best evaluated step has a checkpoint; "
                f"got {run.evaluate_every} and {run.save_every}"
            )

    @property
    def recipe(self) -> Method:
        """The method itself."""
        return METHODS[self.method]

    @property
    def condition(self) -> Condition | None:
        """The teacher's context; None for a method without one."""
        name = self.teacher.condition or self.recipe.condition
        if name is None:
            return None
        return check_condition(name, self.rollouts.group_size, self.rollouts.prompts_per_step)

    @property
    def teacher_kind(self) -> str | None:
        """Who the teacher (of ``dpo`` the reference) is; None for a method without one."""
        return None if self.recipe.teacher is None else self.teacher.teacher or self.recipe.teacher

    @property
    def batch(self) -> int:
        """Rollouts of a step, over all processes."""
        return self.rollouts.group_size * self.rollouts.prompts_per_step

    def accumulation(self, processes: int) -> int:
        """Forward passes of a process in an optimiser step.

        Raises:
            ValueError: groups would be split between processes, or micro-batches do not divide a process's share.
        """
        prompts, size, micro = self.rollouts.prompts_per_step, self.rollouts.group_size, self.optimizer.micro_batch
        if prompts % processes:
            raise ValueError(
                f"{processes} processes cannot share {prompts} groups without splitting one: make prompts_per_step "
                f"a multiple of {processes}"
            )
        share = prompts // processes * size
        if share % micro:
            fits = [n for n in range(1, min(micro, share) + 1) if share % n == 0]
            raise ValueError(
                f"micro_batch = {micro} does not divide the {share} rollouts of a process ({prompts} groups of {size} "
                f"rollouts over {processes} processes): {fits[-1]} would"
            )
        if self.recipe.objective == "preference" and (micro % 2 or size % 2):
            raise ValueError(
                "method dpo keeps a pair within a micro-batch, so micro_batch and group_size must be even; got "
                f"{micro} and {size}"
            )
        return share // micro

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides how training goes on, but for rounding: a resumed run must have the same."""
        values = self.as_dict()
        for key in ("output", "keep", "report_to", "push_to_hub", "processes", "alarm_stops"):
            del values["run"][key]
        values["teacher"]["templates"] = self.teacher.wording.hash  # the wording counts, not where it stands
        if self.optimizer.schedule == "constant":  # any other depends on how many steps are to come
            del values["optimizer"]["steps"]
        del values["rollouts"]["vllm_url"]
        values["teacher"]["on_overflow"] = "shorten"  # a run that got so far with "error" has shortened nothing
        del values["optimizer"]["micro_batch"], values["model"]["gradient_checkpointing"]  # means are over the step
        return content_id(values)

    def as_dict(self) -> dict[str, Any]:
        """The resolved configuration as JSON values."""
        return TypeAdapter(RunConfig).dump_python(self, mode="json")


SECTIONS: dict[str, Any] = {
    name: hint for name, hint in get_type_hints(RunConfig).items() if dataclasses.is_dataclass(hint)
}


def read_config(path: str | Path | None, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """A configuration from a TOML file (or the name of a shipped one) and overrides by key.

    Args:
        path: the file; None for the defaults.
        overrides: values by key, of whichever table.

    Raises:
        ConfigError: the file cannot be read, or a key or value is not one that can be run.
    """
    values = {} if path is None else _read_toml(path)
    for key, value in (overrides or {}).items():
        if key == "method":
            values["method"] = value
        else:
            values.setdefault(SECTION_OF[key], {})[key] = value
    try:
        return TypeAdapter(RunConfig).validate_python(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, path)) from None


def _read_toml(path: str | Path) -> dict[str, Any]:
    file = Path(path)
    if not file.exists() and file.suffix == "" and (CONFIGS / f"{file.name}.toml").exists():
        file = CONFIGS / f"{file.name}.toml"
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        shipped = ", ".join(sorted(f.stem for f in CONFIGS.glob("*.toml")))
        raise ConfigError(
            f"no configuration {str(path)!r}; give a TOML file, or one of those shipped: {shipped}"
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{file} cannot be read as TOML: {error}") from error


def _explain(error: ValidationError, path: str | Path | None) -> str:
    lines = []
    for one in error.errors():
        where = ".".join(str(part) for part in one["loc"])
        message = one["msg"].removeprefix("Value error, ")
        if one["type"] == "unexpected_keyword_argument":
            table = SECTIONS.get(str(one["loc"][0]), RunConfig)
            known = ", ".join(f.name for f in dataclasses.fields(table))
            message = f"unknown key; known are {known}"
        elif one["type"] != "value_error":
            message = f"{message}, got {one['input']!r}"
        lines.append(f"{where}: {message}" if where else message)
    of = "" if path is None else f" in {path}"
    return f"configuration{of}: " + "; ".join(lines)


def _keys() -> dict[str, str]:
    found: dict[str, str] = {}
    for section, table in SECTIONS.items():
        for field in dataclasses.fields(table):
            if field.name in found:
                raise TypeError(f"key {field.name} stands in two tables, so that no flag can name it")
            found[field.name] = section
    return found


SECTION_OF = _keys()
"""The table of every key."""
