"""The command over a finished study: planted errors, annotated labels, programs."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from analysis import localise, signal_quality
from mopd import tasks
from mopd.localisation import LOCALISATION
from mopd.rollouts import validate_rollouts
from mopd.store import write_parquet
from mopd.verifiers import sandbox


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("studies") / "oracle"
    words = ["--teacher", "oracle", "--draws", "200", "--conditions", "question_only", "1s", "other_prompt"]
    assert signal_quality.main([*words, "--output", str(folder)]) == 0
    return folder


def refused(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    with pytest.raises(SystemExit) as caught:
        localise.main([str(word) for word in argv])
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_planted_errors_of_a_study(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = pl.read_parquet(study / "localisation.parquet")
    assert before["source"].unique().to_list() == ["checker"]
    for _ in range(2):  # the second run finds the scores of the first
        assert localise.main(["measure", str(study), "--planted", "2"]) == 0
        table = pl.read_parquet(study / "localisation.parquet")
        assert dict(table.schema) == LOCALISATION
        planted = table.filter(pl.col("protocol") == "planted")
        assert planted["source"].unique().to_list() == ["planted"]
        assert set(planted["condition"]) == {"question_only", "1s"}  # other_prompt could show a planted rollout
        # the oracle scores every token of a rollout alike: it knows that, not where
        assert planted.filter(pl.col("metric") == "auroc")["value"].unique().to_list() == [0.5]
        assert planted["value"].to_list() == pytest.approx(planted["chance"].to_list())
        assert table.filter(pl.col("source") == "checker").equals(before)
    out = capsys.readouterr().out
    assert "errors by planted, protocol planted" in out
    assert "errors by checker, protocol leave_pair_out" in out
    inner = pl.read_parquet(study / "planted" / "2" / "metrics.parquet")
    assert inner.filter(pl.col("metric") == "auc")["value"].unique().to_list() == [1.0]  # copies are failures


def test_annotated_data_from_file_to_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {
            "id": f"gsm8k-{p}-{label}",
            "generator": "some-model",
            "problem": f"Problem {p}?",
            "steps": [f"first step of {p}", f"second, taken {label}", f"third {label}"],
            "final_answer_correct": label == -1,
            "label": label,
        }
        for p in range(4)
        for label in (-1, 1, 2)
    ]
    file, rollouts, folder = tmp_path / "gsm8k.json", tmp_path / "pb.parquet", tmp_path / "study"
    file.write_text(json.dumps(rows), encoding="utf-8")
    assert localise.main(["convert", str(file), "--output", str(rollouts)]) == 0
    assert "12 solutions of 4 problems, 32 labelled steps, 0 rows left out" in capsys.readouterr().out
    words = ["--rollouts", str(rollouts), "--teacher", "noise", "--draws", "200", "--conditions", "1f"]
    assert signal_quality.main([*words, "--output", str(folder)]) == 0
    assert pl.read_parquet(folder / "localisation.parquet").is_empty()  # there is no equation
    assert localise.main(["measure", str(folder), "--labels", str(file)]) == 0
    table = pl.read_parquet(folder / "localisation.parquet")
    assert table["source"].unique().to_list() == ["processbench"]
    row = table.filter(pl.col("metric") == "top1").row(0, named=True)
    assert (row["n_targets"], row["n_undefined"]) == (8, 4)
    assert row["chance"] == pytest.approx((1 / 2 + 1 / 3) / 2)  # two labelled steps, or three


def test_programs_of_a_study(tmp_path: Path) -> None:
    try:
        sandbox.check_sandbox()
    except sandbox.SandboxUnavailable as error:
        pytest.skip(str(error))
    item = next(i for i in tasks.load("code") if i.reference["kind"] == "function" and len(i.reference["tests"]) > 2)
    name, test = item.reference["entry_point"], item.reference["tests"][0]
    half = f"def {name}(*args):\n    if list(args) == {test['args']!r}:\n        return {test['expected']!r}\n"
    bodies = [f"{half}    wrong = 1\n    return wrong, {i}\n" for i in range(3)]
    assert not isinstance(item.prompt, str)
    prompt = [dict(m) for m in item.prompt]
    rows = [
        {
            "group_id": "g",
            "prompt": prompt,
            "response": f"```python\n{body}```",
            "reward": float(i > 1),
        }
        for i, body in enumerate([*bodies, f"{half}    return 'right'\n"])
    ]
    write_parquet(validate_rollouts(pl.DataFrame(rows)), tmp_path / "code.parquet")
    folder = tmp_path / "study"
    words = ["--rollouts", str(tmp_path / "code.parquet"), "--teacher", "noise", "--draws", "200", "--conditions", "1f"]
    assert signal_quality.main([*words, "--output", str(folder)]) == 0
    assert localise.main(["measure", str(folder), "--programs", "code"]) == 0
    table = pl.read_parquet(folder / "localisation.parquet").filter(pl.col("source") == "code")
    row = table.filter(pl.col("metric") == "top1").row(0, named=True)
    assert row["n_targets"] == 2
    assert row["chance"] == pytest.approx(1 / 5)  # def, if, return, and two suspect lines


def test_bad_input_is_refused(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is no finished study" in refused(capsys, "measure", tmp_path)
    file = tmp_path / "other.json"
    row = {"problem": "?", "steps": ["a", "b"], "label": 0, "final_answer_correct": False}
    file.write_text(json.dumps([row]), encoding="utf-8")
    assert "no solution of" in refused(capsys, "measure", study, "--labels", file)
    assert "no failed rollout of" in refused(capsys, "measure", study, "--programs", "code")
    assert "unknown task" in refused(capsys, "measure", study, "--programs", "nothing")
    assert "there is no file" in refused(
        capsys, "convert", tmp_path / "absent.json", "--output", tmp_path / "o.parquet"
    )
