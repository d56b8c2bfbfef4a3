"""The losses: per-token values, then one mean over a whole step.

Per-token divergences and the importance clip are TRL's (``trl.experimental.sdpo.loss_utils``). With student S, teacher
T and mixture M = (1 - alpha) S + alpha T, for each token position

    alpha = 0      KL(T || S)                                   forward
    alpha = 1      KL(S || T)                                   reverse
    otherwise      (1 - alpha) KL(S || M) + alpha KL(T || M)    generalised Jensen-Shannon

so alpha = 0.5 is the Jensen-Shannon divergence. (The generalised form tends to 0 at both ends, where TRL and we
take the KL itself, as GKD does, arXiv 2306.13649.)

Deviation from TRL: its means are over a micro-batch, so that a token weighs more the fewer tokens its neighbours have,
and its mean over sequences counts those without a context as zeros. Ours are over all tokens (or sequences) of the
optimiser step that have a say, over all micro-batches and processes: the number of processes and the size of a
micro-batch change nothing but rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from trl.experimental.sdpo.loss_utils import (
    apply_importance_sampling_clipping,
    compute_full_logit_self_distillation_loss,
    compute_sampled_token_self_distillation_loss,
    compute_topk_self_distillation_loss,
)
from trl.trainer.utils import selective_log_softmax

from training.config import LossConfig

__all__ = [
    "Shares",
    "advantages",
    "divergence",
    "likelihood",
    "mean_over_step",
    "policy_gradient",
    "preference",
    "step_shares",
    "weigh",
]

CHUNK = 512
"""Positions whose full-vocabulary log-probs are held at once where no gradient is needed."""


def divergence(student: Tensor, teacher: Tensor, ids: Tensor, loss: LossConfig) -> Tensor:
    """Divergence of each token position, in nats.

    Args:
        student: logits [B, T, V], with gradient.
        teacher: logits [B, T, V'], without. Where embeddings are padded to different sizes (V is not V'), both are
            cut to the smaller: what is cut is no token.
        ids: sampled tokens [B, T].
        loss: which divergence.

    Returns:
        [B, T]. For ``sampled`` its *gradient* is that of the reverse KL's estimate at the sampled token; the value is
        the detached log-ratio times the log-prob, and no divergence.
    """
    width = min(student.shape[-1], teacher.shape[-1])
    student, teacher = student[..., :width], teacher[..., :width]
    if loss.divergence == "full":
        return compute_full_logit_self_distillation_loss(student, teacher, distillation_alpha=loss.alpha)
    if loss.divergence == "sampled":
        return compute_sampled_token_self_distillation_loss(student, teacher, ids, distillation_alpha=loss.alpha)
    return compute_topk_self_distillation_loss(
        student,
        teacher,
        distillation_topk=min(loss.top_k, width),
        distillation_alpha=loss.alpha,
        distillation_add_tail=loss.tail,
    )


def weigh(per_token: Tensor, now: Tensor, then: Tensor | None, clip: float | None) -> Tensor:
    """Each token's loss times min(p_now / p_then, clip), the ratio without gradient.

    Args:
        per_token: [B, T].
        now: log-probs of the sampled tokens under the student [B, T].
        then: the same under the policy that sampled; None where it is the student itself, whose ratio is 1.
        clip: the highest weight; None for no correction.
    """
    if then is None or clip is None:
        return per_token
    return apply_importance_sampling_clipping(per_token, now, then, clip)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shares:
    """What divides the sums of an optimiser step: tokens and sequences with a say, over all processes."""

    tokens: float
    sequences: float


def step_shares(tokens: Tensor, sequences: Tensor) -> Shares:
    """Shares from the numbers of tokens and sequences; at least 1 each, so that a step without any is 0."""
    return Shares(tokens=max(float(tokens), 1.0), sequences=max(float(sequences), 1.0))


def mean_over_step(
    per_token: Tensor, mask: Tensor, how: Literal["token", "sequence"], shares: Shares, parts: float
) -> Tensor:
    """This micro-batch's part of the mean over the step.

    Args:
        per_token: [B, T].
        mask: 1 where a token has a say [B, T].
        how: ``token``: the sum over tokens by the step's tokens. ``sequence``: the sum over responses of their means,
            by the step's responses that have a say.
        shares: of the step.
        parts: what the result is divided by on the way: the processes, over which gradients are averaged.
    """
    kept = torch.where(mask.bool(), per_token, 0.0)  # a masked NaN would spread through a product
    if how == "token":
        return kept.sum() * parts / shares.tokens
    return (kept.sum(-1) / mask.sum(-1).clamp(min=1)).sum() * parts / shares.sequences


def policy_gradient(
    now: Tensor, then: Tensor | None, advantage: Tensor, *, clip_low: float, clip_high: float
) -> Tensor:
    """Clipped policy-gradient loss of each token [B, T], as PPO and GRPO have it.

    Args:
        now: log-probs of the sampled tokens [B, T].
        then: under the policy that sampled; None for the student itself.
        advantage: of each response [B].
        clip_low: the ratio is clipped to 1 - clip_low ...
        clip_high: ... and 1 + clip_high.
    """
    ratio = torch.exp(now - (now.detach() if then is None else then))
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    weight = advantage[:, None]
    return -torch.minimum(ratio * weight, clipped * weight)


def advantages(rewards: Tensor, group_size: int, scale: Literal["group", "batch", "none"]) -> Tensor:
    """Rewards less their group's mean, scaled. An unjudged response (NaN) has advantage 0 and enters no mean. Where all
    rewards of a group are equal its advantages are 0 to the last bit: a mean of 0.3s need not be 0.3.

    Deviation from TRL, which takes an unjudged response for one of reward 0.

    Args:
        rewards: of all processes, groups one after the other [N].
        group_size: rollouts of a group.
        scale: by the standard deviation of the group or the batch, or by 1.
    """
    grouped = rewards.view(-1, group_size)
    centred = torch.where(_equal(grouped), 0.0, grouped - grouped.nanmean(1, keepdim=True))
    if scale == "group":
        centred = centred / (_std(grouped, 1) + 1e-4)
    elif scale == "batch":
        centred = centred / (_std(rewards[None], 1) + 1e-4)
    return centred.nan_to_num(0.0).flatten()


def _equal(grouped: Tensor) -> Tensor:
    """Whether all that is known of a group [P, G] is one value [P, 1]; false where nothing is."""
    unknown = grouped.isnan()
    low, high = (torch.where(unknown, end, grouped) for end in (torch.inf, -torch.inf))
    return low.amin(1, keepdim=True) == high.amax(1, keepdim=True)


def _std(values: Tensor, dim: int) -> Tensor:
    """Standard deviation over what is known, with n - 1, kept as a dimension; 0 where fewer than two are known."""
    known = ~values.isnan()
    n = known.sum(dim, keepdim=True)
    squares = (values - values.nanmean(dim, keepdim=True)).square().nansum(dim, keepdim=True)
    return torch.where(n > 1, (squares / (n - 1).clamp(min=1)).sqrt(), 0.0)


def likelihood(now: Tensor) -> Tensor:
    """Negative log-prob of each sampled token [B, T]: rejection-sampling fine-tuning once failures are masked."""
    return -now


def preference(now: Tensor, reference: Tensor, mask: Tensor, paired: Tensor, beta: float) -> Tensor:
    """DPO's loss of each pair (arXiv 2305.18290, equation 7): -log sigmoid(beta (d_success - d_failure)).

    Args:
        now: log-probs of the sampled tokens [B, T]; rows 2i and 2i + 1 are success and failure of one pair.
        reference: the same under the reference.
        mask: 1 where there is a token [B, T].
        paired: 1 for rows that are in a pair [B].
        beta: how much divergence may cost.

    Returns:
        [B / 2], 0 for rows without a pair.
    """
    moved = torch.where(mask.bool(), now - reference, 0.0).sum(-1)
    losses = -logsigmoid(beta * (moved[0::2] - moved[1::2]))
    return torch.where(paired[0::2].bool(), losses, 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class RowScores:
    """Of one response's tokens [T]: what the study's tables hold (nats, and ranks from 1), and the mass of the
    student's top k."""

    teacher: Tensor
    student: Tensor
    teacher_entropy: Tensor
    student_entropy: Tensor
    teacher_rank: Tensor
    student_rank: Tensor
    student_mass: Tensor
    teacher_mass: Tensor


