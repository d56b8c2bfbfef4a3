"""The report: one file without anything from outside, text by rules, and exports that can be read."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import polars as pl
import pytest

from analysis import report
from analysis.reporting import charts, page
from analysis.reporting.examples import MOST_TOKENS, Example, Token, examples
from analysis.reporting.examples import _scaled as scaled  # the colours of a page are on one scale
from analysis.reporting.explanations import confounds, copying, difficulty
from analysis.reporting.export import export, markdown_table
from analysis.reporting.figures import Figure, Section, few_groups, sized
from analysis.reporting.findings import findings
from analysis.reporting.finished import FinishedStudy
from analysis.reporting.sections import calibration, sections
from mopd.confounds import CONFOUND_TABLE
from mopd.store import write_json, write_parquet
from mopd.study import StudyConfig, run_study
from mopd.teachers.scripted import ScriptedTeacher
from tests.test_study import labelled_rollouts, mixed_labels

HOSTILE = """</script><script>alert(1)</script><img src=//evil.example/x onerror=alert(2)> {{ 7 * 7 }} "'`]]>\u202e |"""


def made(folder: Path, *, conditions: list[str], protocols: list[str], groups: int) -> Path:
    """A finished study of hostile rollouts in a folder."""
    rollouts = labelled_rollouts(mixed_labels(groups, 8, seed=1)).with_columns(
        response=pl.col("response") + " 2 + 2 = 4, 3 + 3 = 7 " + HOSTILE,
        prompt=pl.lit([{"role": "user", "content": HOSTILE}]),
        task=pl.lit(f"sums {HOSTILE}"),
    )
    config = StudyConfig(conditions=conditions, protocols=protocols, draws=200)
    run_study(rollouts, ScriptedTeacher("noise"), config, folder=folder, arguments={"teacher": "noise"})
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = ["question_only", "shell_only", "1s", "2s1f", "2s1f_failures_first", "random_peer"]
    folder = tmp_path_factory.mktemp("study")
    return made(folder, conditions=names, protocols=["leave_pair_out", "split"], groups=4)


@pytest.fixture(scope="module")
def study(folder: Path) -> FinishedStudy:
    return FinishedStudy.read(folder)


@pytest.fixture(scope="module")
def parts(study: FinishedStudy) -> list[Section]:
    return sections(study)


@pytest.fixture(scope="module")
def html(study: FinishedStudy, parts: list[Section]) -> str:
    return page.render(study, parts)


