"""Losses against values worked by hand, scipy, and TRL's own."""

from __future__ import annotations

import math
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from training import losses
from training.config import LossConfig
from training.losses import Shares

LN2 = math.log(2)


def logits(*probabilities: float) -> Tensor:
    """[1, 1, V]."""
    return torch.tensor(probabilities, dtype=torch.float64).log()[None, None]


# Two distributions over three tokens, and their mixture.
S, T = (0.5, 0.25, 0.25), (0.25, 0.5, 0.25)
IDS = torch.tensor([[0]])


def value(student: Tensor, teacher: Tensor, ids: Tensor = IDS, **settings: object) -> float:
    return float(losses.divergence(student, teacher, ids, LossConfig(**settings)))  # pyright: ignore[reportArgumentType]


def test_forward_and_reverse_divergence_by_hand() -> None:
    # KL(T || S) = 1/4 ln(1/2) + 1/2 ln 2 + 1/4 ln 1 = 1/4 ln 2, and KL(S || T) the same by symmetry.
    assert value(logits(*S), logits(*T), alpha=0, divergence="full") == pytest.approx(LN2 / 4)
    assert value(logits(*S), logits(*T), alpha=1, divergence="full") == pytest.approx(LN2 / 4)
    # Not symmetric: S = (1/2, 1/2), T = (1/4, 3/4).
    s, t = logits(0.5, 0.5), logits(0.25, 0.75)
    # KL(T || S) = 1/4 ln(1/2) + 3/4 ln(3/2); KL(S || T) = 1/2 ln 2 + 1/2 ln(2/3).
    assert value(s, t, alpha=0, divergence="full") == pytest.approx(-LN2 / 4 + 0.75 * math.log(1.5))
    assert value(s, t, alpha=1, divergence="full") == pytest.approx(LN2 / 2 + 0.5 * math.log(2 / 3))


def test_generalised_jensen_shannon_by_hand() -> None:
    # alpha 1/2: M = (3/8, 3/8, 1/4); KL(S || M) = 1/2 ln(4/3) + 1/4 ln(2/3) = KL(T || M).
    want = 0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3)
    assert value(logits(*S), logits(*T), alpha=0.5, divergence="full") == pytest.approx(want)
    # alpha 1/4 on S = (1/2, 1/2), T = (1/4, 3/4): M = 3/4 S + 1/4 T = (7/16, 9/16), and
    # 3/4 KL(S || M) + 1/4 KL(T || M).
    kl_s = 0.5 * math.log(8 / 7) + 0.5 * math.log(8 / 9)
    kl_t = 0.25 * math.log(4 / 7) + 0.75 * math.log(4 / 3)
    got = value(logits(0.5, 0.5), logits(0.25, 0.75), alpha=0.25, divergence="full")
    assert got == pytest.approx(0.75 * kl_s + 0.25 * kl_t)


def test_top_k_takes_the_students_likeliest_tokens_and_a_tail() -> None:
    s, t = logits(0.5, 0.3, 0.15, 0.05), logits(0.2, 0.3, 0.4, 0.1)
    # Top 2 of the student are tokens 0 and 1; the tails are 0.2 and 0.5.
    # KL(T || S) = 0.2 ln(0.2/0.5) + 0.3 ln 1 + 0.5 ln(0.5/0.2)
    tailed = 0.2 * math.log(0.4) + 0.5 * math.log(2.5)
    assert value(s, t, alpha=0, top_k=2) == pytest.approx(tailed)
    # Renormalised: S = (5/8, 3/8), T = (2/5, 3/5).
    without = 0.4 * math.log(0.4 / 0.625) + 0.6 * math.log(0.6 / 0.375)
    assert value(s, t, alpha=0, top_k=2, tail=False) == pytest.approx(without)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_a_top_k_that_holds_the_whole_vocabulary_is_the_full_divergence(alpha: float) -> None:
    torch.manual_seed(0)
    s, t, ids = torch.randn(2, 3, 7), torch.randn(2, 3, 7), torch.zeros(2, 3, dtype=torch.long)
    full = losses.divergence(s, t, ids, LossConfig(alpha=alpha, divergence="full"))
    top = losses.divergence(s, t, ids, LossConfig(alpha=alpha, top_k=50))  # more than there are
    torch.testing.assert_close(full, top, atol=1e-5, rtol=1e-4)


