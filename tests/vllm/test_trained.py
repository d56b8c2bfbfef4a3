"""What ``training.run`` leaves, in plain transformers and in the real vLLM: `make test-vllm`.

The run needs the training environment, whose interpreter MOPD_TRAIN_PYTHON names: vLLM pins another transformers.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from mopd import models, tasks
from mopd.generation import Sampling
from mopd.teachers.base import ScoreRequest
from tests.helpers import make_group
from tests.tiny import plain_log_probs

pytest.importorskip("vllm")
ROOT = Path(__file__).parents[2]
MODEL = models.DEFAULT_PRESET
TOLERANCE = 1e-3  # nats, in float32
PROMPTS = [item.prompt for item in tasks.load("arithmetic", limit=3)]

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the smoke configuration, with a reward that tells the responses of an untrained model apart."""
    python = os.environ.get("MOPD_TRAIN_PYTHON")
    if not python:
        pytest.skip("MOPD_TRAIN_PYTHON names no interpreter of a training environment (`make test-vllm` sets it)")
    output = tmp_path_factory.mktemp("runs") / "smoke"
    options = ["--config=cpu-smoke", "--condition=1s", "--reward=tests.training_rewards:parity", "--learning-rate=1e-4"]
    options += ["--save-every=2", "--evaluate-every=0", f"--output={output}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("VLLM_", "PYTEST_"))}
    done = subprocess.run(
        [python, "-m", "training.run", *options],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture(scope="module")
def sampler(run: Path) -> Iterator[Any]:
    from mopd.generation.vllm import VLLMSampler

    sampler = VLLMSampler.load(str(run / "model"), dtype="float32", max_model_len=512)
    yield sampler
    del sampler.engine


def test_vllm_and_transformers_read_the_same_trained_model(run: Path, sampler: Any) -> None:
    """vLLM samples from it, and scores what it sampled as transformers does: not as the untrained model did."""
    from mopd.teachers.vllm import VLLMTeacher

    groups = sampler.sample(PROMPTS, 2, sampling=Sampling(temperature=1.0, max_tokens=24, seed=1), seed=1)
    requests = [
        ScoreRequest(
            group=make_group("s"),
            rollout_id=f"{p}/{i}",
            peers=(),
            context_ids=np.asarray(sampler.codec.encode_prompt(prompt), dtype=np.int32),
            response_ids=np.asarray(completion.ids, dtype=np.int32),
        )
        for p, (prompt, group) in enumerate(zip(PROMPTS, groups, strict=True))
        for i, completion in enumerate(group)
    ]
    got = [score.logprob for score in VLLMTeacher(sampler.engine, sampler.folder).score(requests)]
    want, before = (
        [plain_log_probs(model, r.context_ids, r.response_ids) for r in requests]
        for model in (AutoModelForCausalLM.from_pretrained(f).eval() for f in (run / "model", models.resolve(MODEL)))
    )
    apart, moved = (
        max(float(np.abs(g - o).max()) for g, o in zip(got, other, strict=True)) for other in (want, before)
    )
    print(f"largest difference: {apart:.2g} nats, and {moved:.2g} from the untrained model")
    assert apart < TOLERANCE
    assert moved > 10 * TOLERANCE


def test_a_checkpoint_is_the_same_model(run: Path) -> None:
    """The last one, with what plain transformers need to use it by themselves."""
    checkpoint, final = run / "checkpoint-2", run / "model"
    assert models.weights_hash(checkpoint) == models.weights_hash(final)
    assert models.config_hash(checkpoint) == models.config_hash(final)
    start = AutoTokenizer.from_pretrained(models.resolve(MODEL))
    for folder in (checkpoint, final):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        said = [{"role": "user", "content": "What is 3 + 4?"}]
        assert tokenizer.apply_chat_template(said) == start.apply_chat_template(said)
        assert tokenizer.eos_token_id == start.eos_token_id
