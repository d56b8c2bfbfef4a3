"""How much the clips of the losses touch, by hand."""

from __future__ import annotations

import pytest
import torch

from training.scoring import clip_rate, policy_clip_rate

RATIOS = torch.tensor([[0.5, 0.9, 1.5, 3.0], [0.5, 0.9, 1.5, 3.0]])
KEPT = torch.tensor([[True, True, True, True], [True, True, True, False]])


def test_the_importance_clip_counts_ratios_above_it() -> None:
    """Of seven tokens one, 3.0 of the first response; a ratio of exactly 2 would not be."""
    then = torch.zeros(2, 4)
    assert clip_rate(RATIOS.log(), then, 2.0, KEPT) == pytest.approx(1 / 7)
    assert clip_rate(RATIOS.log(), None, 2.0, KEPT) is None
    assert clip_rate(RATIOS.log(), then, 2.0, torch.zeros(2, 4, dtype=torch.bool)) is None


def test_the_clip_of_the_policy_gradient_counts_tokens_that_it_leaves_without_a_gradient() -> None:
    """Advantage 1: 1.5 and 3.0 are over 1.28. Advantage -1: 0.5 is below 0.8. Three of the seven kept tokens."""
    then, options = torch.zeros(2, 4), {"clip_low": 0.2, "clip_high": 0.28}
    rate = policy_clip_rate(RATIOS.log(), then, torch.tensor([1.0, -1.0]), KEPT, **options)
    assert rate == pytest.approx(3 / 7)
    assert policy_clip_rate(RATIOS.log(), then, torch.zeros(2), KEPT, **options) == 0.0
    assert policy_clip_rate(RATIOS.log(), then, torch.ones(2), torch.zeros_like(KEPT), **options) is None
