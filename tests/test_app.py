"""The app's pages, headless, on studies that are hard to show."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import polars as pl
import pytest
from streamlit.testing.v1 import AppTest

from app.data import find_studies
from app.parts import as_csv, file_name
from mopd.study import StudyConfig, run_study
from mopd.teachers.scripted import ScriptedTeacher
from tests.app_studies import CONDITIONS, STUDIES, rollout_table
from tests.test_study import labelled_rollouts, mixed_labels

MAIN = Path(__file__).parents[1] / "app" / "main.py"
PAGES = ("overview", "groups", "group", "tokens", "contexts", "compare", "training")


@pytest.fixture(scope="session")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("studies")
    for name, make in STUDIES.items():
        make(folder / name)
    return folder


def page(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str = "overview", **state: str) -> AppTest:
    monkeypatch.setattr(sys, "argv", ["main.py", "--studies", str(folder)])
    app = AppTest.from_file(str(MAIN), default_timeout=60)
    for key, value in state.items():
        app.query_params[key] = value
    if name != "overview":
        app.switch_page(f"views/{name}.py")
    return app.run()


def param(app: AppTest, name: str) -> str:
    """A value of the URL; the test's own come back as they were put in, the app's as lists."""
    value = app.query_params[name]
    return value if isinstance(value, str) else value[0]


def box(app: AppTest, label: str):
    return next(b for b in app.selectbox if b.label == label)


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("study", STUDIES)
def test_every_page_shows_every_study(study: str, name: str, studies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = page(studies, monkeypatch, name, study=study)
    assert not app.exception, app.exception[0].value
    assert app.sidebar.selectbox[0].value == study
    assert [title.value for title in app.title] == [{"overview": "Signal quality"}.get(name, name.capitalize())]


@pytest.mark.parametrize("view", ["matrix", "pairs", "saw", "texts"])
@pytest.mark.parametrize("study", ["plain", "null-labels", "one-condition"])
def test_every_view_of_a_group(study: str, view: str, studies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = page(studies, monkeypatch, "group", study=study, view=view)
    assert not app.exception
    assert param(app, "view") == view


@pytest.mark.parametrize("mode", ["one", "two", "difference"])
@pytest.mark.parametrize("study", ["plain", "scripts", "marked", "long"])
def test_every_view_of_tokens(study: str, mode: str, studies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = page(studies, monkeypatch, "tokens", study=study, mode=mode, lines="yes")
    assert not app.exception
    assert param(app, "mode") == mode


def test_marks_can_be_coloured_by(studies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = page(studies, monkeypatch, "tokens", study="marked", colour="copied")
    assert not app.exception
    assert {"mark: copied", "mark: surprise"} < set(box(app, "Colour by").options)
    assert "mark: in_answer" not in box(app, "Colour by").options


def test_a_study_without_texts_shows_ids_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = STUDIES["plain"](tmp_path / "old")
    for name in ("texts", "groups"):
        (made / f"{name}.parquet").unlink()
    app = page(tmp_path, monkeypatch, "tokens")
    assert not app.exception
    assert any("no token texts" in caption.value for caption in app.caption)


def test_a_study_is_shown_with_its_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rollouts = labelled_rollouts(mixed_labels(8, 8))
    config = StudyConfig(protocols=("leave_pair_out", "self_exclusion"))
    study = run_study(rollouts, ScriptedTeacher("oracle"), config, folder=tmp_path / "oracle")
    app = page(tmp_path, monkeypatch)
    assert not app.exception
    assert {"Task", "Protocol", "Score", "Metric"} < {b.label for b in app.selectbox}
    assert app.dataframe[0].value["value"].tolist() == [1.0] * len(study.info["config"]["conditions"])
    box(app, "Protocol").set_value("self_exclusion").run()
    assert "Confounded" in app.warning[0].value
    assert param(app, "protocol") == "self_exclusion"


def test_the_board_is_filtered_by_what_the_url_says(studies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = page(studies, monkeypatch, "groups", study="plain", words="answer 2 to 1", sort="hard")
    assert app.dataframe[0].value["group_id"].tolist() == ["g001"]
    assert app.text_input[0].value == "answer 2 to 1"
    app = page(studies, monkeypatch, "groups", study="null-labels", flags="unjudged", highest="2")
    # g000 has three successes, g001 nobody judged, g002 one success
    assert app.dataframe[0].value["group_id"].tolist() == ["g001", "g002"]


def test_next_and_previous_go_through_the_filtered_groups(studies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = page(studies, monkeypatch, "group", study="null-labels", group="g000", flags="unjudged", sort="easy")
    # success rates 3/5, 1/3 and undefined
    buttons = {button.label: button for button in app.button}
    assert buttons["Previous group"].disabled
    buttons["Next group"].click().run()
    assert param(app, "group") == "g002"
    next(button for button in app.button if button.label == "Next group").click().run()
    assert param(app, "group") == "g001"


def test_a_link_reopens_what_it_was_made_from(studies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = page(studies, monkeypatch, "tokens", study="plain", mode="difference")
    box(app, "Rollout").set_value("g000-3").run()
    box(app, "Second condition").set_value("1s").run()
    link = {name: param(app, name) for name in app.query_params}
    assert link["rollout"] == "g000-3"
    again = page(studies, monkeypatch, "tokens", **link)
    assert [(b.label, b.value) for b in again.selectbox] == [(b.label, b.value) for b in app.selectbox]


@pytest.mark.parametrize("wanted", ["../../etc", "/etc", "nobody", "plain/../../x", ""])
def test_a_study_outside_the_folder_is_refused(wanted: str, studies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = page(studies, monkeypatch, study=wanted)
    assert not app.exception
    assert "not in the folders" in app.error[0].value
    assert app.sidebar.selectbox[0].value in STUDIES


def test_links_out_of_the_folder_are_not_studies(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside / "mine", outside):
        folder.mkdir(parents=True)
        rollout_table([[True, False]]).write_parquet(folder / "rollouts.parquet")
    os.symlink(outside, inside / "link")
    assert set(find_studies([inside])) == {"mine"}
    os.symlink(outside / "rollouts.parquet", inside / "mine" / "scores.parquet")
    (study,) = find_studies([inside]).values()
    from app.data import has_table

    assert not has_table(study, "scores")
    assert has_table(study, "rollouts")


def test_two_studies_of_the_same_groups_are_compared(studies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = page(studies, monkeypatch, "compare", study="plain", other="marked", condition="1s")
    assert not app.exception
    values = pl.read_parquet(studies / "plain" / "group_values.parquet").filter(
        pl.col("condition") == "1s", pl.col("metric") == "auc", pl.col("score") == "teacher_mean"
    )
    shown = app.dataframe[-1].value
    assert shown["first"].tolist() == values["value"].to_list()
    assert shown["difference"].tolist() == [0.0] * values.height


def test_an_empty_folder_says_how_to_make_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = page(tmp_path, monkeypatch)
    assert not app.exception
    assert "python -m analysis.signal_quality" in app.info[0].value


def test_a_table_becomes_csv_that_no_spreadsheet_runs() -> None:
    frame = pl.DataFrame(
        {"a": ["=1+1", "plain", None], "b": ["-x", "@y", "z"], "n": [-1.5, None, 2.0], "flags": [["p", "q"], [], None]}
    )
    assert as_csv(frame).decode().splitlines() == [
        "a,b,n,flags",
        """'=1+1,'-x,-1.5,"[""p"",""q""]\"""",
        "plain,'@y,,[]",
        ",z,2.0,null",
    ]


def test_a_download_is_named_with_harmless_letters() -> None:
    assert file_name("<b>/../x", "matrix", suffix="csv") == "b-..-x-matrix.csv"


def test_the_conditions_of_the_test_studies_show_peers() -> None:
    assert "2s1f" in CONDITIONS
