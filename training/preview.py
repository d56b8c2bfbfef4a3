"""``--dry-run``: the resolved plan in words, before any weight is loaded.

The memory estimate adds up what is sure to be there: float32 weights, gradients and the two moments of AdamW, the
teacher, and the float32 logits of one micro-batch. Activations, the sampler's cache and what the allocator loses come
on top; with FSDP2 or ZeRO-3 the first three are divided by the number of processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mopd import models
from mopd.conditions import Condition
from mopd.contexts import render
from mopd.controls import Pool, assign, shown_texts
from mopd.peers import PROTOCOLS, Peer
from mopd.rollouts import Group, Prompt, Rollout
from mopd.tasks import TaskItem
from mopd.tokens import Codec, Refusal, fit_context
from training.config import RunConfig
from training.data import Prompts

__all__ = ["Memory", "describe", "estimate_memory", "example_context"]

FLOAT = 4
GIB = 1024**3


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Parameters, and bytes of what must be held."""

    parameters: int
    trainable: int
    weights: int
    optimizer: int
    teacher: int
    logits: int

    @property
    def total(self) -> int:
        return self.weights + self.optimizer + self.teacher + self.logits


def estimate_memory(config: RunConfig) -> Memory:
    """What a process must hold if nothing is sharded, from the models' configurations alone."""
    student, vocabulary, trainable = _size(config.model.model, config)
    kind = config.teacher_kind
    teacher = 0
    if kind == "external" and config.teacher.teacher_model is not None:
        teacher = _size(config.teacher.teacher_model, config, adapters=False)[0]
    elif kind in ("ema", "frozen"):
        teacher = (trainable if kind == "ema" else 0) if config.model.lora_rank else student
    # Of the student: logits, log-softmax and the gradient of the logits; of the teacher the first two.
    copies = 5 if config.teacher_kind else 3
    rows = config.optimizer.micro_batch * config.rollouts.max_response_tokens
    return Memory(
        parameters=student,
        trainable=trainable,
        weights=FLOAT * student,
        optimizer=3 * FLOAT * trainable,
        teacher=FLOAT * teacher,
        logits=FLOAT * copies * rows * vocabulary,
    )


def _size(name: str, config: RunConfig, *, adapters: bool = True) -> tuple[int, int, int]:
    """(parameters, size of the vocabulary, trainable parameters) of a model, none of which is made."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    trust = config.model.trust_remote_code
    settings = AutoConfig.from_pretrained(models.resolve(name, trust_remote_code=trust), trust_remote_code=trust)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(settings, trust_remote_code=trust)
    parameters = sum(p.numel() for p in model.parameters())
    vocabulary = settings.get_text_config().vocab_size
    if not adapters or not config.model.lora_rank:
        return parameters, vocabulary, parameters
    from peft import get_peft_model

    from training.teachers import lora_config

    adapted = get_peft_model(model, lora_config(config.model))
    return parameters, vocabulary, sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def example_context(config: RunConfig, items: Sequence[TaskItem], codec: Codec | None) -> str | None:
    """The first prompt's teacher context, with stand-ins for the responses; None for a method without a context.

    With a tokenizer it is the text of the context's token ids, markup of the chat template included.
    """
    cond = config.condition
    if cond is None:
        return None
    groups = [_stand_in(config, item) for item in items[:2]]
    target = groups[0].rollouts[-1].rollout_id
    pool = Pool(groups, config.teacher.peer_seed) if cond.source != "group" else None
    for unit in assign(PROTOCOLS["self_exclusion"], groups[0], cond, config.teacher.peer_seed, pool):
        if target in unit.targets and unit.peers is not None:
            lent = {r.rollout_id: r for group in groups for r in group.rollouts}
            texts = shown_texts(cond, unit.peers, lent, config.teacher.peer_seed)
            if codec is None:
                return _in_words(render(cond, groups[0].prompt, unit.peers, texts, config.teacher.wording))
            return _fitted(config, codec, groups[0], cond, unit.peers, texts)
    return f"({cond.name} cannot be shown on stand-in responses)"


def _fitted(
    config: RunConfig, codec: Codec, group: Group, cond: Condition, peers: Sequence[Peer], texts: Mapping[str, str]
) -> str:
    """The text of a context's token ids, or why there are none."""
    limit, templates = config.teacher.max_context_tokens, config.teacher.wording
    try:
        context = fit_context(codec, group, cond, peers, templates=templates, max_tokens=limit, texts=texts)
    except Refusal as refusal:
        return f"(none: {refusal}; raise max_context_tokens)"
    return codec.decode(context.token_ids.tolist())


def _in_words(prompt: Prompt) -> str:
    """A prompt without the markup of any chat template."""
    return prompt if isinstance(prompt, str) else "\n\n".join(f"[{m['role']}]\n{m['content']}" for m in prompt)


