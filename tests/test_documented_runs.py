"""The figures that README and docs give of real runs are those of the files beside them."""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl
import pytest

from analysis import answers
from mopd.samples import load_sample
from training import compare

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "docs" / "runs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
TRAINING = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def runs() -> list[compare.Run]:
    """In the order of the command that the docs give, which has the run that others are held against first."""
    (command,) = set(re.findall(r"training\.compare docs/runs/arith-\{(.*?)\}", TRAINING))  # all of the same runs
    return [compare.read_run(RUNS / f"arith-{name}") for name in command.split(",")]


def test_the_table_of_the_docs_is_what_the_command_prints(runs: list[compare.Run]) -> None:
    assert {run.name for run in runs} == {folder.name for folder in RUNS.iterdir() if folder.is_dir()}
    for line in compare.render(compare.changes(runs), runs[0].k).splitlines()[2:]:
        assert line in TRAINING


def test_the_short_table_of_the_readme_has_the_same_figures(runs: list[compare.Run]) -> None:
    for row in compare.changes(runs).iter_rows(named=True):
        change = f"{row['mean_change']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
        figures = f"| {row['mean_last']:.3f} | {change} | {row['pass_last']:.3f} | {row['length_last']:.0f} |"
        lines = [line for line in README.splitlines() if line.endswith(figures)]
        assert len(lines) == 1, (row["run"], figures)
        assert row["method"].split(" ")[0] in lines[0].lower()


@pytest.mark.parametrize("file", sorted(RUNS.glob("answers*.csv")), ids=lambda file: file.stem)
def test_the_answers_of_the_docs_are_those_of_the_file(file: Path) -> None:
    lines = answers.render(pl.read_csv(file)).splitlines()[2:]
    assert len(lines) >= 3
    for line in lines:
        assert line in TRAINING


def test_there_are_such_files() -> None:
    assert {file.stem for file in RUNS.glob("answers*.csv")} == {"answers", "answers-short", "answers-orders"}


def test_the_methods_differ_in_nothing_but_what_is_said(runs: list[compare.Run]) -> None:
    """One budget: data, rollouts, loss and optimiser are the same."""
    for run in runs[1:]:
        for table in ("model", "data", "rollouts", "loss", "optimizer"):
            assert run.config[table] == runs[0].config[table], (run.name, table)


def test_what_the_docs_say_without_the_prompts_that_the_wording_was_chosen_on(runs: list[compare.Run]) -> None:
    left = compare.leave_out(runs, RUNS / "wording-chosen-on.csv")
    assert (runs[0].evaluations["item_id"].n_unique(), left[0].evaluations["item_id"].n_unique()) == (32, 15)
    moved = dict(compare.changes(left).select("run", "mean_change").iter_rows())
    for name, words in (
        ("grpo", "with `grpo`"),
        ("sdpo-short", "with `1s`"),
        ("2s-short", "with `2s`"),
        ("mopd-short", "with `2s1f`"),
        ("other-short", "with `other_prompt`"),
    ):
        assert f"{moved[f'arith-{name}-0']:+.3f} {words}" in TRAINING


def test_which_prompts_of_the_runs_the_sample_has() -> None:
    sample = {group.split("@")[0] for group in load_sample("arithmetic")["group_id"]}
    held_out = set(pl.read_parquet(RUNS / "arith-grpo-0" / "evaluations.parquet")["item_id"])
    chosen_on = set(pl.read_csv(RUNS / "wording-chosen-on.csv")["item_id"])
    assert (len(sample), len(chosen_on), len(held_out & sample), len(held_out & chosen_on)) == (60, 20, 32, 17)
