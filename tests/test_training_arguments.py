"""A run's configuration in TRL's words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from accelerate.commands import launch
from accelerate.utils import DeepSpeedPlugin
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from transformers.integrations import deepspeed
from trl.experimental.sdpo import SDPOConfig

from training import arguments
from training.config import CONFIGS, ConfigError, read_config

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


def environment(path: Path) -> dict[str, str]:
    """What ``accelerate launch --config_file`` hands to the processes that it starts."""
    words = ["--config_file", str(path), "script.py"]
    file: Any
    asked, file, precision = launch._validate_launch_command(launch.launch_command_parser().parse_args(words))
    if not asked.use_deepspeed:
        return prepare_multi_gpu_env(asked)
    fields = [*file.deepspeed_config, *["mixed_precision"] * precision]
    asked.deepspeed_fields_from_accelerate_config = ",".join(fields)
    return prepare_deepspeed_cmd_env(asked)[1]


class Filled(deepspeed.HfTrainerDeepSpeedConfig, HfDeepSpeedConfig):
    """As transformers makes it where DeepSpeed is installed."""


@pytest.mark.parametrize("path", sorted((CONFIGS / "accelerate").glob("deepspeed*.yaml")), ids=lambda p: p.stem)
def test_deepspeed_clips_gradients_at_the_norm_of_the_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = arguments.trl_arguments(read_config("cpu-smoke", {"max_grad_norm": 0.25}), 1, resuming=False)
    for name, value in environment(path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(deepspeed, "dep_version_check", lambda package: None)  # it is not installed here
    filled = Filled(DeepSpeedPlugin().deepspeed_config)
    filled.trainer_config_process(asked)
    assert filled.config["gradient_clipping"] == 0.25
    assert filled.mismatches == []  # or transformers refuses the run


@pytest.mark.parametrize("path", sorted((CONFIGS / "accelerate").glob("*.yaml")), ids=lambda p: p.stem)
@pytest.mark.parametrize(("precision", "mixed"), [("float32", "no"), ("bfloat16", "bf16")])
def test_the_shipped_files_leave_the_precision_to_the_run(
    precision: str, mixed: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", environment(path)["ACCELERATE_MIXED_PRECISION"])
    config = read_config("cpu-smoke", {"precision": precision})
    assert arguments.trl_arguments(config, 1, resuming=False).mixed_precision == mixed


def test_another_precision_than_that_of_the_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers would take the launcher's where the run says float32."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(ConfigError, match="has mixed_precision 'fp16' and the run precision 'float32': leave it 'no'"):
        arguments.trl_arguments(read_config("cpu-smoke"), 1, resuming=False)
