"""The gradient of a whole step against that of its textbook loss.

The rollouts and contexts are those that a run wrote down; the losses are written out here, on plain forwards of one
unpadded sequence each, with nothing of ``training.losses`` or TRL in them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import polars as pl
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.tiny import tiny_tokenizer, trainable
from training import run, trainer

pytestmark = pytest.mark.filterwarnings(
    # transformers and torch, about themselves
    "ignore:.*gradient_checkpointing.*:FutureWarning",
    "ignore:.*torch.jit.*:DeprecationWarning",
)
HEAT, TOP, SIZE = 0.8, 20, 8  # temperature, top k, group size
CODEC: Any = tiny_tokenizer()


@dataclass(kw_only=True)
class Step:
    """A step's rollouts: rows of ``rollouts.parquet``, and the context of each that has one."""

    rollouts: list[dict[str, Any]]
    contexts: dict[str, list[int]]
    student: Any
    teacher: Any

    def logits(self, model: Any, context: list[int], row: dict[str, Any]) -> Tensor:
        """[T, V], divided by the temperature."""
        ids = torch.tensor([[*context, *row["response_ids"]]])
        return model(input_ids=ids, use_cache=False).logits[0, len(context) - 1 : -1] / HEAT

    def student_logs(self, row: dict[str, Any]) -> Tensor:
        """[T, V] log-probs given the bare prompt."""
        prompt = CODEC.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
        return self.logits(self.student, list(prompt), row).log_softmax(-1)

    @torch.no_grad()
    def teacher_logs(self, row: dict[str, Any]) -> Tensor:
        """[T, V] log-probs given the context."""
        return self.logits(self.teacher, self.contexts[row["rollout_id"]], row).log_softmax(-1)

    def sampled(self, row: dict[str, Any]) -> Tensor:
        """[T] log-probs of the sampled tokens under the student."""
        return self.student_logs(row).gather(-1, torch.tensor(row["response_ids"])[:, None])[:, 0]

    @property
    def groups(self) -> list[list[dict[str, Any]]]:
        return [self.rollouts[i : i + SIZE] for i in range(0, len(self.rollouts), SIZE)]

    @property
    def served(self) -> list[dict[str, Any]]:
        return [row for row in self.rollouts if row["rollout_id"] in self.contexts]


def token_mean(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts).mean()


def jensen_shannon(step: Step) -> Tensor:
    """Over the student's likeliest tokens and all others as one, mean over tokens."""

    def of(row: dict[str, Any]) -> Tensor:
        s, t = step.student_logs(row).exp(), step.teacher_logs(row).exp()
        places = s.topk(TOP).indices
        s, t = (p.gather(-1, places) for p in (s, t))
        s, t = (torch.cat([p, 1 - p.sum(-1, keepdim=True)], -1) for p in (s, t))
        m = (s + t) / 2
        return (s * (s / m).log() + t * (t / m).log()).sum(-1) / 2

    return token_mean([of(row) for row in step.served])


def forward_by_sequence(step: Step) -> Tensor:
    """KL(T || S) over the vocabulary, the mean of the responses' means."""
    means = []
    for row in step.served:
        s, t = step.student_logs(row), step.teacher_logs(row)
        means.append((t.exp() * (t - s)).sum(-1).mean())
    return torch.stack(means).mean()


def reverse(step: Step) -> Tensor:
    """KL(S || T) over the vocabulary, mean over tokens."""

    def of(row: dict[str, Any]) -> Tensor:
        s, t = step.student_logs(row), step.teacher_logs(row)
        return (s.exp() * (s - t)).sum(-1)

    return token_mean([of(row) for row in step.served])


def unsure(response: str, reference: Mapping[str, Any]) -> float | None:
    """As ``parity``, but it cannot tell for about every fourth response."""
    total = sum(response.encode())
    return None if total % 4 == 0 else float(total % 2)


def policy_parts(step: Step) -> list[Tensor]:
    """-A p / p_then of each judged response [T], where p_then is still p."""
    parts = []
    for group in step.groups:
        judged = [row for row in group if row["reward"] is not None]
        rewards = [row["reward"] for row in judged]
        for row in judged:
            logs = step.sampled(row)
            parts.append(-(row["reward"] - fmean(rewards)) / (stdev(rewards) + 1e-4) * (logs - logs.detach()).exp())
    return parts


def policy(step: Step) -> Tensor:
    """The mean over the tokens of all judged responses."""
    return token_mean(policy_parts(step))


def policy_by_sequence(step: Step) -> Tensor:
    """The mean of the judged responses' means."""
    return torch.stack([part.mean() for part in policy_parts(step)]).mean()


def mixed(step: Step) -> Tensor:
    return 0.25 * jensen_shannon(step) + 0.75 * policy(step)