def _stand_in(config: RunConfig, item: TaskItem) -> Group:
    size = config.rollouts.group_size
    rollouts = tuple(
        Rollout(
            rollout_id=f"{item.item_id}/{i:02d}",
            group_id=item.item_id,
            response=f"(response {i + 1}: a {'success' if i < (size + 1) // 2 else 'failure'})",
            success=i < (size + 1) // 2,
            answer=str(i),
            feedback=None if i < (size + 1) // 2 else "(what the verifier says)",
        )
        for i in range(size)
    )
    return Group(group_id=item.item_id, task=item.task, prompt=item.prompt, rollouts=rollouts)


def describe(config: RunConfig, prompts: Prompts, codec: Codec | None, processes: int) -> str:
    """The plan as text."""
    rollouts, optimizer, cond = config.rollouts, config.optimizer, config.condition
    teacher = config.teacher_kind or "none"
    if config.teacher.teacher_model:
        teacher += f" ({config.teacher.teacher_model})"
    forwards = config.accumulation(processes)
    generations = -(-optimizer.steps // optimizer.updates_per_batch)
    passes = generations * rollouts.prompts_per_step / len(prompts.train)
    lines = [
        f"method: {config.method} ({config.recipe.label})",
        f"student: {config.model.model}"
        + (f", LoRA of rank {config.model.lora_rank}" if config.model.lora_rank else ""),
        f"teacher: {teacher}" + (f", context {cond.name} ({cond.label})" if cond else ""),
        f"prompts: {len(prompts.train)} of {config.data.task} to train on, {len(prompts.held_out)} held out, "
        + ("their lengths not known" if codec is None else f"{prompts.dropped} left out for their length"),
        f"effective batch: {_count(rollouts.prompts_per_step, 'group')} of {rollouts.group_size} = {config.batch} "
        f"rollouts a step; {_count(processes, 'process', 'es')}, {_count(optimizer.micro_batch, 'rollout')} a forward, "
        f"{_count(forwards, 'forward')} a step",
        f"steps: {optimizer.steps} on {generations * config.batch} rollouts, {passes:.2f} passes over the prompts",
        f"limits in tokens: prompt {rollouts.max_prompt_tokens}, response {rollouts.max_response_tokens}, "
        f"context {config.teacher.max_context_tokens}",
        f"loss: {_loss(config)}",
        _memory(config),
    ]
    context = example_context(config, prompts.train, codec)
    if context is not None:
        lines += ["", "first teacher context, with stand-ins for the responses:", context]
    return "\n".join(lines)


def _count(n: int, word: str, plural: str = "s") -> str:
    return f"{n} {word}{plural * (n != 1)}"


def _loss(config: RunConfig) -> str:
    loss = config.loss
    match config.recipe.objective:
        case "policy":
            return f"policy gradient, {loss.average} mean"
        case "likelihood":
            return f"negative log-likelihood of the successes, {loss.average} mean"
        case "preference":
            return f"preference of a success over a failure, beta {loss.dpo_beta:g}, mean over pairs"
        case "distil":
            return _distillation(config)


def _distillation(config: RunConfig) -> str:
    loss, updates = config.loss, config.optimizer.updates_per_batch
    over = {"full": "the full vocabulary", "top_k": f"the top {loss.top_k} tokens", "sampled": "the sampled token"}
    tail = " and a tail bucket" if loss.divergence == "top_k" and loss.tail else ""
    told = f"generalised JSD, alpha {loss.alpha:g}, over {over[loss.divergence]}{tail}, {loss.average} mean"
    if updates > 1:  # on the first update every ratio is 1
        clip = "none" if loss.importance_clip is None else f"{loss.importance_clip:g}"
        told += f", {updates} updates on a batch with importance clip {clip}"
    if loss.distillation_weight < 1:
        told += f"; {loss.distillation_weight:g} of it and {1 - loss.distillation_weight:g} of the policy gradient"
    return told


def _memory(config: RunConfig) -> str:
    try:
        memory = estimate_memory(config)
    except (OSError, ValueError) as error:
        return f"memory: not known, as a model's configuration cannot be read ({str(error).splitlines()[0]})"
    parts = {
        "weights": memory.weights,
        "gradients and optimiser": memory.optimizer,
        "teacher": memory.teacher,
        "logits of a forward": memory.logits,
    }
    told = ", ".join(f"{what} {n / GIB:.2f}" for what, n in parts.items())
    return (
        f"memory of a process, unsharded: at least {memory.total / GIB:.2f} GiB ({told}); "
        f"{memory.parameters:,} parameters, {memory.trainable:,} of them trained"
    )
