"""A run's configuration in TRL's words."""

from __future__ import annotations

from typing import Any

import torch
from trl.experimental.sdpo import SDPOConfig

from training.config import ConfigError, RunConfig

__all__ = ["trl_arguments"]

TEACHERS = {"ema": "ema", "live": "live", "frozen": "base", "external": "base", None: "live"}
DIVERGENCES = {"full": "full_logits", "top_k": "topk_logits", "sampled": "sampled_token"}


def trl_arguments(config: RunConfig, processes: int, *, resuming: bool) -> SDPOConfig:
    """TRL's configuration of the run. What TRL would cut, mask or average in its own way is left to ours.

    Raises:
        ConfigError: the batch cannot be divided, or ``accelerate launch`` has another precision than the run.
    """
    try:
        accumulation = config.accumulation(processes)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    optimizer, rollouts, run = config.optimizer, config.rollouts, config.run
    cuda = torch.cuda.is_available()
    warm = optimizer.warmup_steps and optimizer.schedule == "constant"
    arguments = SDPOConfig(
        output_dir=str(run.output),
        seed=run.seed,
        use_cpu=not cuda,
        bf16=config.model.precision == "bfloat16",
        max_steps=optimizer.steps,
        learning_rate=optimizer.learning_rate,
        lr_scheduler_type="constant_with_warmup" if warm else optimizer.schedule,
        warmup_steps=optimizer.warmup_steps,
        weight_decay=optimizer.weight_decay,
        max_grad_norm=optimizer.max_grad_norm,
        per_device_train_batch_size=optimizer.micro_batch,
        per_device_eval_batch_size=run.evaluate_k,
        gradient_accumulation_steps=accumulation,
        steps_per_generation=accumulation,
        num_iterations=optimizer.updates_per_batch,
        num_generations=rollouts.group_size,
        num_generations_eval=run.evaluate_k,
        activation_checkpointing=config.model.gradient_checkpointing,
        max_prompt_length=None,  # pyright: ignore[reportArgumentType]  # refused beforehand, never cut
        max_completion_length=rollouts.max_response_tokens,
        max_reprompt_len=config.teacher.max_context_tokens,
        temperature=rollouts.temperature,
        top_p=rollouts.top_p,
        shuffle_dataset=False,  # the order is written out beforehand
        chat_template_kwargs=dict(config.model.template_kwargs),
        trust_remote_code=config.model.trust_remote_code,
        model_init_kwargs=_model_kwargs(config),
        teacher_model_kind=TEACHERS[config.teacher_kind],
        teacher_update_rate=config.teacher.ema_rate,
        diagnostics_warning_interval=0,  # the alarm says it
        success_reward_threshold=config.data.success_threshold,
        **_loss(config),
        **_vllm(config),
        logging_steps=1,
        logging_nan_inf_filter=False,  # a loss that is no number ends the run
        report_to=list(run.report_to) or "none",
        eval_strategy="steps" if run.evaluate_every else "no",
        eval_steps=run.evaluate_every or None,
        eval_on_start=bool(run.evaluate_every) and not resuming,
        save_strategy="steps",
        save_steps=run.save_every,
        save_total_limit=None,  # training.checkpoints.prune, after the new one is whole
        dataloader_pin_memory=cuda,
        disable_tqdm=False,
    )
    if arguments.n_gpu > 1:  # transformers would spread the model over all of them, and multiply the batch
        arguments._n_gpu = 1
    if arguments.mixed_precision != ("bf16" if arguments.bf16 else "no"):
        raise ConfigError(
            f"accelerate launch has mixed_precision {arguments.mixed_precision!r} and the run precision "
            f"{config.model.precision!r}: leave it 'no' there, and say precision = 'bfloat16' or 'float32'"
        )
    return arguments


def _model_kwargs(config: RunConfig) -> dict[str, Any]:
    found: dict[str, Any] = {"dtype": "float32", "device_map": None}
    if config.model.attention is not None:
        found["attn_implementation"] = config.model.attention
    return found


def _loss(config: RunConfig) -> dict[str, Any]:
    loss = config.loss
    return {
        "distillation_alpha": loss.alpha,
        "distillation_mode": DIVERGENCES[loss.divergence],
        "distillation_topk": loss.top_k if loss.divergence == "top_k" else None,
        "distillation_add_tail": loss.tail,
        "distillation_is_clip": loss.importance_clip,
        "distillation_weight": loss.distillation_weight,
        "scale_rewards": "none",
    }


def _vllm(config: RunConfig) -> dict[str, Any]:
    rollouts = config.rollouts
    if rollouts.engine == "transformers":
        return {}
    found: dict[str, Any] = {"use_vllm": True, "vllm_mode": rollouts.engine.removeprefix("vllm-")}
    if rollouts.engine == "vllm-server":
        return found | {"vllm_server_base_url": rollouts.vllm_url}
    return found | {
        "vllm_gpu_memory_utilization": rollouts.vllm_memory,
        "vllm_tensor_parallel_size": rollouts.vllm_tensor_parallel,
        "vllm_max_model_length": rollouts.max_prompt_tokens + rollouts.max_response_tokens,
        "vllm_enable_sleep_mode": True,
    }
