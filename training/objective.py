"""A micro-batch's part of the step's loss, by the objective of the method."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from training import losses
from training.batch import Batch
from training.config import RunConfig

__all__ = ["idle", "part"]


def part(
    run: RunConfig,
    batch: Batch,
    inputs: Mapping[str, Tensor],
    *,
    student: Tensor,
    teacher: Tensor | None,
    now: Tensor,
    then: Tensor | None,
    processes: int,
) -> Tensor:
    """This micro-batch's part of the loss; the parts of all micro-batches and processes add up to it.

    Args:
        run: says which objective.
        batch: of the step.
        inputs: of the micro-batch: ``completion_ids`` and ``completion_mask`` [B, T], ``self_distillation_mask`` and
            ``advantages`` [B].
        student: logits [B, T, V], with gradient.
        teacher: logits [B, T, V'], for the objectives ``distil`` and ``preference``.
        now: log-probs of the sampled tokens under the student [B, T].
        then: the same under the policy that sampled; None where it is the student itself.
        processes: over which gradients are averaged.

    Returns:
        A scalar.
    """
    config, ids, mask = run.loss, inputs["completion_ids"], inputs["completion_mask"]
    say = mask * inputs["self_distillation_mask"][:, None]
    match run.recipe.objective:
        case "preference":
            reference = losses.log_probs(_given(teacher), ids)
            paired = inputs["self_distillation_mask"]
            pairs = losses.preference(now, reference, mask, paired, config.dpo_beta)
            return pairs.sum() * processes * 2 / batch.shares.sequences
        case "likelihood":
            return losses.mean_over_step(losses.likelihood(now), say, config.average, batch.shares, processes)
        case "policy":
            return _policy_part(run, batch, inputs, now, then, processes)
        case "distil":
            per_token = losses.divergence(student, _given(teacher), ids, config)
            per_token = losses.weigh(per_token, now, then, config.importance_clip)
            loss = losses.mean_over_step(per_token, say, config.average, batch.shares, processes)
            if config.distillation_weight < 1:
                share = config.distillation_weight
                loss = share * loss + (1 - share) * _policy_part(run, batch, inputs, now, then, processes)
            return loss


def idle(run: RunConfig, *, sequences: float, flat: bool) -> bool:
    """Whether a step's loss has no gradient at all.

    Args:
        run: says which objective.
        sequences: responses of all processes with a say in it.
        flat: whether all advantages are 0.
    """
    match run.recipe.objective:
        case "policy":
            return flat
        case "distil":
            return not sequences and (flat or run.loss.distillation_weight == 1)
        case _:
            return not sequences


def _policy_part(
    run: RunConfig, batch: Batch, inputs: Mapping[str, Tensor], now: Tensor, then: Tensor | None, processes: int
) -> Tensor:
    config = run.loss
    per_token = losses.policy_gradient(
        now, then, inputs["advantages"], clip_low=config.clip_low, clip_high=config.clip_high
    )
    return losses.mean_over_step(per_token, inputs["completion_mask"], config.average, batch.policy_shares, processes)


def _given(teacher: Tensor | None) -> Tensor:
    """The teacher's logits, which every method with a teacher has."""
    if teacher is None:
        raise RuntimeError("the method has a teacher, but no teacher was asked")
    return teacher