@torch.no_grad()
def row_scores(student: Tensor, teacher: Tensor, ids: Tensor, top_k: int) -> RowScores:
    """Scores of one response from its logits [T, V] and tokens [T], a chunk of positions at a time."""
    width = min(student.shape[-1], teacher.shape[-1])
    parts = []
    for start in range(0, len(ids), CHUNK):
        rows = slice(start, start + CHUNK)
        log_s = student[rows, :width].float().log_softmax(-1)
        log_t = teacher[rows, :width].float().log_softmax(-1)
        picked = ids[rows, None]
        top, places = log_s.topk(min(top_k, width), -1)
        parts.append(
            (
                log_t.gather(-1, picked)[:, 0],
                log_s.gather(-1, picked)[:, 0],
                _entropy(log_t),
                _entropy(log_s),
                _rank(log_t, picked),
                _rank(log_s, picked),
                top.exp().sum(-1),
                log_t.gather(-1, places).exp().sum(-1),
            )
        )
    columns = [torch.cat(column).cpu() for column in zip(*parts, strict=True)]
    return RowScores(
        teacher=columns[0],
        student=columns[1],
        teacher_entropy=columns[2],
        student_entropy=columns[3],
        teacher_rank=columns[4],
        student_rank=columns[5],
        student_mass=columns[6],
        teacher_mass=columns[7],
    )


def _rank(log_p: Tensor, picked: Tensor) -> Tensor:
    return 1 + (log_p > log_p.gather(-1, picked)).sum(-1, dtype=torch.int32)


def _entropy(log_p: Tensor) -> Tensor:
    return -(log_p.exp() * log_p).nan_to_num(0.0).sum(-1)


def log_probs(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probs [B, T] of tokens [B, T] under logits [B, T, V]."""
    return selective_log_softmax(logits, ids)
