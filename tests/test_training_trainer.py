"""What the trainer promises of a step, on a tiny random model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mopd.rollouts import read_rollouts
from tests.tiny import tiny_model, tiny_tokenizer
from training import run

pytestmark = pytest.mark.filterwarnings(
    # transformers and torch, about themselves
    "ignore:.*is_gradient_checkpointing.*:FutureWarning",
    "ignore:.*torch.jit.*:DeprecationWarning",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = tiny_tokenizer()
    tiny_model("llama", max_position_embeddings=1024, vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def coin(response: str, reference: Mapping[str, Any]) -> float:
    return float(hashlib.sha256(response.encode()).digest()[0] % 2)


def moody(response: str, reference: Mapping[str, Any]) -> float | None:
    """As ``coin``, but for one response in four it raises and for one in four it cannot tell."""
    match hashlib.sha256(response.encode()).digest()[1] % 4:
        case 0:
            raise RuntimeError("in no mood")
        case 1:
            return None
    return coin(response, reference)


def steps_of(model: Path, output: Path, *more: str, reward: str = "coin") -> list[dict[str, Any]]:
    """The metrics of each step of a run."""
    words = ["--config=cpu-smoke", f"--model={model}", f"--reward={__name__}:{reward}", f"--output={output}"]
    assert run.main([*words, "--evaluate-every=0", "--condition=1s", *more]) == 0
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "grad_norm" in line]


def test_the_size_of_a_micro_batch_changes_nothing(model: Path, tmp_path: Path) -> None:
    """Nor does it with a second update on the same rollouts, where the importance ratio comes in."""
    options = ("--prompts-per-step=2", "--updates-per-batch=2", "--save-every=2", "--distillation-weight=0.5")
    small, large = (
        steps_of(model, tmp_path / str(n), *options, f"--micro-batch={n}", "--learning-rate=1e-5") for n in (2, 8)
    )
    assert len(small) == len(large) == 2
    for one, other in zip(small, large, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3, abs=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
        assert one["grad_norm"] > 0
    assert 0 <= small[1]["importance/clip_rate"] <= 1


def test_a_verifier_that_raises_is_counted_and_teaches_nothing(model: Path, tmp_path: Path) -> None:
    steps = steps_of(model, tmp_path / "run", "--prompts-per-step=4", "--save-every=2", reward="moody")
    rollouts = read_rollouts(tmp_path / "run")
    raised = sum(hashlib.sha256(r.encode()).digest()[1] % 4 == 0 for r in rollouts["response"])
    unsure = sum(hashlib.sha256(r.encode()).digest()[1] % 4 == 1 for r in rollouts["response"])
    assert raised > 0
    assert steps[-1]["events/verifier_raised"] == raised  # counted from the beginning of the run
    assert rollouts["success"].null_count() == raised + unsure
    first = rollouts.filter(step=0)["success"].null_count() / 16
    assert steps[0]["reward/unjudged_fraction"] == pytest.approx(first)
    assert steps[0].get("context/none/unjudged", 0) == pytest.approx(first)
