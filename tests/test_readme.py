"""What the README tells a reader to run, run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import polars as pl
import pytest

from analysis import signal_quality
from mopd.rollouts import read_rollouts
from mopd.samples import sample_path
from mopd.store import write_parquet

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def scripted_commands() -> list[str]:
    lines = [line.split("#")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if "analysis.signal_quality" in line and "--teacher" in line]


@pytest.mark.parametrize("command", scripted_commands())
def test_the_scripted_commands_say_what_the_readme_says(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "analysis.signal_quality"]
    assert signal_quality.main(words[3:]) == 0
    out = capsys.readouterr().out
    if "oracle" in command:
        rows = [line for line in out.splitlines() if re.match(r"\w+ \(", line)]
        assert len(rows) >= 16
        assert all("1.000 [1.000, 1.000]" in row for row in rows)


def test_there_are_such_commands() -> None:
    assert len(scripted_commands()) == 3


@pytest.mark.integration
def test_the_notebook_lines_give_a_metrics_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rollouts = read_rollouts(sample_path("arithmetic"))
    mixed = rollouts.group_by("group_id", maintain_order=True).agg(n=pl.col("success").sum())
    few = mixed.filter(pl.col("n").is_between(4, 12))["group_id"].head(2).to_list()
    write_parquet(rollouts.filter(pl.col("group_id").is_in(few)), tmp_path / "mine.parquet")
    (code,) = blocks("python")
    names: dict = {}
    exec(code, names)
    frame = names["study"].metrics
    assert set(frame["condition"]) == {"question_only", "1s", "2s1f"}
    auc = frame.filter(pl.col("metric") == "auc")["value"]
    assert auc.null_count() == 0
    assert auc.is_between(0, 1).all()


def test_every_file_that_the_readme_names_is_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
