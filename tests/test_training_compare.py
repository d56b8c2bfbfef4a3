"""Runs side by side, by hand on made-up evaluations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest

from training import compare
from training.config import read_config
from training.evidence import EVALUATIONS

PROMPTS = 6  # the fewest that have a 95% interval


def folder(
    root: Path, name: str, successes: dict[int, Sequence[int]], *, method: str = "grpo", unjudged: int = 0, k: int = 2
) -> Path:
    """A run with, at each evaluated step, so many successes of ``k`` for each prompt; the first ``unjudged`` prompts
    have one response that nothing could judge."""
    output = root / name
    output.mkdir(parents=True)
    settings = {"method": method, "evaluate_k": k, "group_size": 4, "prompts_per_step": 2, "output": str(output)}
    config = read_config("cpu-smoke", settings).as_dict()
    (output / "run.json").write_text(
        json.dumps({"config": config, "wording": {"failure": "A wrong answer: {response}"}})
    )
    rows = [
        {
            "step": step,
            "item_id": f"item-{place}",
            "task": "arithmetic",
            "sample": sample,
            "response": "a WRONG answer: 3" if step and not sample else "x",
            "n_tokens": 10 + step,
            "success": None if place < unjudged and sample == 0 else sample < count,
        }
        for step, counts in successes.items()
        for place, count in enumerate(counts)
        for sample in range(k)
    ]
    pl.DataFrame(rows, schema=EVALUATIONS).write_parquet(output / "evaluations.parquet")
    log = [{"step": 1, "grad_norm": 1.0, "context/fraction": 0.5, "reward/mean": 0.25, "length/mean": 7.0}]
    log += [{"step": 2, "grad_norm": 0.0, "context/fraction": 0.0, "reward/mean": 0.75, "events/idle_step": 1.0}]
    (output / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    return output


def test_changes_by_hand(tmp_path: Path) -> None:
    start = [0, 0, 1, 1, 2, 2]  # of 2: mean (0 + 0 + .5 + .5 + 1 + 1) / 6 = .5, pass@2 4/6
    one = compare.read_run(folder(tmp_path, "one", {0: start, 2: [1, 1, 2, 2, 2, 2]}))  # mean 5/6, all solved
    two = compare.read_run(folder(tmp_path, "two", {0: start, 2: start}, method="mopd"))
    first, second = compare.changes([one, two]).to_dicts()
    assert (first["run"], first["method"], first["steps"], first["rollouts"]) == ("one", "grpo", 2, 16)
    assert first["mean_first"] == pytest.approx(0.5)
    assert first["mean_last"] == pytest.approx(5 / 6)
    assert first["mean_change"] == pytest.approx(1 / 3)  # four prompts by a half, two not at all
    assert 0 <= first["low"] < 1 / 3 < first["high"] <= 0.5
    # of the 16 signings of the four changes two are as far from 0: 2/16
    assert first["p"] == pytest.approx(2 / 16)
    assert (first["pass_first"], first["pass_last"]) == (pytest.approx(4 / 6), 1.0)
    assert (first["length_first"], first["length_last"]) == (10.0, 12.0)
    assert (first["repeated_first"], first["repeated_last"]) == (0.0, 0.5)  # at step 2 one of the two responses
    assert first["against_first"] is None
    assert first["with_context"] == pytest.approx(0.25)
    assert first["idle_steps"] == 1
    assert (second["mean_change"], second["p"]) == (0.0, 1.0)
    assert second["against_first"] == pytest.approx(-1 / 3)
    assert second["against_high"] <= 0


def test_a_prompt_that_was_not_judged_to_the_end_has_no_mean(tmp_path: Path) -> None:
    run = compare.read_run(folder(tmp_path, "one", {0: [2] * 7, 2: [2] * 7}, unjudged=1))
    (row,) = compare.changes([run]).to_dicts()
    assert (row["mean_first"], row["mean_last"]) == (1.0, 1.0)  # of the other six
    few = compare.read_run(folder(tmp_path, "few", {0: [2] * 6, 2: [2] * 6}, unjudged=6))
    (row,) = compare.changes([few]).to_dicts()
    assert [row[name] for name in ("mean_first", "mean_last", "mean_change", "low", "high", "p")] == [None] * 6


def test_the_command_prints_the_table_and_writes_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [folder(tmp_path, name, {0: [0] * 6, 2: [1] * 6}) for name in ("one", "two")]
    assert compare.main([*map(str, runs), "--output", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "| one | grpo | 0 | 16 | 0.000 to 0.500 | 0.500 [0.500, 0.500] | " in out
    curves = pl.read_csv(tmp_path / "out" / "curves.csv")
    trained = curves.filter(pl.col("panel") == "reward", pl.col("run") == "one")
    assert trained.select("step", "value").rows() == [(0, 0.25), (1, 0.75)]  # of rollouts sampled before the update
    assert pl.read_csv(tmp_path / "out" / "runs.csv")["mean_change"].to_list() == [0.5, 0.5]
    assert (tmp_path / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_compared_is_refused_with_the_mend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = folder(tmp_path, "good", {0: [0] * 6})

    def refused(*paths: Path) -> str:
        with pytest.raises(SystemExit) as ended:
            compare.main([str(path) for path in paths])
        assert ended.value.code == 2
        return capsys.readouterr().err

    assert "has no run.json, metrics.jsonl, evaluations.parquet" in refused(tmp_path / "nothing")
    assert "two runs have one name" in refused(good, good)
    assert "evaluated differently: evaluate_k 2 and 3" in refused(good, folder(tmp_path, "other", {0: [0] * 6}, k=3))
    assert "have other held-out prompts" in refused(good, folder(tmp_path, "fewer", {0: [0] * 5}))
    broken = folder(tmp_path, "broken", {0: [0] * 6})
    (broken / "evaluations.parquet").write_bytes(b"PAR1")
    assert "broken cannot be read" in refused(broken)
    assert "has no evaluation" in refused(folder(tmp_path, "empty", {}))
    old = folder(tmp_path, "old", {0: [0] * 6})
    config = json.loads((old / "run.json").read_text())["config"]
    (old / "run.json").write_text(json.dumps({"config": config}))
    assert "old was trained by an earlier version, which kept no wording: train it anew" in refused(old)


def test_prompts_that_were_looked_at_before_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder(tmp_path, "one", {0: [0, 0, 2, 2], 2: [2, 1, 2, 2]})
    seen = tmp_path / "seen.csv"
    seen.write_text("item_id\nitem-0\nitem-2\nof-another-run\n")
    assert compare.main([str(run), "--without", str(seen)]) == 0
    assert "0.500 to 0.750" in capsys.readouterr().out  # (0 + 2) / 4 and (1 + 2) / 4 of the prompts 1 and 3
    for words, message in (
        ("item_id\n" + "\n".join(f"item-{i}" for i in range(4)), "names every held-out prompt of one"),
        ("prompt\nitem-0\n", "give a CSV with a column item_id"),
    ):
        seen.write_text(words)
        with pytest.raises(SystemExit) as ended:
            compare.main([str(run), "--without", str(seen)])
        assert ended.value.code == 2
        assert message in capsys.readouterr().err
