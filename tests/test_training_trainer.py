"""What the trainer promises of a step, on a tiny random model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from mopd.rollouts import read_rollouts
from tests.tiny import tiny_model, tiny_tokenizer, trainable
from training import checkpoints, heldout, losses, run, trainer
from training.batch import trimmed

pytestmark = pytest.mark.filterwarnings(
    # transformers and torch, about themselves
    "ignore:.*gradient_checkpointing.*:FutureWarning",
    "ignore:.*torch.jit.*:DeprecationWarning",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trainable(tmp_path_factory.mktemp("models") / "tiny")


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


CALLED = [0]


def coin_at_first(response: str, reference: Mapping[str, Any]) -> float:
    """As ``coin`` for the first eight responses; all others fail."""
    CALLED[0] += 1
    return coin(response, reference) if CALLED[0] <= 8 else 0.0


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


def test_columns_without_a_token_are_trimmed() -> None:
    mask = torch.tensor([[0, 0, 1], [0, 1, 1]])  # of the prompts: the first of three columns is empty
    said = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]])  # of the responses: the last two of four are
    shown = torch.tensor([[0, 1, 1], [0, 0, 1]])  # of the contexts: the first of three is
    got = trimmed(
        {
            "prompt_ids": torch.tensor([[0, 0, 5], [0, 6, 7]]),
            "prompt_mask": mask,
            "completion_ids": torch.tensor([[1, 2, 0, 0], [3, 0, 0, 0]]),
            "completion_mask": said,
            "old_per_token_logps": -said.float(),
            "teacher_input_ids": torch.tensor([[0, 8, 9, 1, 2, 0, 0], [0, 0, 9, 3, 0, 0, 0]]),
            "teacher_attention_mask": torch.cat([shown, said], 1),
            "advantages": torch.tensor([1.0, -1.0]),
        }
    )
    assert {name: value.tolist() for name, value in got.items()} == {
        "prompt_ids": [[0, 5], [6, 7]],
        "prompt_mask": [[0, 1], [1, 1]],
        "completion_ids": [[1, 2], [3, 0]],
        "completion_mask": [[1, 1], [1, 0]],
        "old_per_token_logps": [[-1, -1], [-1, 0]],
        "teacher_input_ids": [[8, 9, 1, 2], [0, 9, 3, 0]],
        "teacher_attention_mask": [[1, 1, 1, 1], [0, 1, 1, 0]],
        "advantages": [1, -1],
    }
    untouched = {"prompt_ids": torch.ones(1, 2), "prompt_mask": torch.ones(1, 2), "teacher_input_ids": torch.ones(1, 5)}
    untouched |= {"completion_ids": torch.ones(1, 3), "completion_mask": torch.ones(1, 3)}
    untouched["teacher_attention_mask"] = torch.ones(1, 5)
    assert all(torch.equal(value, untouched[name]) for name, value in trimmed(untouched).items())
    silent = trimmed(untouched | {"completion_mask": torch.zeros(1, 3)})
    assert silent["completion_ids"].shape == (1, 3)  # a forward of nothing would be an error


def test_trimming_changes_time_alone(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, tokens = trainer.PeerTrainer._forward_logits, []

    def watched(self: Any, model: Any, input_ids: Any, *rest: Any, **named: Any) -> Any:
        tokens.append(input_ids.numel())
        return real(self, model, input_ids, *rest, **named)

    monkeypatch.setattr(trainer.PeerTrainer, "_forward_logits", watched)
    options = ("--prompts-per-step=2", "--updates-per-batch=2", "--save-every=2", "--micro-batch=2")
    options += ("--learning-rate=1e-5",)
    short = steps_of(model, tmp_path / "short", *options)
    trimmed_tokens = sum(tokens)
    tokens.clear()
    monkeypatch.setattr(trainer, "trimmed", dict)
    long = steps_of(model, tmp_path / "long", *options)
    assert trimmed_tokens < sum(tokens)
    for one, other in zip(short, long, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3, abs=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
        assert one["grad_norm"] > 0


@pytest.mark.parametrize("method", ["mopd", "grpo"])
def test_a_step_without_a_gradient_leaves_the_student_where_it_is(method: str, model: Path, tmp_path: Path) -> None:
    """Adam with gradients of 0 would go on along those of the step before."""
    CALLED[0] = 0
    words = [f"--method={method}", "--steps=3", "--prompts-per-step=2", "--save-every=1", "--keep=3"]
    words += ["--learning-rate=1e-3", "--warmup-steps=0", "--micro-batch=8"]
    condition = ["--condition=1s"] if method == "mopd" else []
    output = tmp_path / "run"
    words += ["--config=cpu-smoke", f"--model={model}", f"--reward={__name__}:coin_at_first", f"--output={output}"]
    assert run.main([*words, "--evaluate-every=0", *condition]) == 0
    first, second, third = (load_file(output / f"checkpoint-{n}" / "model.safetensors") for n in (1, 2, 3))
    start = load_file(model / "model.safetensors")
    assert any(not torch.equal(first[name], start[name]) for name in start)
    assert all(torch.equal(first[name], second[name]) and torch.equal(first[name], third[name]) for name in first)
    steps = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("events/idle_step", 0) for line in steps if "grad_norm" in line] == [0, 1, 2]


def test_every_update_on_a_batch_that_has_no_gradient_is_counted(model: Path, tmp_path: Path) -> None:
    """Two batches with two updates on each: the first has both verdicts, in the second all responses fail."""
    CALLED[0] = 0
    words = ("--steps=4", "--updates-per-batch=2", "--prompts-per-step=2", "--save-every=2", "--micro-batch=8")
    steps = steps_of(model, tmp_path / "run", *words, reward="coin_at_first")
    assert [line.get("events/idle_step", 0) for line in steps] == [0, 0, 1, 2]
    # and it is still known after a kill
    assert checkpoints.read_mark(tmp_path / "run" / "checkpoint-4")["events"] == {"idle_step": 2}


def test_rollouts_of_an_update_without_memory_are_kept_for_the_next_one_on_them(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = losses.divergence, iter(range(100))

    def once(*arguments: Any) -> torch.Tensor:
        if next(calls) == 1:  # the second of the first update's two micro-batches
            raise torch.OutOfMemoryError("no more")
        return real(*arguments)

    monkeypatch.setattr(losses, "divergence", once)
    CALLED[0] = -8  # so that the first sixteen responses are judged by ``coin``
    words = ("--steps=4", "--updates-per-batch=2", "--prompts-per-step=2", "--save-every=2", "--micro-batch=4")
    steps = steps_of(model, tmp_path / "run", *words, reward="coin_at_first")
    assert CALLED[0] == 8  # 16 more: 2 batches of 2 groups of 4, none sampled twice
    rollouts = read_rollouts(tmp_path / "run")
    assert rollouts["step"].to_list() == [0] * 8 + [2] * 8
    assert [line["events/out_of_memory"] for line in steps] == [1, 1, 1, 1]
    assert [line["grad_norm"] > 0 for line in steps] == [False, True, True, True]


def test_a_sampling_without_memory_leaves_no_trace_of_the_batch_before(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first update on the second batch cannot sample; the second one does, and is written as any batch is."""
    real, calls = trainer.PeerTrainer._generate, iter(range(100))

    def once(self: Any, prompt_ids: Any) -> Any:
        if next(calls) == 1:
            raise torch.OutOfMemoryError("no more")
        return real(self, prompt_ids)

    monkeypatch.setattr(trainer.PeerTrainer, "_generate", once)
    words = ("--steps=4", "--updates-per-batch=2", "--prompts-per-step=2", "--save-every=2", "--micro-batch=4")
    steps = steps_of(model, tmp_path / "run", *words)
    rollouts = read_rollouts(tmp_path / "run")
    assert rollouts["step"].to_list() == [0] * 8 + [3] * 8
    tokens = pl.read_parquet(tmp_path / "run" / "steps" / "000003-tokens.parquet")
    assert tokens.height == round(8 * steps[3]["context/fraction"]) > 0
    assert [line.get("events/out_of_memory", 0) for line in steps] == [0, 0, 1, 1]
    assert [line["grad_norm"] > 0 for line in steps] == [True, True, False, True]
    assert steps[3]["reward/mean"] == rollouts.filter(step=3)["reward"].mean()