def likelihood(step: Step) -> Tensor:
    return token_mean([-step.sampled(row) for row in step.rollouts if row["reward"] == 1])


def preference(step: Step) -> Tensor:
    """-log sigmoid(beta (success - failure)) where the reference is still the student, mean over pairs."""
    losses = []
    for group in step.groups:
        good, bad = ([step.sampled(row).sum() for row in group if row["reward"] == r] for r in (1, 0))
        for s, f in zip(good, bad, strict=False):
            margin = 0.1 * ((s - s.detach()) - (f - f.detach()))
            losses.append((1 + (-margin).exp()).log())
    return torch.stack(losses).mean()


def drawn(self: Any, prompt_ids: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
    """Responses of several lengths, of which some end by themselves and some do not."""
    rng = random.Random(0)
    found = [[rng.randrange(36, 80) for _ in range(rng.randrange(3, 12))] for _ in prompt_ids]
    return prompt_ids, [ids + [CODEC.eos_token_id] * (place % 3 > 0) for place, ids in enumerate(found)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trainable(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher that is not the student."""
    return trainable(tmp_path_factory.mktemp("models") / "other", num_hidden_layers=2)


@pytest.mark.parametrize(
    ("method", "options", "loss"),
    [
        ("mopd", (), jensen_shannon),
        ("sdpo", ("--alpha=0", "--divergence=full", "--average=sequence"), forward_by_sequence),
        ("mopd", ("--condition=random_peer", "--distillation-weight=0.25"), mixed),
        ("opd", ("--alpha=1", "--divergence=full"), reverse),
        ("grpo", (), policy),
        ("grpo", (f"--reward={__name__}:unsure",), policy),
        ("grpo", (f"--reward={__name__}:unsure", "--average=sequence"), policy_by_sequence),
        ("rft", (), likelihood),
        ("dpo", (), preference),
    ],
)
def test_a_steps_gradient_is_that_of_the_textbook(
    method: str,
    options: tuple[str, ...],
    loss: Any,
    model: Path,
    other: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = trainer.PeerTrainer._clip_grad_norm
    seen: dict[str, Tensor] = {}

    def watched(self: Any, model: Any) -> Any:
        seen.update({name: p.grad.clone() for name, p in model.named_parameters()})
        return real(self, model)

    monkeypatch.setattr(trainer.PeerTrainer, "_clip_grad_norm", watched)
    monkeypatch.setattr(trainer.PeerTrainer, "_generate", drawn)
    words = ["--config=cpu-smoke", f"--model={model}", f"--method={method}", f"--output={tmp_path / 'run'}"]
    words += ["--reward=tests.training_rewards:parity", "--steps=1", "--evaluate-every=0", f"--temperature={HEAT}"]
    words += [f"--group-size={SIZE}", "--prompts-per-step=2", "--micro-batch=4", f"--top-k={TOP}", *options]
    words += [f"--teacher-model={other}"] if method == "opd" else []
    assert run.main(words) == 0

    rows = pl.read_parquet(tmp_path / "run" / "rollouts.parquet").to_dicts()
    contexts: dict[str, list[int]] = {}
    if (tmp_path / "run" / "tokens.parquet").exists():
        ids = dict(pl.read_parquet(tmp_path / "run" / "contexts.parquet").select("context_id", "token_ids").iter_rows())
        scored = pl.read_parquet(tmp_path / "run" / "tokens.parquet").select("rollout_id", "context_id")
        contexts = {rollout_id: ids[context_id] for rollout_id, context_id in scored.iter_rows()}
    rewards = {row["reward"] for row in rows}
    assert rewards == ({0.0, 1.0, None} if "unsure" in str(options) else {0.0, 1.0})
    assert len({len(row["response_ids"]) for row in rows}) > 1  # or padding and means would not be tested
    assert {row["finished"] for row in rows} == {True, False}
    student, teacher = (AutoModelForCausalLM.from_pretrained(f).eval() for f in (model, other))
    step = Step(rollouts=rows, contexts=contexts, student=student, teacher=teacher if method == "opd" else student)
    value = loss(step)
    value.backward()
    told = pl.read_ndjson(tmp_path / "run" / "metrics.jsonl", infer_schema_length=None).row(0, named=True)
    want = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
    norm = math.sqrt(sum(float(g.square().sum()) for g in want.values()))
    assert told["loss"] == pytest.approx(float(value.detach()), rel=1e-4, abs=1e-5)
    assert told["grad_norm"] == pytest.approx(norm, rel=1e-3)
    assert seen.keys() == want.keys()
    for name, gradient in want.items():
        assert (seen[name] - gradient).abs().max() <= 1e-4 * norm, name
