"""The door: output as a user reads it, bad input, and a run that is killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from analysis import report, signal_quality
from mopd.marks import MARKS
from mopd.rollouts import read_rollouts
from mopd.samples import sample_path
from mopd.store import SCHEMAS, write_parquet
from tests.test_study import labelled_rollouts, mixed_labels

TABLES = ("rollouts", "assignments", "contexts", "scores", "tokens")
TABLES += (
    "metrics",
    "contrasts",
    "clustering",
    "derived",
    "calibration",
    "reliability",
    "group_values",
    "similarity",
    "confounds",
    "marks",
    "localisation",
    "groups",
    "texts",
)


@pytest.fixture
def rollouts_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.parquet"
    write_parquet(labelled_rollouts(mixed_labels(12, 8)), path)
    return path


def run(*args: object) -> int:
    return signal_quality.main([*(str(a) for a in args), "--no-report"])


def test_oracle_prints_one_for_every_condition(
    rollouts_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--rollouts", rollouts_file, "--teacher", "oracle", "--protocol", "all", "--output", tmp_path / "s") == 0
    lines = capsys.readouterr().out.splitlines()
    for name in ("question_only", "shell_only", "1s", "second_s", "1f", "1s1f", "2s", "2s1f"):
        rows = [line for line in lines if line.startswith(f"{name} (")]
        assert len(rows) == 6  # three protocols, two scores
        assert all("1.000 [1.000, 1.000]" in row for row in rows)
    assert any(line.startswith("note: confounded") for line in lines)
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == sorted(
        [*(f"{t}.parquet" for t in TABLES), "study.json", "fingerprint.json"]
    )


def test_a_study_ends_with_its_report_and_no_failure_of_it_costs_the_study(
    rollouts_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--rollouts", str(rollouts_file), "--teacher", "noise", "--conditions", "1s", "--output"]
    assert signal_quality.main([*arguments, str(tmp_path / "s")]) == 0
    assert f"report: {tmp_path / 's' / 'report.html'}" in capsys.readouterr().out
    assert (tmp_path / "s" / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")

    def broken(folder: Path) -> list[Path]:
        raise OSError("no space left")

    monkeypatch.setattr(report, "write_report", broken)
    assert signal_quality.main([*arguments, str(tmp_path / "t")]) == 0
    assert "no report.html: no space left; make it with python -m analysis.report" in capsys.readouterr().err
    assert (tmp_path / "t" / "study.json").is_file()


def test_tables_have_the_documented_columns(rollouts_file: Path, tmp_path: Path) -> None:
    run("--rollouts", rollouts_file, "--teacher", "noise", "--output", tmp_path / "s")
    for name, schema in SCHEMAS.items():
        more = MARKS if name == "tokens" else {}
        assert dict(pl.read_parquet_schema(tmp_path / "s" / f"{name}.parquet")) == schema | more
    metrics = pl.read_parquet_schema(tmp_path / "s" / "metrics.parquet")
    assert {"task", "condition", "protocol", "score", "metric", "value", "ci_low", "ci_high"} <= set(metrics)
    assert {"n_groups", "n_pairs", "n_undefined"} <= set(metrics)
    contrasts = pl.read_parquet_schema(tmp_path / "s" / "contrasts.parquet")
    assert {"task", "condition", "reference", "protocol", "score", "metric", "difference"} <= set(contrasts)
    assert {"ci_low", "ci_high", "p_value", "p_adjusted", "n_groups", "n_pairs"} <= set(contrasts)
    info = json.loads((tmp_path / "s" / "study.json").read_text())
    assert info["arguments"]["rollouts"] == str(rollouts_file)
    assert info["config"]["seed"] == 0


def test_published_is_shown_beside_the_valid_tables(
    rollouts_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("--rollouts", rollouts_file, "--teacher", "oracle", "--published", "--output", tmp_path / "s")
    out = capsys.readouterr().out
    assert "both_present_effective_only" in out
    assert "NOT a valid comparison" in out
    assert "2s1f (2 successes + 1 failure)  1.000 [1.000, 1.000]" in out


def test_options_come_from_a_file_and_flags_win(
    rollouts_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "study.toml"
    config.write_text(
        f'rollouts = "{rollouts_file}"\nteacher = "oracle"\nconditions = ["1s", "3s"]\nlimit = 2\n', encoding="utf-8"
    )
    assert run("--config", config, "--limit", 3, "--output", tmp_path / "s", "--reference", "1s") == 0
    out = capsys.readouterr().out
    assert "3s (3 successes)" in out
    assert "groups: 3 compared" in out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("limits = 2", "unknown option 'limits'; known are"),
        ('limit = "many"', "limit = 'many'"),
        ("limit = [1, 2]", "limit takes one value"),
        ('teacher = "guess"', "choose from hf, vllm, oracle"),
        ('resume = "yes"', "resume must be true or false"),
        ("limit = ", "cannot be read"),
    ],
)
def test_a_wrong_config_file_is_exit_2(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "c.toml"
    config.write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        run("--config", config)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


BASE = {
    "group_id": ["a"] * 4,
    "prompt": ["q"] * 4,
    "response": ["r1", "r2", "r3", "r4"],
    "reward": [1.0, 1.0, 0.0, 0.0],
}


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        (None, [], "no rollouts at"),
        ({"reward": None}, [], "lacks reward (or success)"),
        ({"reward": ["1", "1", "0", "x"]}, [], "column 'reward' has type String, expected Float64"),
        ({"rollout_id": ["a", "a", "b", "c"]}, [], "ids appear more than once, the first being 'a'"),
        ({"group_id": ["a", "b", "c", "d"]}, [], "4 group_of_one"),
        ({"reward": [1.0] * 4}, [], "1 group_all_success"),
        ({"reward": [0.0] * 4}, [], "1 group_all_failure"),
        ({"reward": [None] * 4}, [], "4 unjudged"),
        ({"response": [""] * 4}, [], "4 empty_response"),
        ({"prompt": ["q", "q", "q", "p"]}, [], "mix values of 'prompt'"),
        ({"step": [1, 1, 2, 2]}, [], "different training steps are different groups"),
        ({}, ["--conditions", "2x"], "unknown condition '2x'"),
        ({}, ["--chat-template-kwargs", "[1]"], "must be a JSON object"),
        ({}, ["--templates", "missing.toml"], "missing.toml"),
    ],
)
def test_bad_input_is_exit_2_with_its_reason(
    changes: dict | None, arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "r.parquet"
    if changes is not None:
        pl.DataFrame({k: v for k, v in (BASE | changes).items() if v is not None}, strict=False).write_parquet(path)
    teacher = [] if "--chat-template-kwargs" in arguments else ["--teacher", "oracle"]
    conditions = [] if "--conditions" in arguments else ["--conditions", "1s"]
    with pytest.raises(SystemExit) as ended:
        run("--rollouts", path, *teacher, "--output", tmp_path / "s", *conditions, *arguments)
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert "error: " in err
    assert message in err
    assert not (tmp_path / "s").exists()


def test_an_output_folder_with_something_else_is_left_alone(
    rollouts_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "s"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    with pytest.raises(SystemExit):
        run("--rollouts", rollouts_file, "--teacher", "oracle", "--output", other)
    assert "not empty and holds no study" in capsys.readouterr().err
    assert [p.name for p in other.iterdir()] == ["thesis.tex"]


@pytest.mark.integration
def test_kill_9_and_resume_end_in_the_same_tables(tmp_path: Path) -> None:
    """Three kills at random moments of a real run on the embedded model; the tables are those of an unbroken one."""
    small = tmp_path / "few.parquet"
    write_parquet(read_rollouts(sample_path("arithmetic")), small)
    command = [
        sys.executable, "-m", "analysis.signal_quality", "--rollouts", str(small), "--limit", "3",
        "--conditions", "question_only", "1s", "1f", "--no-score-cache", "--no-report",
    ]  # fmt: skip
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run([*command, "--output", str(whole)], check=True, capture_output=True)
    env = os.environ | {"MOPD_SHARD_SECONDS": "0"}
    draw = random.Random()
    for kill in range(1, 4):
        with subprocess.Popen(
            [*command, "--output", str(broken), "--resume"],
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            until = time.monotonic() + 120
            while len(list(broken.glob("shards/*.json"))) < min(kill, 2) and time.monotonic() < until:
                time.sleep(0.05)
            time.sleep(draw.uniform(0, 1))
            process.kill()
        assert process.returncode == -signal.SIGKILL
        assert not (broken / "study.json").exists()
    assert list(broken.glob("shards/*.json"))  # something was kept
    subprocess.run([*command, "--output", str(broken), "--resume"], check=True, capture_output=True)
    for name in TABLES:
        assert (whole / f"{name}.parquet").read_bytes() == (broken / f"{name}.parquet").read_bytes(), name
