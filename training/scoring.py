"""Token scores of a micro-batch for the evidence, from the logits that the loss was made of."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from training import losses
from training.batch import Batch
from training.config import RunConfig
from training.evidence import Scored

__all__ = ["clip_rate", "clipped_share", "policy_clip_rate", "score_rows"]


def score_rows(
    run: RunConfig,
    batch: Batch,
    inputs: Mapping[str, Tensor],
    student: Tensor,
    teacher: Tensor,
    now: Tensor,
    then: Tensor | None,
) -> list[Scored]:
    """Scores of the micro-batch's responses that have a context.

    Args:
        run: of which the temperature is taken out of the logits again.
        batch: of the step.
        inputs: of the micro-batch: ``row`` [B], ``completion_ids`` and ``completion_mask`` [B, T].
        student: logits [B, T, V], divided by the temperature.
        teacher: logits [B, T, V'], likewise.
        now: log-probs of the sampled tokens under the student [B, T].
        then: the same under the policy that sampled; None where it is the student itself.
    """
    heat, loss, found = run.rollouts.temperature, run.loss, []
    for i, row in enumerate(inputs["row"].tolist()):
        placed = batch.rows[batch.order[row]]
        n = int(inputs["completion_mask"][i].sum())
        if placed.context_id is None or not n:
            continue
        ids = inputs["completion_ids"][i, :n]
        scores = losses.row_scores(student[i, :n].detach() * heat, teacher[i, :n] * heat, ids, loss.top_k)
        kept = inputs["completion_mask"][i].bool()
        found.append(
            Scored(
                rollout_id=placed.rollout_id,
                teacher=scores.teacher.numpy(),
                student=scores.student.numpy(),
                teacher_entropy=scores.teacher_entropy.numpy(),
                student_entropy=scores.student_entropy.numpy(),
                teacher_rank=scores.teacher_rank.numpy(),
                student_rank=scores.student_rank.numpy(),
                student_mass=float(scores.student_mass.mean()),
                teacher_mass=float(scores.teacher_mass.mean()),
                clipped=clip_rate(now[i], None if then is None else then[i], loss.importance_clip, kept),
            )
        )
    return found


def clip_rate(now: Tensor, then: Tensor | None, clip: float | None, kept: Tensor) -> float | None:
    """Share of the kept tokens whose importance ratio is over the clip; None where nothing is weighed."""
    if then is None or clip is None or not kept.any():
        return None
    return float(((now.detach() - then)[kept].exp() > clip).float().mean())


def policy_clip_rate(
    now: Tensor, then: Tensor, advantages: Tensor, kept: Tensor, *, clip_low: float, clip_high: float
) -> float | None:
    """Share of the kept tokens that the policy gradient's clip leaves without a gradient; None where none is kept.

    Args:
        now: log-probs of the sampled tokens under the student [B, T].
        then: the same under the policy that sampled.
        advantages: of the responses [B].
        kept: true where there is a token [B, T].
        clip_low: a token of negative advantage is cut below a ratio of 1 - clip_low ...
        clip_high: ... one of positive advantage above 1 + clip_high.
    """
    if not kept.any():
        return None
    ratio, gain = (now.detach() - then).exp(), advantages[:, None]
    cut = ((gain > 0) & (ratio > 1 + clip_high)) | ((gain < 0) & (ratio < 1 - clip_low))
    return float(cut[kept].float().mean())


def clipped_share(run: RunConfig, inputs: Mapping[str, Tensor], now: Tensor, then: Tensor | None) -> float | None:
    """How much of a micro-batch the clip of the method's objective touches: of the policy gradient its own, of a
    distillation that of the importance ratio; None for a method without."""
    kept = inputs["completion_mask"].bool()
    match run.recipe.objective:
        case "policy" if then is not None:
            low, high = run.loss.clip_low, run.loss.clip_high
            return policy_clip_rate(now, then, inputs["advantages"], kept, clip_low=low, clip_high=high)
        case "distil":
            return clip_rate(now, then, run.loss.importance_clip, kept)
        case _:
            return None