def test_the_last_step_is_evaluated_whatever_its_number(model: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    words = ["--method=grpo", "--steps=3", "--save-every=2", "--evaluate-every=2", f"--output={output}"]
    words += ["--config=cpu-smoke", f"--model={model}", f"--reward={__name__}:coin", "--max-response-tokens=4"]
    assert run.main(words) == 0
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "eval_mean@2" in line] == [0, 2, 3]
    assert (output / "checkpoint-3").is_dir()  # what was evaluated last is there, should it be the best


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
    assert steps[0]["reward/mean"] == pytest.approx(rollouts.filter(step=0)["reward"].mean())  # of those that are known
    # TRL's own would take what is unknown for 0, and say that no group is flat
    assert not [name for name in steps[0] if name.startswith(("self_distillation/", "completions/"))]


def test_a_run_that_was_out_of_memory_goes_on_with_a_smaller_micro_batch(model: Path, tmp_path: Path) -> None:
    options = ("--prompts-per-step=2", "--save-every=1", "--learning-rate=1e-3")
    whole = steps_of(model, tmp_path / "whole", *options, "--steps=2", "--micro-batch=8")
    steps_of(model, tmp_path / "broken", *options, "--steps=1", "--micro-batch=8")
    smaller = ("--steps=2", "--micro-batch=2", "--gradient-checkpointing", "--resume")
    broken = steps_of(model, tmp_path / "broken", *options, *smaller)
    assert [line["step"] for line in broken] == [1, 2]
    both = [read_rollouts(tmp_path / name)["response"].to_list() for name in ("whole", "broken")]
    assert both[0] == both[1]
    for name in ("loss", "grad_norm"):
        assert broken[1][name] == pytest.approx(whole[1][name], rel=1e-3, abs=1e-6)


