"""Configurations: those shipped, flags over files, and what is refused before anything is loaded."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from mopd.conditions import CONDITIONS, condition
from mopd.contexts import Templates
from training.config import CONFIGS, SECTION_OF, SECTIONS, ConfigError, RunConfig, read_config
from training.flags import add_flags, from_flags
from training.methods import METHODS, check_condition, peers_needed

SHIPPED = sorted(CONFIGS.glob("*.toml"))


def flags(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_every_shipped_configuration_can_be_run(path: Path) -> None:
    config = read_config(path)
    assert config.accumulation(config.run.processes) >= 1
    assert config.run.output.name  # somewhere to go
    assert read_config(path.stem) == config  # by name, from anywhere


def test_the_shipped_configurations_are_those_that_the_documentation_promises() -> None:
    names = {path.stem for path in SHIPPED}
    domains = ("livecodebench", "deepmath", "sciknoweval", "toolalpaca")
    assert {"cpu-smoke", "smollm2-arith"} <= names
    assert {f"qwen3-{size}-{domain}" for size in ("4b", "8b") for domain in domains} <= names
    configs = [read_config(path) for path in SHIPPED]
    assert {c.rollouts.engine for c in configs} == {"transformers", "vllm-colocate", "vllm-server"}
    assert any(c.model.lora_rank for c in configs)


@pytest.mark.parametrize("name", [p.stem for p in SHIPPED if p.stem.startswith("qwen3")])
def test_the_recipes_have_the_settings_of_the_paper(name: str) -> None:
    config = read_config(name)
    assert (config.method, config.condition) == ("mopd", condition("2s1f"))
    assert (config.rollouts.group_size, config.rollouts.prompts_per_step) == (8, 32)
    assert (config.rollouts.max_prompt_tokens, config.rollouts.max_response_tokens) == (2048, 4096)
    assert (config.teacher_kind, config.teacher.ema_rate, config.teacher.max_context_tokens) == ("ema", 0.05, 10_240)
    assert (config.loss.alpha, config.loss.top_k, config.loss.importance_clip) == (0.5, 100, 2.0)
    assert config.data.success_threshold == 1.0
    if not config.model.lora_rank:
        assert config.optimizer.learning_rate == 1e-5


def test_the_defaults_are_those_of_the_recipes() -> None:
    default, recipe = RunConfig(), read_config("qwen3-4b-deepmath")
    assert default.loss == recipe.loss
    for key in ("group_size", "prompts_per_step", "max_prompt_tokens", "max_response_tokens"):
        assert getattr(default.rollouts, key) == getattr(recipe.rollouts, key)
    assert default.condition == recipe.condition


@pytest.mark.parametrize("path", sorted((CONFIGS / "accelerate").glob("*.yaml")), ids=lambda p: p.stem)
def test_accelerate_reads_the_shipped_files(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    loaded: Any = load_config_from_file(str(path))
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert loaded.num_processes == written["num_processes"]
    if "fsdp2" in path.name:
        assert (loaded.fsdp_config or {})["fsdp_version"] == 2


def test_flags_win_over_the_file_and_say_what_a_toml_says(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('method = "grpo"\n[optimizer]\nlearning_rate = 1e-3\nsteps = 7\n[loss]\nimportance_clip = 3.0\n')
    config = from_flags(
        flags("--config", str(file), "--steps", "9", "--importance-clip", "none", "--lora-targets", "q_proj", "v_proj")
    )
    assert config.method == "grpo"
    assert (config.optimizer.learning_rate, config.optimizer.steps) == (1e-3, 9)
    assert config.loss.importance_clip is None
    assert config.model.lora_targets == ("q_proj", "v_proj")
    assert not from_flags(flags("--no-evidence", "--template-kwargs", '{"enable_thinking": false}')).run.evidence


@pytest.mark.parametrize("text", ["{bad", "3"])
def test_options_of_a_template_are_a_json_object(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        flags("--template-kwargs", text)
    assert f'must be a JSON object such as {{"enable_thinking": false}}, got {text!r}' in capsys.readouterr().err


def test_every_key_has_a_flag_and_words_of_its_own() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    told = {action.dest: action.help for action in parser._actions}
    for name in SECTION_OF:
        assert len(str(told[name])) > len("(default: None)"), name
    assert set(SECTION_OF) == {f.name for table in SECTIONS.values() for f in dataclasses.fields(table)}


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().loss.alpha = 1.0  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": 2}, "loss.alpha: Input should be less than or equal to 1"),
        ({"method": "ppo"}, "unknown method 'ppo'; known are grpo, sdpo, mopd, opd, rft, dpo"),
        ({"condition": "9s"}, "9s needs 9 peers besides the target, but a group has 8 rollouts: .* at least 10"),
        ({"condition": "nonsense"}, "unknown condition 'nonsense'; known are question_only"),
        ({"micro_batch": 7}, "micro_batch = 7 does not divide the 256 rollouts of a process .*: 4 would"),
        ({"processes": 3}, "3 processes cannot share 32 groups without splitting one"),
        ({"divergence": "sampled"}, "the reverse KL alone: set alpha = 1"),
        ({"method": "grpo", "condition": "1s"}, "grpo takes no condition, got '1s': method mopd trains on any"),
        ({"method": "sdpo", "condition": "2s"}, "sdpo has the condition 1s, got '2s'"),
        ({"method": "grpo", "teacher": "ema"}, "grpo chooses no teacher"),
        ({"method": "opd"}, "needs teacher_model"),
        ({"method": "opd", "teacher": "live"}, "opd needs another model"),
        ({"teacher_model": "x"}, "teacher_model goes with teacher = 'external'"),
        ({"distillation_weight": 0}, "say method = 'grpo'"),
        ({"save_every": 3, "evaluate_every": 10}, "evaluate_every must be a multiple of save_every"),
        ({"updates_per_batch": 4}, "save_every must be a multiple of updates_per_batch"),
        ({"updates_per_batch": 2, "steps": 7}, "steps must be a multiple of updates_per_batch"),
        ({"engine": "vllm-server"}, "vllm_url goes with"),
        ({"reward": "module"}, "reward must be 'task' or 'module:function'"),
        ({"method": "dpo", "micro_batch": 1}, "micro_batch and group_size must be even"),
        ({"condition": "other_prompt", "prompts_per_step": 1}, "from another prompt of the same step"),
        ({"temperature": 0}, "rollouts.temperature: Input should be greater than 0"),
        ({"learning_rate": float("nan")}, "optimizer.learning_rate"),
        ({"templates": "/no/such.toml"}, "templates '/no/such.toml' cannot be read .*: give a TOML file"),
        ({"seed": -1}, "run.seed: Input should be greater than or equal to 0"),
        ({"group_size": 1}, "group_size: Input should be greater than or equal to 2"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_config(None, changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[loss]\nalhpa = 1\n", "loss.alhpa: unknown key; known are alpha"),
        ("[losses]\nalpha = 1\n", "losses: unknown key; known are method, model"),
        ("method = \n", "cannot be read as TOML"),
    ],
)
def test_a_file_with_a_wrong_key_is_refused_with_the_right_ones(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_config(file)


def test_a_missing_file_names_those_that_are_shipped() -> None:
    with pytest.raises(ConfigError, match="smollm2-arith"):
        read_config("no-such")


@pytest.mark.parametrize(
    ("name", "peers"),
    [("1s", 1), ("2s1f", 3), ("second_s", 2), ("random_peer", 3), ("question_only", 0), ("summary_2", 2), ("1s1f", 2)],
)
def test_peers_that_a_condition_needs(name: str, peers: int) -> None:
    assert peers_needed(condition(name)) == peers


@pytest.mark.parametrize("name", list(CONDITIONS))
def test_every_condition_of_the_study_trains(name: str) -> None:
    config = read_config(None, {"method": "mopd", "condition": name})
    assert config.condition == check_condition(name, 8, 32)


def test_the_fingerprint_sees_what_training_depends_on_and_nothing_else() -> None:
    base = read_config(None)
    same = read_config(None, {"output": "elsewhere", "steps": 500, "report_to": ("wandb",)})
    assert same.fingerprint == base.fingerprint
    for key, value in (("micro_batch", 4), ("gradient_checkpointing", False)):  # what a run out of memory may mend
        assert read_config(None, {key: value}).fingerprint == base.fingerprint
    assert read_config(None, {"on_overflow": "error"}).fingerprint == base.fingerprint  # nor one that it stopped
    assert read_config(None, {"seed": 1}).fingerprint != base.fingerprint
    assert read_config(None, {"method": "grpo"}).fingerprint != base.fingerprint


def test_more_steps_are_another_run_where_the_schedule_depends_on_them() -> None:
    one, more = (read_config(None, {"schedule": "cosine", "steps": n}).fingerprint for n in (100, 200))
    assert one != more


def test_the_fingerprint_sees_the_wording_and_not_where_it_stands(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("one.toml", "two.toml")]
    for file in files:
        file.write_text('[templates]\nclosing = "Now you."\n')
    one, two = (read_config(None, {"templates": file}).fingerprint for file in files)
    assert one == two != read_config(None).fingerprint
    files[0].write_text('[templates]\nclosing = "Go."\n')
    assert read_config(None, {"templates": files[0]}).fingerprint != one


def test_a_run_keeps_the_wording_that_its_file_had_when_it_began(tmp_path: Path) -> None:
    file = tmp_path / "words.toml"
    file.write_text('[templates]\nclosing = "Now you."\n')
    config = read_config(None, {"templates": file})
    before = config.fingerprint
    file.write_text('[templates]\nclosing = "Go."\n')
    assert (config.teacher.wording, config.fingerprint) == (Templates(closing="Now you."), before)
    file.unlink()
    assert (config.teacher.wording, config.fingerprint) == (Templates(closing="Now you."), before)
    assert config.as_dict()["teacher"].keys() == {f.name for f in dataclasses.fields(config.teacher)}


def test_own_wording_comes_from_the_file_that_is_named(tmp_path: Path) -> None:
    file = tmp_path / "words.toml"
    file.write_text('[templates]\nclosing = "Now you."\n')
    assert read_config(None, {"templates": str(file)}).teacher.wording == Templates(closing="Now you.")


def test_methods_have_a_teacher_exactly_where_they_have_a_context_or_a_reference() -> None:
    for method in METHODS.values():
        assert (method.teacher is not None) == (method.objective in ("distil", "preference"))
        assert (method.condition is not None) == (method.objective == "distil")