def test_the_sampled_token_has_the_gradient_of_the_log_ratio() -> None:
    s = torch.tensor([[[0.5, 0.25, 0.25]]]).log().requires_grad_()
    loss = losses.divergence(s, logits(*T).float(), IDS, LossConfig(alpha=1, divergence="sampled"))
    # ln(0.5 / 0.25) = ln 2, times ln 0.5 = -ln 2
    assert float(loss.detach()) == pytest.approx(-LN2 * LN2)
    loss.sum().backward()
    # ln 2 times the gradient of ln p_0, which is 1 - p_0 and -p_j
    assert s.grad is not None
    assert s.grad.flatten().tolist() == pytest.approx([LN2 * 0.5, -LN2 * 0.25, -LN2 * 0.25])


def test_a_teacher_with_a_padded_vocabulary_is_cut_to_the_students() -> None:
    padded = torch.cat([logits(*T), torch.full((1, 1, 2), -50.0, dtype=torch.float64)], dim=-1)
    assert value(logits(*S), padded, alpha=0, divergence="full") == pytest.approx(LN2 / 4)


def trl_trainer(**arguments: Any) -> Any:
    """As much of TRL's trainer as its losses look at."""
    defaults = {"distillation_topk": 3, "distillation_add_tail": True, "distillation_is_clip": 2.0}
    return SimpleNamespace(
        args=SimpleNamespace(**defaults | arguments),
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(gather=lambda value: value),
        importance_sampling_level="token",
        epsilon_low=0.2,
        epsilon_high=0.2,
        _metrics={"train": defaultdict(list)},
        _log_self_distillation_metric=lambda mode, value: None,
        **arguments,
    )


MODES = {"full": "full_logits", "top_k": "topk_logits", "sampled": "sampled_token"}


@pytest.mark.parametrize("over", list(MODES))
def test_the_loss_of_a_step_is_trls_where_every_sequence_has_a_say(over: Any) -> None:
    from trl.experimental.sdpo import SDPOTrainer

    torch.manual_seed(2)
    student, teacher, ids = torch.randn(3, 5, 9), torch.randn(3, 5, 9), torch.randint(0, 9, (3, 5))
    then = losses.log_probs(student + torch.randn(3, 5, 9), ids)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])
    alpha = 1.0 if over == "sampled" else 0.3
    logits_of = SimpleNamespace(completion_ids=ids, loss_mask=mask, student_logits=student, teacher_logits=teacher)
    trainer = trl_trainer(distillation_mode=MODES[over], distillation_alpha=alpha)
    inputs = {"old_per_token_logps": then}
    theirs = SDPOTrainer._compute_self_distillation_loss(trainer, trainer.model, inputs, logits_of)  # pyright: ignore[reportArgumentType]
    per_token = losses.divergence(student, teacher, ids, LossConfig(alpha=alpha, divergence=over, top_k=3))
    per_token = losses.weigh(per_token, losses.log_probs(student, ids), then, 2.0)
    shares = losses.step_shares(mask.sum(), (mask.sum(1) > 0).sum())
    torch.testing.assert_close(losses.mean_over_step(per_token, mask, "sequence", shares, 1), theirs)
    # A sequence without a context counts as a zero in TRL's mean, and not at all in ours.
    mask[1] = 0
    theirs = SDPOTrainer._compute_self_distillation_loss(trainer, trainer.model, inputs, logits_of)  # pyright: ignore[reportArgumentType]
    shares = losses.step_shares(mask.sum(), (mask.sum(1) > 0).sum())
    torch.testing.assert_close(losses.mean_over_step(per_token, mask, "sequence", shares, 1), theirs * 3 / 2)


