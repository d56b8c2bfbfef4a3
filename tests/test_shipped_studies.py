"""The finished studies that ship with the samples: they are there, are small, and the app opens them on every page."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import polars as pl
import pytest
from streamlit.testing.v1 import AppTest

from app.data import SHIPPED, find_studies
from mopd.samples import SAMPLES, load_sample
from mopd.store import frame_hash

ROOT = Path(__file__).parents[1]
PAGES = {
    "overview": "Signal quality",
    "groups": "Groups",
    "group": "Group",
    "tokens": "Tokens",
    "contexts": "Contexts",
    "compare": "Compare",
    "training": "Training",
}
SHOWN = ("rollouts", "assignments", "contexts", "scores", "tokens", "texts", "groups", "metrics", "group_values")


def shown(page: str, name: str, monkeypatch: pytest.MonkeyPatch, folder: Path, **state: str) -> AppTest:
    """A page of the app as it is started without options, in an empty folder."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["main.py"])
    app = AppTest.from_file(str(ROOT / "app" / "main.py"), default_timeout=120)
    for key, value in {"study": name, **state}.items():
        app.query_params[key] = value
    if page != "overview":
        app.switch_page(f"views/{page}.py")
    return app.run()


def test_each_sample_has_its_study() -> None:
    assert list(find_studies([SHIPPED])) == list(SAMPLES)


def test_they_are_small() -> None:
    files = [file for file in SHIPPED.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 5e6
    assert {file.suffix for file in files} == {".parquet", ".json"}  # what the package takes along


@pytest.mark.parametrize("name", SAMPLES)
def test_a_study_is_of_its_sample_and_says_how_it_was_made(name: str) -> None:
    info = json.loads((SHIPPED / name / "study.json").read_text(encoding="utf-8"))
    assert info["rollouts_hash"] == frame_hash(load_sample(name))
    assert info["arguments"]["rollouts"] == name
    assert info["teacher"]["teacher"] in ("hf", "vllm")
    assert info["git_commit"]
    for table in SHOWN:
        assert pl.scan_parquet(SHIPPED / name / f"{table}.parquet").select(pl.len()).collect().item(), table


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("name", SAMPLES)
def test_every_page_opens_on_it(name: str, page: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    app = shown(page, name, monkeypatch, tmp_path)
    assert not app.exception, app.exception[0].value
    assert [title.value for title in app.title] == [PAGES[page]]
    assert app.sidebar.selectbox[0].value == name
    assert app.sidebar.selectbox[0].options == [f"{sample} (shipped study)" for sample in SAMPLES]
    # a page that has nothing to show says why: nothing was trained, and the samples have no task in common
    nothing = {"training": "no training step", "compare": "no task"}
    assert len(app.info) == (page in nothing)
    assert all(nothing[page] in info.value for info in app.info)


@pytest.mark.parametrize("mode", ["two", "difference"])
@pytest.mark.parametrize("name", SAMPLES)
def test_two_contexts_are_held_against_each_other(
    name: str, mode: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    app = shown("tokens", name, monkeypatch, tmp_path, mode=mode)
    assert not app.exception, app.exception[0].value
    assert not app.info
    assert not any("no token texts" in caption.value for caption in app.caption)


def test_without_a_link_the_first_sample_opens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py"])
    app = AppTest.from_file(str(ROOT / "app" / "main.py"), default_timeout=120).run()
    assert app.sidebar.selectbox[0].value == next(iter(SAMPLES))
