"""A small copy of a study shows what the study shows."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from analysis import report
from analysis.small_copy import LEFT_OUT, STEPS, small_copy
from mopd.store import StudyError
from tests.app_studies import STUDIES


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return STUDIES["plain"](tmp_path_factory.mktemp("whole") / "plain")


def test_only_token_values_are_rounded(study: Path, tmp_path: Path) -> None:
    size = small_copy(study, tmp_path / "copy")
    assert size == sum(file.stat().st_size for file in (tmp_path / "copy").iterdir())
    names = {file.stem for file in study.glob("*.parquet")}
    assert {file.stem for file in (tmp_path / "copy").glob("*.parquet")} == names - set(LEFT_OUT)
    for name in names - set(LEFT_OUT):
        whole, copy = (pl.read_parquet(folder / f"{name}.parquet") for folder in (study, tmp_path / "copy"))
        if name != "tokens":
            assert_frame_equal(copy, whole)
            continue
        assert copy.schema == whole.schema
        assert_frame_equal(copy.drop(STEPS), whole.drop(STEPS))
        for column, step in STEPS.items():
            there, here = (frame[column].explode().drop_nulls() for frame in (whole, copy))
            assert len(here) == len(there)
            # to the nearest multiple of a step: half a step off at most
            assert not len(here) or (here - there).abs().max() <= step / 2  # pyright: ignore[reportOperatorIssue]
            assert (here / step).is_in((here / step).round()).all()


def test_the_copy_says_what_was_done(study: Path, tmp_path: Path) -> None:
    small_copy(study, tmp_path / "copy")
    whole, copy = (
        json.loads((folder / "study.json").read_text(encoding="utf-8")) for folder in (study, tmp_path / "copy")
    )
    assert copy.pop("small_copy") == {"steps_nats": STEPS, "left_out": list(LEFT_OUT)}
    assert copy == whole
    with pytest.raises(StudyError, match="such a copy itself"):
        small_copy(tmp_path / "copy", tmp_path / "again")


def test_a_folder_in_use_is_left_alone(study: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(StudyError, match="holds something already"):
        small_copy(study, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(StudyError, match="no finished study"):
        small_copy(tmp_path, tmp_path / "copy")


def test_the_command_writes_a_copy(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report.main([str(study), "--output", str(tmp_path / "page"), "--copy", str(tmp_path / "copy")])
    assert f"copy: {tmp_path / 'copy'}" in capsys.readouterr().out
    assert (tmp_path / "copy" / "study.json").is_file()
