"""When a step's loss has no gradient, for every objective."""

from __future__ import annotations

from typing import Any

import pytest

from training.config import read_config
from training.objective import idle


@pytest.mark.parametrize(
    ("method", "sequences", "flat", "rests"),
    [
        ("grpo", 8.0, True, True),  # all rewards of each group are equal
        ("grpo", 8.0, False, False),
        ("mopd", 0.0, False, True),  # no target has a context
        ("mopd", 3.0, True, False),
        ("sdpo", 0.0, False, True),
        ("rft", 0.0, True, True),  # nothing to imitate
        ("rft", 8.0, True, False),  # all succeed
        ("dpo", 0.0, True, True),  # no group has a pair
        ("dpo", 2.0, False, False),
    ],
)
def test_a_step_is_idle_where_nothing_has_a_gradient(method: str, sequences: float, flat: bool, rests: bool) -> None:
    assert idle(read_config(None, {"method": method}), sequences=sequences, flat=flat) is rests


@pytest.mark.parametrize(("flat", "rests"), [(True, True), (False, False)])
def test_a_mixture_rests_where_both_its_parts_do(flat: bool, rests: bool) -> None:
    settings: dict[str, Any] = {"method": "mopd", "distillation_weight": 0.5}
    assert idle(read_config(None, settings), sequences=0.0, flat=flat) is rests
    assert not idle(read_config(None, settings), sequences=1.0, flat=flat)