@pytest.mark.parametrize(("how", "theirs"), [("token", "bnpo"), ("sequence", "grpo")])
def test_the_policy_loss_of_a_step_is_trls(how: Any, theirs: str) -> None:
    from trl.experimental.sdpo import SDPOTrainer

    torch.manual_seed(3)
    logits_of, ids = torch.randn(2, 4, 9), torch.randint(0, 9, (2, 4))
    mask, advantage = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]), torch.tensor([0.7, -0.7])
    then = losses.log_probs(logits_of + torch.randn(2, 4, 9), ids)
    inputs = {"completion_ids": ids, "completion_mask": mask, "old_per_token_logps": then, "advantages": advantage}
    want = SDPOTrainer._compute_policy_loss(trl_trainer(loss_type=theirs), inputs, logits_of)  # pyright: ignore[reportArgumentType]
    per_token = losses.policy_gradient(losses.log_probs(logits_of, ids), then, advantage, clip_low=0.2, clip_high=0.2)
    shares = losses.step_shares(mask.sum(), torch.tensor(2))
    torch.testing.assert_close(losses.mean_over_step(per_token, mask, how, shares, 1), want)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_the_divergences_are_those_of_trl(alpha: float) -> None:
    from trl.experimental.sdpo import loss_utils

    torch.manual_seed(1)
    s, t, ids = torch.randn(2, 4, 9), torch.randn(2, 4, 9), torch.randint(0, 9, (2, 4))
    top = losses.divergence(s, t, ids, LossConfig(alpha=alpha, top_k=3))
    theirs = loss_utils.compute_topk_self_distillation_loss(
        s, t, distillation_topk=3, distillation_alpha=alpha, distillation_add_tail=True
    )
    torch.testing.assert_close(top, theirs)


def test_the_importance_ratio_is_clipped_from_above_alone() -> None:
    per_token = torch.tensor([[1.0, 1.0, 1.0]])
    now, then = torch.tensor([[0.5, 3.0, 0.1]]).log(), torch.tensor([[1.0, 1.0, 0.1]]).log()
    assert losses.weigh(per_token, now, then, 2.0).tolist() == [[0.5, 2.0, 1.0]]
    assert losses.weigh(per_token, now, None, 2.0) is per_token
    assert losses.weigh(per_token, now, then, None) is per_token


def test_means_over_tokens_and_over_sequences() -> None:
    per_token = torch.tensor([[1.0, 2.0, 3.0], [4.0, float("nan"), 0.0], [9.0, 9.0, 9.0]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0]])  # the third has no say
    shares = Shares(tokens=4, sequences=2)
    # (1 + 2 + 3 + 4) / 4, and (6 / 3 + 4) / 2
    assert float(losses.mean_over_step(per_token, mask, "token", shares, 1)) == 2.5
    assert float(losses.mean_over_step(per_token, mask, "sequence", shares, 1)) == 3.0


@pytest.mark.parametrize("how", ["token", "sequence"])
def test_the_division_into_micro_batches_changes_nothing(how: str) -> None:
    torch.manual_seed(0)
    per_token, mask = torch.rand(4, 5), (torch.rand(4, 5) < 0.6).long()
    shares = losses.step_shares(mask.sum(), (mask.sum(1) > 0).sum())
    whole = losses.mean_over_step(per_token, mask, how, shares, 1)  # pyright: ignore[reportArgumentType]
    parts = [
        losses.mean_over_step(per_token[i : i + 1], mask[i : i + 1], how, shares, 1)  # pyright: ignore[reportArgumentType]
        for i in range(4)
    ]
    assert float(sum(parts)) == pytest.approx(float(whole))


def test_a_step_without_any_say_is_zero_with_a_gradient_of_zero() -> None:
    per_token = torch.rand(1, 3, requires_grad=True)
    shares = losses.step_shares(torch.tensor(0.0), torch.tensor(0.0))
    loss = losses.mean_over_step(per_token, torch.zeros(1, 3), "token", shares, 1)
    loss.backward()
    assert float(loss.detach()) == 0
    assert per_token.grad is not None
    assert not per_token.grad.any()


def test_policy_gradient_by_hand() -> None:
    now, then = torch.tensor([[0.6, 0.2], [0.6, 0.2]]).log(), torch.tensor([[0.4, 0.4], [0.4, 0.4]]).log()
    loss = losses.policy_gradient(now, then, torch.tensor([1.0, -1.0]), clip_low=0.2, clip_high=0.2)
    # Ratios 1.5 and 0.5. Advantage 1: min(1.5, 1.2), min(0.5, 0.8). Advantage -1: min(-1.5, -1.2), min(-0.5, -0.8).
    torch.testing.assert_close(loss, torch.tensor([[-1.2, -0.5], [1.5, 0.8]]))


