"""Runs of every method on a tiny random model, from the command line to the tables."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from analysis import signal_quality
from app.data import find_studies, info, training_log
from mopd.rollouts import groups_of, read_rollouts
from mopd.study import StudyConfig, run_study
from mopd.teachers.hf import HFTeacher
from tests.tiny import tiny_model, tiny_tokenizer, trainable
from training import losses, run, trainer
from training.methods import METHODS

ROOT = Path(__file__).parents[1]
PEERS = (
    *("--condition=1s1f", "--evaluate-every=1", "--prompts-per-step=3", "--learning-rate=1e-2"),
    *("--group-size=8", "--micro-batch=8"),
)
pytestmark = pytest.mark.filterwarnings(
    # transformers and torch, about themselves
    "ignore:.*is_gradient_checkpointing.*:FutureWarning",
    "ignore:.*torch.jit.*:DeprecationWarning",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trainable(tmp_path_factory.mktemp("models") / "tiny")


def words(model: Path, output: Path, *more: str, reward: str = "parity") -> list[str]:
    return [
        "--config=cpu-smoke",
        f"--model={model}",
        f"--reward=tests.training_rewards:{reward}",
        f"--output={output}",
        "--evaluate-every=0",
        *more,
    ]


def train(model: Path, output: Path, *more: str) -> Path:
    assert run.main(words(model, output, *more)) == 0
    return output


def process(arguments: Sequence[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def peers(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of mopd with evaluations."""
    output = tmp_path_factory.mktemp("runs") / "mopd"
    return train(model, output, *PEERS)


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_trains_on_a_cpu(method: str, model: Path, tmp_path: Path) -> None:
    more = [f"--teacher-model={model}"] if method == "opd" else []
    output = train(model, tmp_path / "run", f"--method={method}", "--learning-rate=1e-2", "--prompts-per-step=2", *more)
    before, after = weights(model), weights(output / "model")
    if method == "opd":  # the teacher is the student itself: nothing to learn at first
        assert abs(lines(output)[0]["loss"]) < 1e-6
    else:
        assert any(not torch.equal(before[name], after[name]) for name in before)
    found = read_rollouts(output)
    assert found.height == 2 * 2 * 4  # steps, groups, rollouts
    assert found["step"].unique().sort().to_list() == [0, 1]
    assert [line["step"] for line in lines(output) if "loss" in line] == [1, 2]
    for line in lines(output)[:2]:
        assert np.isfinite(line["loss"])
        assert line["reward/mean"] == pytest.approx(found.filter(step=line["step"] - 1)["reward"].mean())
    AutoModelForCausalLM.from_pretrained(output / "model")
    assert (output / "contexts.parquet").exists() == (METHODS[method].condition is not None)


def test_the_teacher_scores_in_training_are_those_of_the_study(model: Path, peers: Path) -> None:
    step = read_rollouts(peers).filter(step=0)
    teacher = HFTeacher(
        tiny_model("llama", max_position_embeddings=1024, vocab_size=len(tiny_tokenizer())), tiny_tokenizer(), name="t"
    )
    settings = StudyConfig(conditions=["1s1f"], protocols=["self_exclusion"], max_context_tokens=512)
    study = run_study(step, teacher, settings)
    trained = pl.read_parquet(peers / "steps" / "000000-tokens.parquet")
    both = study.tokens.join(trained, on=["context_id", "rollout_id"], how="inner", validate="1:1", suffix="_trained")
    assert both.height == study.tokens.height > 2
    for column in ("token_ids", "teacher_logprob", "student_logprob", "entropy", "student_entropy"):
        want = np.concatenate(both[column].to_list())
        got = np.concatenate(both[f"{column}_trained"].to_list())
        np.testing.assert_allclose(got, want, atol=1e-4)
    for column in ("teacher_rank", "student_rank"):
        want, got = (np.concatenate(both[name].to_list()) for name in (column, f"{column}_trained"))
        assert np.abs(got - want).max() <= 1  # neighbours as close as rounding may swap
        assert np.ptp(want) > 1
    # and they are not all alike: the context changes what the teacher says
    delta = np.concatenate(both["teacher_logprob"].to_list()) - np.concatenate(both["student_logprob"].to_list())
    assert np.abs(delta).max() > 0.1