class Elements(HTMLParser):
    """Every element with its attributes, and the text outside of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._script = tag == "script"

    def handle_endtag(self, tag: str) -> None:
        self._script = False

    def handle_data(self, data: str) -> None:
        if not self._script:
            self.text.append(data)


def test_nothing_comes_from_outside(html: str) -> None:
    found = Elements(html).elements
    assert not [a for _, a in found if {"src", "srcset", "action", "data", "poster", "background"} & set(a)]
    assert all((a["href"] or "").startswith("#") for _, a in found if "href" in a)
    assert not {tag for tag, _ in found} & {"link", "iframe", "object", "embed", "base", "form", "img"}
    assert not [name for _, a in found for name in a if name.startswith("on")]
    policy = [a["content"] for tag, a in found if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"]
    assert policy[0] is not None
    assert policy[0].startswith("default-src 'none';")
    assert "@import" not in html
    assert not re.search(r"url\((?!#|\"#|'#)", html.split("<script", 1)[0])


def test_every_chart_is_in_the_page_with_its_data(html: str, parts: list[Section]) -> None:
    charts = [figure for part in parts for figure in part.figures if figure.chart is not None]
    specs = re.findall(r'<script type="application/json" id="spec-(.+?)">(.*?)</script>', html, flags=re.DOTALL)
    assert [key for key, _ in specs] == [figure.key for figure in charts]
    assert {"headline", "pairs", "contrasts_primary", "controls", "surface", "orders", "copying"} <= dict(specs).keys()
    for _, text in specs:
        spec = json.loads(text)
        assert spec["datasets"]
        assert '"url"' not in text
    # one script a chart, the drawing program, and the lines that call it
    assert [tag for tag, _ in Elements(html).elements].count("script") == len(charts) + 2


def test_text_of_rollouts_is_only_ever_text(html: str) -> None:
    before_program = html.split("<script>")[0]  # the elements and all data; the drawing program has markup of its own
    assert "alert(1)" in before_program
    assert "<script>alert" not in html
    assert "<img" not in before_program
    shown = "".join(Elements(html).text)
    assert HOSTILE in shown  # the prompt of an example, word for word


def test_a_section_stands_for_each_question(html: str) -> None:
    ids = [a["id"] for tag, a in Elements(html).elements if tag == "h2"]
    assert ids == [
        "findings", "headline", "pairs", "contrasts", "controls", "dose", "copying", "localisation", "confounds",
        "calibration", "difficulty", "counts", "examples", "methods", "provenance",
    ]  # fmt: skip


def test_what_was_not_made_is_said_with_its_command(folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("assignments", "contrasts", "group_values", "metrics", "rollouts"):
        table = pl.read_parquet(folder / f"{name}.parquet")
        if "protocol" in table.columns:
            table = table.filter(pl.col("protocol") != "split")
        write_parquet(table, bare / f"{name}.parquet")
    info = json.loads((folder / "study.json").read_text())
    write_json(info | {"config": info["config"] | {"protocols": ["leave_pair_out"]}}, bare / "study.json")
    old = FinishedStudy.read(bare)
    missing = {part.key: part.missing for part in sections(old)}
    again = "python -m analysis.signal_quality --teacher noise --protocol leave_pair_out split"
    assert missing["headline"].endswith(again)
    assert missing["calibration"].endswith(again)
    assert missing["controls"].startswith("6 of 7 controls were not run (score_ordered")
    for key in ("copying", "localisation", "confounds", "difficulty"):
        assert f"--resume --output {bare}" in missing[key]
    assert "texts.parquet" in page.render(old, sections(old))


def test_a_study_without_a_row_is_a_page_that_says_so(study: FinishedStudy) -> None:
    empty = {name: t if name == "rollouts" else t.clear() for name, t in study.tables.items()}
    nothing = dataclasses.replace(study, tables=empty)
    text = page.render(nothing, sections(nothing))
    assert "No group could be compared, so the study says nothing about the conditions." in text
    assert not [f for part in sections(nothing) for f in part.figures if f.chart is not None]
    assert "No pair was compared" in text


def test_a_single_condition_claims_nothing(tmp_path: Path) -> None:
    alone = FinishedStudy.read(made(tmp_path / "s", conditions=["1s"], protocols=["leave_pair_out"], groups=2))
    text = page.render(alone, sections(alone))
    assert "None of the declared differences (2s1f against question_only" in text
    assert "are significant" not in text
    assert 'id="figure-pairs"' in text
    assert [e.success for e in examples(alone) or []][:2] == [True, False]


def test_a_confounded_protocol_alone_tests_nothing(tmp_path: Path) -> None:
    names = ["question_only", "1s", "2s1f"]
    only = FinishedStudy.read(made(tmp_path / "s", conditions=names, protocols=["self_exclusion"], groups=3))
    text = page.render(only, sections(only))
    assert "Only confounded protocols were run, so no difference is tested" in text
    assert "CONFOUNDED: under self_exclusion" in text
    assert 'id="figure-contrasts_primary"' not in text


def confound_rows(study: FinishedStudy) -> pl.DataFrame:
    def row(measure: str, stratum: str, value: float | None, **more: object) -> dict[str, object]:
        place = {"task": study.task, "protocol": "leave_pair_out", "condition": "2s1f", "score": "delta_mean"}
        numbers = {"value": value, "ci_low": 0.4, "ci_high": 0.8, "n_groups": 3, "n_pairs": 7}
        return place | numbers | {"measure": measure, "stratum": stratum} | more

    rows = [
        row("auc", "all", 0.6),
        row("auc", "length and similarity matched", 0.62),
        row("auc", "same wrong answer", None, ci_low=None, ci_high=None, n_groups=0, n_pairs=0),
        row("auc", "hard", 0.55, n_groups=1),
        row("edit_similarity", "success", 0.3, score=None),
        row("edit_similarity", "failure", 0.2, score=None),
        row("partial_spearman", "given length", 0.1),
        row("near_duplicate_rate", "all", 0.0, protocol=None, condition=None, score=None, n_pairs=None),
    ]
    return pl.DataFrame(rows, schema=CONFOUND_TABLE)


def test_confounds_and_difficulty_are_panels_by_stratum(study: FinishedStudy) -> None:
    held = dataclasses.replace(study, tables={**study.tables, "confounds": confound_rows(study)})
    figures = {figure.key: figure for figure in confounds(held).figures}
    assert set(figures) == {"confounds_matched", "confounds_similarity", "confounds_partial", "near_duplicate_rate"}
    assert "Without any pair: length matched, edit matched, n-gram matched." in figures["confounds_matched"].caption
    assert figures["near_duplicate_rate"].table["value"].to_list() == [0.0]
    (hard,) = difficulty(held).figures
    assert '["AUC, up to 1/3 succeed", "1 group, 7 pairs"]' in json.dumps(hard.chart.to_dict())
    assert "AUC of delta_mean under 2s1f is 0.620 [0.400, 0.800], which lies across 0.5" in page.render(held, [])


def test_panels_say_what_they_rest_on(study: FinishedStudy) -> None:
    marks = study.tables["marks"].filter(quantity="auc", mark="novel", protocol="leave_pair_out")
    (figure,) = copying(study).figures
    assert f'["AUC of \\u0394, novel", "{sized(marks)}"]' in json.dumps(figure.chart.to_dict())
    few = pl.DataFrame(
        {"value": [0.5, 0.6, None], "ci_low": [0.4, None, None], "n_groups": [1, 1, 0], "n_pairs": [4, 4, 0]}
    )
    assert sized(few) == "1 group, 4 pairs"
    assert "too few groups" in few_groups(few)  # the second
    assert few_groups(few[:1]) == few_groups(few[2:]) == ""
    assert "too few groups" in figure.caption  # four groups give none


def test_differences_stand_in_the_order_of_the_conditions(parts: list[Section]) -> None:
    (figure,) = [f for part in parts for f in part.figures if f.key == "contrasts_primary"]
    first = figure.table.filter(score="teacher_mean")["reference"].to_list()
    assert first == ["question_only", "shell_only", "1s", "random_peer"]


def test_calibration_of_several_tasks_is_shown_task_by_task(study: FinishedStudy) -> None:
    def of(name: str, *tasks: str) -> pl.DataFrame:
        return pl.concat([study.tables[name].with_columns(task=pl.lit(task)) for task in tasks])

    tables = {"metrics": of("metrics", "a", "b", "all")}
    tables |= {name: of(name, "a", "b") for name in ("calibration", "reliability")}  # none of all tasks together
    section = calibration(dataclasses.replace(study, tables={**study.tables, **tables}))
    assert section.missing == ""
    figures = {figure.key: figure for figure in section.figures}
    assert set(figures) == {"reliability_platt", "reliability_isotonic", "calibration"}
    assert figures["calibration"].table["task"].unique().sort().to_list() == ["a", "b"]
    assert figures["reliability_platt"].table["condition"].unique().to_list() == ["2s1f"]
    assert [p["title"][0] for p in figures["reliability_platt"].chart.to_dict()["concat"]] == ["a", "b"]
    none = {name: study.tables[name].clear() for name in ("calibration", "reliability")}
    text = calibration(dataclasses.replace(study, tables={**study.tables, **none})).missing
    assert text.startswith("No calibrator could be fitted")  # and not to run a protocol that was run
    assert "python -m" not in text


def test_a_score_has_its_colour_also_where_it_is_alone() -> None:
    row = {"condition": "1s", "value": 0.5, "ci_low": 0.4, "ci_high": 0.6, "panel": "x"}

    def colours(*scores: str) -> list[str]:
        rows = pl.DataFrame([row | {"score": score} for score in scores])
        spec = charts.panels_chart(rows, panel="panel", panels=[("x", "x", None)], colour="score").to_dict()
        return spec["concat"][0]["layer"][0]["encoding"]["color"]["scale"]["range"]

    both = colours("teacher_mean", "delta_mean")
    assert colours("delta_mean") == both[1:]
    assert colours("teacher_mean") == both[:1]


def test_what_was_counted_is_said_for_every_protocol(parts: list[Section], study: FinishedStudy) -> None:
    (table,) = [f.table for part in parts for f in part.figures if f.key == "dropped"]
    numbers = dict(table.iter_rows())
    for protocol in ("leave_pair_out", "split"):
        assert numbers[f"{protocol}: units"] == study.info["counts"]["units"][protocol]["units"]
    reasons = study.info["counts"]["undefined"]["split"]["2s1f"]
    for reason, n in reasons.items():
        assert numbers[f"split: undefined under 2s1f, {reason.replace('_', ' ')}"] == n


def test_examples_are_the_extreme_groups_and_their_first_pair(study: FinishedStudy) -> None:
    found = examples(study) or []
    values = study.tables["group_values"].filter(
        protocol="leave_pair_out", condition="2s1f", metric="auc", score="delta_mean"
    )
    auc = dict(values.select("group_id", "value").drop_nulls().iter_rows())
    assert auc[found[0].group_id] == min(auc.values())
    assert auc[found[-1].group_id] == max(auc.values())
    assert [e.success for e in found] == [True, False] * (len(found) // 2)
    first = found[0]
    response = study.tables["rollouts"].filter(rollout_id=first.rollout_id)["response"][0]
    assert "".join(t.text for t in first.tokens).startswith(response[: MOST_TOKENS // 2])
    assert max(abs(t.strength) for e in found for t in e.tokens) == 1.0


def test_colours_are_on_one_scale_for_all_examples() -> None:
    def example(*deltas: float) -> Example:
        tokens = tuple(Token(text="x", delta=d, strength=0.0) for d in deltas)
        words = {"place": "p", "group_id": "g", "rollout_id": "r", "prompt": "q"}
        return Example(**words, success=True, tokens=tokens, delta_mean=0.0, cut=0)

    # |Δ| are 0, 1, 2; their 95th percentile is 1 + 0.9 * (2 - 1) = 1.9, and -1 / 1.9 = -0.526
    a, b = scaled([example(0.0, -1.0), example(2.0)])
    assert [t.strength for t in (*a.tokens, *b.tokens)] == [0.0, -0.526, 1.0]
    assert scaled([example(0.0)])[0].tokens[0].strength == 0.0


def test_what_is_undefined_is_said_and_not_zero() -> None:
    assert page.cell(None) == '<td class="u">undefined</td>'
    assert page.cell(0.0) == '<td class="n">0.0000</td>'
    assert page.cell(1234) == '<td class="n">1,234</td>'
    assert page.cell("<b>") == "<td>&lt;b&gt;</td>"


def test_exports_can_be_read(parts: list[Section], tmp_path: Path) -> None:
    from PIL import Image

    figures = [f for part in parts for f in part.figures]
    chosen = [next(f for f in figures if f.key == key) for key in ("pairs", "dropped")]
    written = export(chosen, tmp_path / "exports", ("png", "svg", "csv", "md"))
    # a figure in four formats, a table without a chart in two
    names = ["pairs.png", "pairs.svg", "pairs.csv", "pairs.md", "dropped.csv", "dropped.md"]
    assert [p.name for p in written] == names
    assert sorted(p.name for p in (tmp_path / "exports").iterdir()) == sorted(names)
    with Image.open(io.BytesIO(written[0].read_bytes())) as picture:
        assert min(picture.size) > 300
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 20
    assert ElementTree.fromstring(written[1].read_bytes()).tag == "{http://www.w3.org/2000/svg}svg"
    assert pl.read_csv(written[2])["value"].to_list() == pytest.approx(chosen[0].table["value"].to_list())
    lines = written[3].read_text(encoding="utf-8").splitlines()
    assert lines[0] == chosen[0].caption
    assert len([line for line in lines if line.startswith("|")]) == chosen[0].table.height + 2


def test_markdown_cells_stay_in_their_cells() -> None:
    table = pl.DataFrame({"a": ["x|y\nz<b>", None], "b": [0.5, None]})
    assert markdown_table(table).splitlines() == [
        "| a | b |", "| --- | --- |", "| x\\|y z&lt;b> | 0.5000 |", "| undefined | undefined |",
    ]  # fmt: skip


def test_the_door_writes_where_it_is_told(
    folder: Path,
    parts: list[Section],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    few = [part for part in parts if part.key in ("pairs", "counts")]
    monkeypatch.setattr(report, "sections", lambda study: few)
    before = sorted(p.name for p in folder.iterdir())
    assert report.main([str(folder), "--output", str(tmp_path / "out"), "--export", "csv", "md"]) == 0
    out = capsys.readouterr().out
    assert f"report: {tmp_path / 'out' / 'report.html'}" in out
    assert "exports: 6 files in" in out  # pairs, counts and dropped
    assert sorted(p.name for p in folder.iterdir()) == before


def test_a_folder_without_a_study_is_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        report.main([str(tmp_path)])
    assert ended.value.code == 2
    assert "holds no finished study" in capsys.readouterr().err


def test_a_figure_without_a_chart_is_a_table(study: FinishedStudy, parts: list[Section]) -> None:
    figure = Figure(key="t", caption="words", table=pl.DataFrame({"x": [None, 1.0]}))
    part = dataclasses.replace(parts[0], key="k", figures=[figure], missing="")
    text = page.render(study, [part])
    assert '<figure id="figure-t">' in text
    assert 'data-spec="spec-t"' not in text


def test_planted_errors_are_shown_although_they_have_a_protocol_and_tasks_of_their_own(study: FinishedStudy) -> None:
    found = study.tables["localisation"]
    assert not found.is_empty()
    row = found.row(0, named=True) | {"protocol": "planted", "source": "planted", "condition": "2s1f", "n_targets": 9}
    values = {"auroc": 0.75, "top1": 0.5, "reciprocal_rank": 0.625}
    planted = [row | {"task": "one", "metric": m, "value": v, "chance": 0.5} for m, v in values.items()]
    tables = {**study.tables, "localisation": pl.concat([found, pl.DataFrame(planted, schema=found.schema)])}
    with_planted = dataclasses.replace(study, tables=tables)
    (part,) = [part for part in sections(with_planted) if part.key == "localisation"]
    (figure,) = [figure for figure in part.figures if figure.key == "localisation_planted"]
    assert "planted errors, 9 responses" in figure.caption
    assert set(figure.table["value"]) == set(values.values())
    said = " ".join(finding.text for finding in findings(with_planted) if "source planted" in finding.text)
    assert "the AUROC of −Δ for wrong steps (source planted, 9 responses" in said
    assert "is 0.750" in said