def test_policy_gradient_on_policy_has_the_value_of_the_advantage_and_its_gradient() -> None:
    now = torch.tensor([[0.6, 0.2]]).log().requires_grad_()
    loss = losses.policy_gradient(now, None, torch.tensor([2.0]), clip_low=0.2, clip_high=0.2)
    loss.sum().backward()
    assert loss.tolist() == [[-2.0, -2.0]]
    assert now.grad is not None
    assert now.grad.tolist() == [[-2.0, -2.0]]


def test_advantages_by_hand_with_an_unjudged_response() -> None:
    nan = float("nan")
    rewards = torch.tensor([1.0, 0.0, nan, 0.0, 1.0, 1.0, 1.0, 1.0])
    # Group 1: mean 1/3 of three judged, standard deviation sqrt(1/3); group 2 is flat.
    deviation = math.sqrt(1 / 3) + 1e-4
    want = [2 / 3 / deviation, -1 / 3 / deviation, 0, -1 / 3 / deviation, 0, 0, 0, 0]
    assert losses.advantages(rewards, 4, "group").tolist() == pytest.approx(want, abs=1e-6)
    assert losses.advantages(rewards, 4, "none").tolist() == pytest.approx([2 / 3, -1 / 3, 0, -1 / 3, 0, 0, 0, 0])
    # Over the batch: 7 judged, mean 5/7, squares 5 (2/7)^2 + 2 (5/7)^2 = 70/49, over 6.
    batch = math.sqrt(70 / 49 / 6) + 1e-4
    assert losses.advantages(rewards, 4, "batch")[0].item() == pytest.approx(2 / 3 / batch)
    assert losses.advantages(torch.tensor([nan, nan]), 2, "group").tolist() == [0, 0]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equal_rewards_have_no_advantage_to_the_last_bit(scale: Any) -> None:
    """The mean of seven 0.3 is no 0.3 in float32: what is left would keep a step from being idle."""
    rewards = torch.tensor([0.3] * 7)
    assert float(rewards.mean()) != float(rewards[0])
    assert losses.advantages(rewards, 7, scale).tolist() == [0.0] * 7
    known = torch.tensor([0.3] * 7 + [float("nan")] + [1.0, 0.0] * 4)
    found = losses.advantages(known, 8, scale)
    assert found[:8].tolist() == [0.0] * 8
    assert found[8:].abs().min() > 0


def test_preference_by_hand_and_for_rows_without_a_pair() -> None:
    now = torch.tensor([[-1.0, -1.0], [-3.0, -9.0], [-1.0, -1.0], [-1.0, -1.0]])
    reference = torch.tensor([[-2.0, -2.0], [-2.0, -9.0], [-9.0, -9.0], [-1.0, -1.0]])
    mask = torch.tensor([[1, 1], [1, 0], [1, 1], [1, 1]])
    # success moved by +2, failure by -1: -ln sigmoid(0.5 * 3) = ln(1 + e^-1.5)
    loss = losses.preference(now, reference, mask, torch.tensor([1.0, 1.0, 0.0, 0.0]), beta=0.5)
    assert loss.tolist() == pytest.approx([math.log(1 + math.exp(-1.5)), 0.0])


def test_row_scores_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CHUNK", 1)  # each position by itself
    s = torch.cat([logits(0.5, 0.25, 0.25), logits(0.7, 0.2, 0.1)], dim=1)[0]
    t = torch.cat([logits(0.25, 0.5, 0.25), logits(0.1, 0.1, 0.8)], dim=1)[0]
    got = losses.row_scores(s, t, torch.tensor([1, 2]), top_k=1)
    assert got.student.tolist() == pytest.approx([math.log(0.25), math.log(0.1)])
    assert got.teacher.tolist() == pytest.approx([math.log(0.5), math.log(0.8)])
    assert got.student_entropy[0].item() == pytest.approx(1.5 * LN2)  # 1/2 ln 2 + 2 * 1/4 ln 4
    assert got.student_rank.tolist() == [2, 3]  # equally likely tokens do not come before one another
    assert got.teacher_rank.tolist() == [1, 1]
    assert got.student_mass.tolist() == pytest.approx([0.5, 0.7])
    assert got.teacher_mass.tolist() == pytest.approx([0.25, 0.1])  # on the student's likeliest token
