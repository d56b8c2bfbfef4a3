"""Study folders: nothing half written, nothing overwritten, nothing of another study."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from mopd import store
from mopd.store import (
    SCHEMAS,
    StudyError,
    StudyFolder,
    frame_hash,
    git_commit,
    package_versions,
    write_json,
    write_parquet,
)

FRAME = pl.DataFrame({"a": [1, 2], "b": ["x", None]})


class Killed(BaseException):
    """Stands for whatever ends a process in the middle."""


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def tokens(*rollout_ids: str) -> pl.DataFrame:
    rows = [("c", r, [1], [-0.5], [-0.25], None, None, None, None) for r in rollout_ids]
    return pl.DataFrame(rows, schema=SCHEMAS["tokens"], orient="row")


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write_parquet(FRAME, tmp_path / "t.parquet")
    write_json({"ä": [1, None]}, tmp_path / "t.json")
    assert pl.read_parquet(tmp_path / "t.parquet").equals(FRAME)
    assert json.loads((tmp_path / "t.json").read_text(encoding="utf-8")) == {"ä": [1, None]}
    assert names(tmp_path) == ["t.json", "t.parquet"]


@pytest.mark.parametrize("moment", ["in the middle", "before the rename"])
@pytest.mark.parametrize("error", [OSError("disk full"), Killed()])
def test_a_write_that_fails_leaves_the_old_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, error: BaseException
) -> None:
    path = tmp_path / "t.parquet"
    write_parquet(FRAME, path)
    before = path.read_bytes()

    def fail(*args: Any, **kwargs: Any) -> None:
        if moment == "in the middle":
            Path(args[1]).write_bytes(b"half")
        raise error

    if moment == "in the middle":
        monkeypatch.setattr(pl.DataFrame, "write_parquet", fail)
    else:
        monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(type(error)):
        write_parquet(FRAME.reverse(), path)
    assert path.read_bytes() == before
    assert names(tmp_path) == ["t.parquet"]


@pytest.mark.parametrize("value", [{"x": float("nan")}, {"x": object()}])
def test_json_that_cannot_be_written_leaves_the_old(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "t.json"
    write_json({"x": 1}, path)
    with pytest.raises((ValueError, TypeError)):
        write_json(value, path)
    assert json.loads(path.read_text()) == {"x": 1}
    assert names(tmp_path) == ["t.json"]


def test_frame_hash_follows_values_order_and_names() -> None:
    assert frame_hash(FRAME) == frame_hash(FRAME.clone())
    others = [FRAME.reverse(), FRAME.rename({"a": "c"}), FRAME.with_columns(a=pl.col("a") + 1), FRAME.head(1)]
    assert len({frame_hash(f) for f in [FRAME, *others]}) == 5


def test_provenance_names_what_is_installed() -> None:
    found = package_versions()
    assert found["polars"] == pl.__version__
    assert "mopd" not in found or found["mopd"]


def test_no_commit_outside_a_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_git(*args: Any, **kwargs: Any) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", no_git)
    assert git_commit() is None


@pytest.mark.parametrize(("changes", "expected"), [("", "c0ffee"), (" M mopd/store.py", "c0ffee+modified")])
def test_a_modified_checkout_is_not_given_as_its_commit(
    monkeypatch: pytest.MonkeyPatch, changes: str, expected: str
) -> None:
    answers = {"ls-files": "store.py", "rev-parse": "c0ffee", "status": changes}
    monkeypatch.setattr(store, "_git", lambda *arguments, cwd: answers[arguments[0]])
    assert git_commit() == expected


def test_the_commit_of_another_project_is_not_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    installed = tmp_path / "site-packages" / "mopd" / "store.py"
    installed.parent.mkdir(parents=True)
    monkeypatch.setattr(store, "__file__", str(installed))
    assert git_commit() is None


def test_a_new_folder_is_claimed_with_its_parents(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "a" / "b", "f1", resume=False)
    assert names(tmp_path / "a" / "b") == ["fingerprint.json"]
    assert not folder.finished
    assert folder.read_shards() == []


def test_resume_may_be_asked_for_where_nothing_is(tmp_path: Path) -> None:
    assert StudyFolder(tmp_path / "new", "f1", resume=True).read_shards() == []


@pytest.mark.parametrize("resume", [True, False])
def test_another_study_is_refused_and_left_alone(tmp_path: Path, resume: bool) -> None:
    StudyFolder(tmp_path, "f1", resume=False).add_shard(tokens("r"), {"groups": ["g"]})
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    with pytest.raises(StudyError, match=r"holds another study \(fingerprint f1, this one is f2\).*another --output"):
        StudyFolder(tmp_path, "f2", resume=resume)
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before


def test_the_same_study_needs_resume(tmp_path: Path) -> None:
    StudyFolder(tmp_path, "f1", resume=False).add_shard(tokens("r"), {"groups": ["g"]})
    with pytest.raises(StudyError, match="holds this study already; go on with --resume"):
        StudyFolder(tmp_path, "f1", resume=False)
    ((frame, info),) = StudyFolder(tmp_path, "f1", resume=True).read_shards()
    assert frame.equals(tokens("r"))
    assert info == {"groups": ["g"]}


@pytest.mark.parametrize("resume", [True, False])
def test_files_of_something_else_are_left_alone(tmp_path: Path, resume: bool) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(StudyError, match="is not empty and holds no study"):
        StudyFolder(tmp_path, "f1", resume=resume)
    assert names(tmp_path) == ["thesis.tex"]


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("mine")
    with pytest.raises(StudyError, match="is a file; give a folder"):
        StudyFolder(tmp_path / "f", "f1", resume=False)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "3"])
def test_a_mark_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "fingerprint.json").write_text(text)
    with pytest.raises(StudyError, match="fingerprint.json is not the mark of a study"):
        StudyFolder(tmp_path, "f1", resume=True)


def test_shards_come_back_in_the_order_written(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path, "f1", resume=False)
    for i in range(12):
        folder.add_shard(tokens(f"r{i}"), {"i": i})
    folder.close()
    found = StudyFolder(tmp_path, "f1", resume=True).read_shards()
    assert [info["i"] for _, info in found] == list(range(12))
    assert [frame["rollout_id"][0] for frame, _ in found] == [f"r{i}" for i in range(12)]


def test_a_shard_without_its_mark_is_none_and_its_place_is_taken(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path, "f1", resume=False)
    folder.add_shard(tokens("r0"), {"i": 0})
    folder.add_shard(tokens("r1"), {"i": 1})
    (folder.shards / "000001.json").unlink()  # killed between the table and its mark
    (folder.shards / "000001.parquet").write_bytes(b"half")
    folder.close()
    again = StudyFolder(tmp_path, "f1", resume=True)
    assert [info["i"] for _, info in again.read_shards()] == [0]
    again.add_shard(tokens("r2"), {"i": 2})
    assert [frame["rollout_id"][0] for frame, _ in again.read_shards()] == ["r0", "r2"]


def test_a_mark_that_fails_leaves_the_shard_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = StudyFolder(tmp_path, "f1", resume=False)
    folder.add_shard(tokens("r0"), {"i": 0})

    def fail(*args: Any, **kwargs: Any) -> None:
        raise Killed

    monkeypatch.setattr(store, "write_json", fail)
    with pytest.raises(Killed):
        folder.add_shard(tokens("r1"), {"i": 1})
    assert len(folder.read_shards()) == 1


@pytest.mark.parametrize("where", [".", "shards"])
def test_half_written_files_of_a_killed_run_are_cleared_away(tmp_path: Path, where: str) -> None:
    StudyFolder(tmp_path, "f1", resume=False)
    (tmp_path / where / ".scores.parquet.123.partial").write_bytes(b"half")
    StudyFolder(tmp_path, "f1", resume=True)
    assert names(tmp_path) == ["fingerprint.json"]


KILLED_IN_CLAIM = """
import os, signal, sys
from mopd import store
os.replace = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
store.StudyFolder(sys.argv[1], "f1", resume=False)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="SIGKILL")
def test_a_folder_whose_run_was_killed_before_its_claim_can_be_used(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED_IN_CLAIM, str(tmp_path / "s")], check=False, timeout=60)
    assert done.returncode == -9
    assert (tmp_path / "s").is_dir()
    StudyFolder(tmp_path / "s", "f1", resume=False)
    assert names(tmp_path / "s") == ["fingerprint.json"]


def test_the_finished_study(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path, "f1", resume=False)
    folder.add_shard(tokens("r"), {"i": 0})
    (folder.shards / ".000001.json.9.partial").write_text("half")
    folder.write("scores", FRAME)
    assert not folder.finished
    write_json({"n": 1}, tmp_path / "study.json")
    folder.drop_shards()
    assert folder.finished
    assert folder.read("scores").equals(FRAME)
    assert folder.read_info() == {"n": 1}
    assert names(tmp_path) == ["fingerprint.json", "scores.parquet", "study.json"]
