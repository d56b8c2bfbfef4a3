"""The app's page, headless."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from mopd.study import StudyConfig, run_study
from mopd.teachers.scripted import ScriptedTeacher
from tests.test_study import labelled_rollouts, mixed_labels

MAIN = Path(__file__).parents[1] / "app" / "main.py"


def page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    monkeypatch.setattr(sys, "argv", ["main.py", "--studies", str(folder)])
    return AppTest.from_file(str(MAIN), default_timeout=60).run()


def test_a_study_is_shown_with_its_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rollouts = labelled_rollouts(mixed_labels(8, 8))
    config = StudyConfig(protocols=("leave_pair_out", "self_exclusion"))
    study = run_study(rollouts, ScriptedTeacher("oracle"), config, folder=tmp_path / "oracle")
    app = page(tmp_path, monkeypatch)
    assert not app.exception
    assert [box.label for box in app.sidebar.selectbox] == ["Study", "Task", "Protocol", "Score", "Metric"]
    app.sidebar.selectbox[4].set_value("auc").run()
    assert not app.exception
    assert app.dataframe[0].value["value"].tolist() == [1.0] * len(study.info["config"]["conditions"])
    app.sidebar.selectbox[2].set_value("self_exclusion").run()
    assert "Confounded" in app.warning[0].value


def test_an_empty_folder_says_how_to_make_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = page(tmp_path, monkeypatch)
    assert not app.exception
    assert "python -m analysis.signal_quality" in app.info[0].value
