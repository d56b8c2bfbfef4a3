"""A report as one HTML file: charts, tables and text in it, and the program that draws the charts.

Nothing is fetched: the drawing program (Vega, through vl-convert) is in the file, and a content security policy forbids
the browser every request. All text of a study is escaped; rollouts may hold any markup.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import vl_convert
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from analysis.reporting.examples import RULE, examples, shown_condition
from analysis.reporting.figures import Section, percent, resumed
from analysis.reporting.findings import LEVEL, OTHER, findings
from analysis.reporting.finished import FinishedStudy
from analysis.tables import SCORE_NOTE
from mopd.contrasts import EQUIVALENCE_MARGIN, PRIMARY

__all__ = ["cell", "methods", "provenance", "render", "spec_json"]

NO_TEXTS = "Examples need what each token spells (texts.parquet), which this study does not hold; made by: {command}."


def render(study: FinishedStudy, parts: Sequence[Section]) -> str:
    """The whole page."""
    folder = FileSystemLoader(Path(__file__).parent / "templates")
    # a missing value must be an error here, not a gap in the page
    environment = Environment(
        loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"cell": cell, "spec": spec_json}
    charts = [figure for part in parts for figure in part.figures if figure.chart is not None]
    said = findings(study)
    return environment.get_template("report.html").render(
        title=_title(study),
        subtitle=_subtitle(study),
        findings=[(_about(key), list(group)) for key, group in groupby(said, key=lambda f: f.about)],
        sections=parts,
        charts=charts,
        examples=examples(study),
        examples_missing=NO_TEXTS.format(command=resumed(study)),
        example_condition=shown_condition(study),
        rule=RULE,
        methods=methods(study),
        provenance=provenance(study),
        bundle=Markup(_bundle() if charts else ""),
    )


@cache
def _bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script; it must not end the element that it stands in."""
    source = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return source.replace("</script", "<\\/script")


def spec_json(chart: Any) -> Markup:
    """A chart as JSON that can stand in a script element whatever its data hold."""
    text = json.dumps(chart.to_dict(), ensure_ascii=True, allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def cell(value: Any) -> Markup:
    """A value as a table cell: undefined is said, numbers have four digits."""
    if value is None:
        return Markup('<td class="u">undefined</td>')
    if isinstance(value, bool) or not isinstance(value, int | float):
        return Markup("<td>{}</td>").format(value)
    return Markup('<td class="n">{}</td>').format(f"{value:.4f}" if isinstance(value, float) else f"{value:,}")


def _title(study: FinishedStudy) -> str:
    return f"Signal quality of {study.info['teacher'].get('model') or study.info['teacher'].get('teacher', '?')}"


def _subtitle(study: FinishedStudy) -> str:
    counts = study.info["counts"]
    names = ", ".join(study.tasks) or "nothing"
    return (
        f"{counts['groups_compared']} of {counts['groups']} groups and {len(study.info['config']['conditions'])} "
        f"conditions compared on {names}; protocols: {', '.join(study.info['config']['protocols'])}."
    )


def _about(key: str) -> str:
    if key == OTHER:
        return "Other explanations (single intervals, not adjusted for their number)"
    return f"{key}: {SCORE_NOTE[key]}" if key in SCORE_NOTE else "This study"


def methods(study: FinishedStudy) -> list[str]:
    """How the numbers came about, with this study's settings."""
    config, counts = study.info["config"], study.info["counts"]
    lead, rivals = PRIMARY
    run = [name for name in rivals if {name, lead} <= set(config["conditions"])]
    return [
        f"Each response was scored by the teacher under every context condition that a protocol builds for it "
        f"({', '.join(config['protocols'])}). Under leave_pair_out a success and a failure of one group are read under "
        "one context whose peers come from the rest of the group, without their near-duplicates; under split one half "
        "of a group serves the other. A unit counts only if every condition can serve it, which is decided before any "
        "score is read, so all conditions rest on the same targets.",
        "teacher_mean is the mean log-prob of a response's tokens; delta_mean the mean of teacher minus student, the "
        "student being the same model under the bare prompt; both in nats per token. A group's value is the mean over "
        "its units, a condition's the plain mean over groups. Undefined is never counted as 0.",
        f"{percent(study)} intervals come from resampling groups ({config['draws']:,} draws, seed {config['seed']}), "
        "p-values from sign flips of the groups' differences; docs/statistics.md has the definitions. The primary "
        f"family was declared beforehand ({lead} against {', '.join(rivals)}; run here: {', '.join(run) or 'none'}) "
        "and is adjusted by Holm; all other differences are adjusted by Benjamini and Hochberg. Equivalence is judged "
        f"by two one-sided t-tests with a margin of {EQUIVALENCE_MARGIN:g} AUC, adjusted by Holm here.",
        "The sentences at the top follow from the tables by these rules: a difference is found if its adjusted p-value "
        f"is at most {LEVEL:g}; it is equivalent if it was not found and the adjusted p-value of the equivalence test "
        f"is at most {LEVEL:g}; otherwise it is open, which is not evidence of none. What has no declared test is said "
        "with its interval, and whether that lies above, below or across a value.",
        f"{counts['shortened_contexts']:,} contexts had peers shortened; {counts['retokenised_responses']:,} responses "
        "were tokenised from their text. The order of peers is seeded by group and rollout and depends on no score.",
    ]


def provenance(study: FinishedStudy) -> list[tuple[str, str]]:
    """What was run, as (name, value)."""
    info = study.info
    kept = [(name.replace("_", " "), value) for name, value in info["config"].items() if name != "templates"]
    hashes = [(name.replace("_", " "), info.get(name)) for name in ("template_hash", "rollouts_hash", "git_commit")]
    rows = [
        ("study", str(study.path)),
        ("fingerprint", info["fingerprint"]),
        *((f"teacher: {name}", value) for name, value in info["teacher"].items()),
        *((f"engine: {name}", value) for name, value in info.get("engine", {}).items()),
        *kept,
        *hashes,
        ("packages", ", ".join(f"{name} {version}" for name, version in info["packages"].items())),
        ("work", f"{info['tokens_forwarded']:,} tokens forwarded in {info['seconds']['scoring']:.1f} s of scoring"),
    ]
    return [(name, _words(value)) for name, value in rows]


def _words(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)