def test_memory_that_runs_out_in_an_evaluation_ends_the_run_with_the_mend(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*arguments: Any) -> list[Any]:
        raise torch.OutOfMemoryError("no more")

    monkeypatch.setattr(heldout, "_answer", never)
    words = ["--config=cpu-smoke", f"--model={model}", f"--reward={__name__}:coin", f"--output={tmp_path / 'run'}"]
    with pytest.raises(SystemExit) as ended:
        run.main(words)
    assert ended.value.code == 1
    assert "error: out of memory outside a step (no more): free some" in capsys.readouterr().err


def test_a_gradient_that_is_not_finite_ends_the_run_before_it_spoils_a_checkpoint(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The loss itself may still be finite."""
    real = trainer.PeerTrainer._clip_grad_norm

    def spoilt(self: Any, model: Any) -> Any:
        norm = real(self, model)
        return norm if self.state.global_step < 1 else torch.full((), torch.nan)

    monkeypatch.setattr(trainer.PeerTrainer, "_clip_grad_norm", spoilt)
    output = tmp_path / "run"
    words = ["--config=cpu-smoke", f"--model={model}", f"--reward={__name__}:coin", f"--output={output}"]
    with pytest.raises(SystemExit) as ended:
        run.main([*words, "--evaluate-every=0", "--method=grpo", "--save-every=1"])
    assert ended.value.code == 1
    assert "the gradient of step 1 has norm nan: begin anew" in capsys.readouterr().err
    assert [p.name for p in output.glob("checkpoint-*")] == ["checkpoint-1"]


def test_an_answer_ends_where_its_turn_does_for_a_base_model_too(tmp_path: Path) -> None:
    """Its end of text is another token than the template's end of turn; the study's sampler stops at either."""
    base, tokenizer = tmp_path / "base", tiny_tokenizer()
    tokenizer.eos_token = "<s>"  # 1; the end of a turn is 2
    tiny_model("llama", max_position_embeddings=1024, vocab_size=len(tokenizer), eos_token_id=1).save_pretrained(base)
    tokenizer.save_pretrained(base)
    steps_of(base, tmp_path / "run", "--prompts-per-step=8", "--group-size=8", "--micro-batch=8")
    rollouts = read_rollouts(tmp_path / "run")
    last = [ids[-1] for ids in rollouts["response_ids"]]
    assert {1, 2} <= set(last)
    assert all(not {1, 2} & set(ids[:-1]) for ids in rollouts["response_ids"])
    assert [token in (1, 2) for token in last] == rollouts["finished"].to_list()
