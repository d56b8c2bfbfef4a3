"""A run's configuration in TRL's words."""

from __future__ import annotations

from typing import Any

import pytest
from trl.experimental.sdpo import SDPOConfig

from training import arguments
from training.config import read_config

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")  # transformers, of itself


class OfSeveral(SDPOConfig):
    """As on a machine with four GPUs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._n_gpu: Any = 4


def test_one_process_takes_one_gpu_whatever_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """On all four, transformers would make each step of four times the rollouts."""
    monkeypatch.setattr(arguments, "SDPOConfig", OfSeveral)
    found = arguments.trl_arguments(read_config("cpu-smoke"), 1, resuming=False)
    assert found.n_gpu == 1
    assert found.train_batch_size == 4  # cpu-smoke's micro_batch