def test_targets_without_a_context_are_counted_by_reason(peers: Path) -> None:
    contexts = pl.read_parquet(peers / "steps" / "000000-contexts.parquet")
    line = lines(peers)[1]
    told = line["context/fraction"] + sum(v for k, v in line.items() if k.startswith("context/none/"))
    assert told == pytest.approx(1)
    tokens = pl.read_parquet(peers / "steps" / "000000-tokens.parquet")
    assert tokens.height == round(line["context/fraction"] * 24)
    assert set(contexts["context_id"]) >= set(tokens["context_id"])
    groups = {g.group_id: g for g in groups_of(read_rollouts(peers).filter(step=0))}
    for peer_list, group_id in contexts.select("peers", "group_id").iter_rows():
        for peer in peer_list:
            rollout = groups[group_id].by_id[peer["rollout_id"]]
            assert rollout.success is (peer["role"] == "success")


def test_the_evidence_opens_in_the_study_and_in_the_app(peers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = find_studies([peers])["mopd"]
    assert info(found)["confounded"] == ["self_exclusion"]
    assert training_log(found)["reward/mean"].drop_nulls().len() == 2
    metrics = pl.read_parquet(peers / "metrics.parquet")
    assert set(metrics["condition"]) == {"1s1f"}
    arguments = ["--rollouts", str(peers), "--teacher", "oracle", "--conditions", "question_only", "1s"]
    assert signal_quality.main([*arguments, "--output", str(peers.parent / "study")]) == 0
    assert "groups:" in capsys.readouterr().out


def test_evaluations_and_the_best_checkpoint_are_kept(peers: Path) -> None:
    evaluations = [line for line in lines(peers) if "eval_mean@2" in line]
    assert [line["step"] for line in evaluations] == [0, 1, 2]
    for line in evaluations:
        assert 0 <= line["eval_mean@2"] <= line["eval_pass@2"] <= 1
    best = json.loads((peers / "best.json").read_text())
    assert best["value"] == max(line["eval_mean@2"] for line in evaluations[1:])
    assert (peers / best["checkpoint"] / "complete.json").is_file()


def test_metrics_of_a_step_are_all_there(peers: Path) -> None:
    line = next(line for line in lines(peers) if "loss" in line)
    wanted = (
        *("reward/mean", "solved/ever_fraction", "diversity/unique_ratio", "length/mean", "gap/delta_mean"),
        *("mass/student_top_k", "mass/teacher_on_it", "context/fraction", "groups/flat_fraction", "learning_rate"),
    )
    assert set(wanted) <= set(line)
    assert 0 < line["mass/student_top_k"] <= 1.0001


def test_the_averaged_teacher_of_a_checkpoint_is_the_average(model: Path, peers: Path) -> None:
    first, student = weights(model), weights(peers / "checkpoint-1")
    teacher = weights(peers / "checkpoint-1" / "teacher")
    for name, start in first.items():
        torch.testing.assert_close(teacher[name], 0.95 * start + 0.05 * student[name], atol=1e-6, rtol=1e-5)
    assert any(not torch.equal(first[name], student[name]) for name in first)
    later, then = weights(peers / "checkpoint-2"), weights(peers / "checkpoint-2" / "teacher")
    for name, before in teacher.items():
        torch.testing.assert_close(then[name], 0.95 * before + 0.05 * later[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_killed_run_goes_on_as_if_it_had_never_stopped(lora: bool, model: Path, tmp_path: Path) -> None:
    options = ["--condition=1s", "--steps=4", "--save-every=2", "--learning-rate=1e-2", "--prompts-per-step=2"]
    options += ["--lora-rank=2", "--lora-targets", "q_proj", "v_proj"] if lora else []
    reward = "parity_then_killed"  # a run must keep its settings
    assert run.main(words(model, tmp_path / "whole", *options, reward=reward)) == 0
    broken = words(model, tmp_path / "broken", *options, reward=reward)
    # 8 rewards a step: dies while the last response of step 4 (of 4) is judged, two steps after the checkpoint of 2
    killed = process(["-m", "training.run", *broken], MOPD_TEST_KILL_AT="30")
    assert killed.returncode == -9, killed.stderr
    assert not (tmp_path / "broken" / "model").exists()
    assert run.main([*broken, "--resume"]) == 0
    for part in ("model", "checkpoint-4") + (() if lora else ("checkpoint-4/teacher",)):
        compare_folders(tmp_path / "whole" / part, tmp_path / "broken" / part)
    if lora:
        compare_folders(
            tmp_path / "whole" / "checkpoint-4" / "teacher", tmp_path / "broken" / "checkpoint-4" / "teacher"
        )
    for name in ("rollouts", "tokens", "contexts"):
        assert pl.read_parquet(tmp_path / "whole" / f"{name}.parquet").equals(
            pl.read_parquet(tmp_path / "broken" / f"{name}.parquet")
        )
    assert comparable(tmp_path / "whole") == comparable(tmp_path / "broken")


def first_moments(checkpoint: Path) -> dict[int, torch.Tensor]:
    state = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
    return {name: moments["exp_avg"] for name, moments in state.items()}


def compare_folders(one: Path, other: Path) -> None:
    name = "adapter_model.safetensors" if (one / "adapter_model.safetensors").exists() else "model.safetensors"
    first, second = load_file(one / name), load_file(other / name)
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), (one, key)


def comparable(output: Path) -> list[dict[str, Any]]:
    """Metrics without those of the clock."""
    return [{k: v for k, v in line.items() if not k.startswith("train_")} for line in lines(output) if "loss" in line]


def test_two_processes_train_as_one_does(model: Path, tmp_path: Path) -> None:
    script = str(ROOT / "tests" / "training_fixed.py")
    options = ("--condition=other_prompt", "--prompts-per-step=4", "--group-size=4", "--learning-rate=1e-2")
    alone = process([script, *words(model, tmp_path / "one", *options)])
    assert alone.returncode == 0, alone.stderr
    launch = ["-m", "accelerate.commands.launch", "--config_file", "training/configs/accelerate/two_cpus.yaml"]
    launch += ["--main_process_port", "0"]
    both = process([*launch, script, *words(model, tmp_path / "two", *options)], ACCELERATE_USE_CPU="true")
    assert both.returncode == 0, both.stderr
    # AdamW's first moment after one step is a tenth of the gradient. (Weights say less: AdamW divides a gradient that
    # is nothing but rounding by its own size.)
    one, two = first_moments(tmp_path / "one" / "checkpoint-1"), first_moments(tmp_path / "two" / "checkpoint-1")
    for name, value in one.items():
        assert (value - two[name]).abs().max() <= 1e-5 * value.abs().max(), name
    for mine, theirs in zip(comparable(tmp_path / "one"), comparable(tmp_path / "two"), strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-4)
        assert theirs["grad_norm"] == pytest.approx(mine["grad_norm"], rel=1e-3)
        assert {k: v for k, v in theirs.items() if k.startswith(("reward/", "context/", "length/"))} == {
            k: v for k, v in mine.items() if k.startswith(("reward/", "context/", "length/"))
        }
    columns = ["group_id", "rollout_id", "response", "reward"]
    alike = [read_rollouts(tmp_path / n).select(columns).sort("rollout_id") for n in ("one", "two")]
    assert alike[0].equals(alike[1])
    contexts = [
        pl.read_parquet(tmp_path / n / "contexts.parquet").select("context_id", "token_ids").sort("context_id")
        for n in ("one", "two")
    ]
    assert contexts[0].equals(contexts[1])
    assert contexts[0].height > 0
    # Two processes that go on from the first checkpoint, as after a kill amid the second step
    shutil.copytree(tmp_path / "two", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoint-2")
    shutil.rmtree(tmp_path / "again" / "model")
    again = process(
        [*launch, script, *words(model, tmp_path / "again", *options, "--resume")], ACCELERATE_USE_CPU="true"
    )
    assert again.returncode == 0, again.stderr
    for file in ("model/model.safetensors", "checkpoint-2/teacher/model.safetensors"):
        through, resumed = (load_file(tmp_path / name / file) for name in ("two", "again"))
        assert all(torch.equal(through[name], resumed[name]) for name in through), file
    assert comparable(tmp_path / "again") == comparable(tmp_path / "two")


def test_memory_that_runs_out_drops_the_step_and_is_counted(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = losses.divergence, iter(range(100))

    def once(*arguments: Any) -> torch.Tensor:
        if next(calls) == 1:  # the second micro-batch of the first step
            raise torch.OutOfMemoryError("no more")
        return real(*arguments)

    monkeypatch.setattr(losses, "divergence", once)
    options = ("--condition=1s", "--prompts-per-step=3", "--learning-rate=1e-2")
    output = train(model, tmp_path / "run", *options)
    first, second = weights(output / "checkpoint-1"), weights(output / "checkpoint-2")
    assert all(torch.equal(value, first[name]) for name, value in weights(model).items())
    assert any(not torch.equal(value, second[name]) for name, value in first.items())
    assert lines(output)[0]["events/out_of_memory"] == 1


def test_memory_that_stays_out_ends_the_run_with_the_mend(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*arguments: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("no more")

    monkeypatch.setattr(losses, "divergence", never)
    with pytest.raises(SystemExit) as ended:
        train(model, tmp_path / "run", "--steps=5", "--condition=1s")
    assert ended.value.code == 1
    assert "lower micro_batch (now 4)" in capsys.readouterr().err


def test_the_plan_is_told_without_training(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main([*words(model, tmp_path / "run", "--prompts-per-step=3"), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "3 groups of 4 = 12 rollouts a step; 1 process, 4 rollouts a forward, 3 forwards a step" in told
    assert "A correct solution to this problem:\n\n(response" in told
    assert "<|im_start|>assistant\n" in told
    assert not (tmp_path / "run").exists()
    # 260 x 32 embeddings and as many of the head; 3 layers of 32 x (32 + 16 + 16 + 32) attention, 3 x 32 x 64 gated
    # units and 2 x 32 norms; 32 of the last norm
    n = 2 * 260 * 32 + 3 * (32 * 96 + 3 * 32 * 64 + 2 * 32) + 32
    assert f"{n:,} parameters, {n:,} of them trained" in told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--reward=nowhere:f"], "cannot import 'nowhere'"),
        (["--reward=tests.training_rewards:CALLS"], "is a dict, and no function"),
        (["--templates=/no/such.toml"], "templates '/no/such.toml' cannot be read"),
    ],
)
def test_the_plan_refuses_what_no_machine_can_run(
    options: list[str], message: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run.main([*words(model, tmp_path / "run"), *options, "--dry-run"])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_the_plan_tells_what_this_machine_lacks(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--engine=vllm-server", "--vllm-url=http://127.0.0.1:9", "--dry-run"]  # a port that nothing listens on
    assert run.main([*words(model, tmp_path / "run"), *asked]) == 0
    told = capsys.readouterr().out
    assert "method: mopd" in told
    assert "would not start on this machine: engine = 'vllm-server' needs vLLM, which is not installed" in told
    assert "would not start on this machine: no vLLM server answers at vllm_url = 'http://127.0.0.1:9' (" in told


@pytest.mark.parametrize("option", ["--reward=nowhere:f", "--engine=vllm-colocate"])
def test_what_cannot_start_claims_no_folder(option: str, model: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        run.main([*words(model, tmp_path / "run"), option])
    assert not (tmp_path / "run").exists()


def longer_and_longer(self: Any, prompt_ids: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
    """Responses that the prompt and the step decide: of 2 tokens at first and 22 afterwards."""
    n = 2 + 20 * min(self.state.global_step, 1)
    draws = (random.Random(str((ids, place % 4))) for place, ids in enumerate(prompt_ids))
    return prompt_ids, [[draw.randrange(36, 80) for _ in range(n)] for draw in draws]


def test_a_run_that_a_context_over_its_budget_has_stopped_goes_on_with_shortened_ones(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trainer.PeerTrainer, "_generate", longer_and_longer)
    options = ["--condition=1s", "--prompts-per-step=2", "--learning-rate=1e-2"]
    roomy = train(model, tmp_path / "roomy", *options)
    first, second = (
        max(map(len, pl.read_parquet(roomy / "steps" / f"00000{n}-contexts.parquet")["token_ids"])) for n in (0, 1)
    )
    limit = second - 1
    assert first <= limit  # enough for the first step, not for the second
    options += [f"--max-context-tokens={limit}"]
    whole = train(model, tmp_path / "whole", *options)
    assert lines(whole)[1]["context/shortened_fraction"] > 0
    broken = tmp_path / "broken"
    with pytest.raises(SystemExit) as ended:
        run.main(words(model, broken, *options, "--on-overflow=error"))
    assert ended.value.code == 1
    told = capsys.readouterr().err
    assert f"over the budget of {limit}, and on_overflow is 'error': go on with --resume" in told
    train(model, broken, *options, "--on-overflow=shorten", "--resume")
    assert read_rollouts(broken)["response"].to_list() == read_rollouts(whole)["response"].to_list()
    compare_folders(broken / "model", whole / "model")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-prompt-tokens=3"], "prompts are longer than max_prompt_tokens = 3"),
        (["--engine=vllm-colocate"], "needs vLLM, which is not installed"),
        (["--report-to", "wandb"], "report_to names wandb, which is not installed"),
        (["--reward=nowhere:f"], "cannot import 'nowhere'"),
        (["--micro-batch=3"], "does not divide"),
        (["--model=/no/such"], "no model '/no/such'"),
        (["--micro-batch=4", "--max-response-tokens=90000000"], "out of memory before the first step"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_step(
    options: list[str], message: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run.main([*words(model, tmp_path / "run"), *options])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_teacher_of_another_vocabulary_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<more>"])
    tiny_model("llama").save_pretrained(other)
    tokenizer.save_pretrained(other)
    with pytest.raises(SystemExit):
        train(model, tmp_path / "run", "--method=opd", f"--teacher-model={other}")
    assert "another vocabulary than the student" in capsys.readouterr().err


def test_a_folder_of_another_run_is_not_touched(model: Path, peers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main([*words(model, peers), *PEERS])
    assert "go on with --resume" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run.main([*words(model, peers), *PEERS, "--seed=5", "--resume"])
    assert "seed 0 there, 5 now" in capsys.readouterr().err


@pytest.mark.parametrize("teacher", ["live", "frozen"])
def test_the_other_teachers_and_a_mixed_loss_train(teacher: str, model: Path, tmp_path: Path) -> None:
    options = (f"--teacher={teacher}", "--condition=1s", "--distillation-weight=0.5", "--updates-per-batch=2")
    options += ("--save-every=2", "--average=sequence", "--learning-rate=1e-2")
    output = train(model, tmp_path / "run", *options)
    assert read_rollouts(output)["step"].unique().to_list() == [0]  # two updates on one batch
    assert [line["step"] for line in lines(output) if "loss" in line] == [1, 2]
    assert not (output / "checkpoint-2" / "teacher").exists()
