"""What the study is, how well each condition ranks, what was dropped, and where it came from."""

from __future__ import annotations

from typing import Any

import polars as pl
import streamlit as st

from analysis.charts import contrast_chart, metric_chart
from app import data, parts, state
from app.lookup import condition_words
from app.markup import facts_html
from mopd.metrics import METRICS

DROPPED = {
    "groups_without_common_support": "mixed groups without a pair that every condition can serve",
    "groups_not_looked_at": "groups in the file beyond the limit",
    "retokenised_responses": "responses tokenised again from their text",
    "shortened_contexts": "contexts shortened to fit their budget",
}


def show(study: data.Study) -> None:
    info = data.info(study)
    st.html(facts_html(facts(study, info)))
    if data.has_table(study, "metrics") and not (metrics := data.table(study, "metrics")).is_empty():
        chosen = parts.choose_numbers(metrics, st.columns(4))
        headline(study, info, chosen)
        differences(study, chosen)
    else:
        st.info("Nothing was compared in this folder: it has no rows in metrics.parquet. See what was dropped, below.")
    left_out(study, info)
    provenance(study, info)


def facts(study: data.Study, info: Any) -> dict[str, object]:
    """The short facts at the top."""
    config, teacher, counts = (info.get(name, {}) for name in ("config", "teacher", "counts"))
    model = teacher.get("model") or teacher.get("teacher")
    tasks = data.names(study, "groups", "task").to_list() if data.has_table(study, "groups") else []
    return {
        "study": study.name,
        "teacher and student": model and (f"{model}" if "model" in teacher else f"{model} (scripted)"),
        "task": ", ".join(str(t) for t in tasks[:4]) + (" …" if len(tasks) > 4 else ""),
        "groups compared": f"{counts.get('groups_compared')} of {counts.get('groups')} looked at" if counts else None,
        "rollouts": counts.get("rollouts"),
        "protocols": ", ".join(config.get("protocols", [])),
        "tokens forwarded": f"{info['tokens_forwarded']:,}" if info.get("tokens_forwarded") else None,
    }


def headline(study: data.Study, info: Any, chosen: dict[str, str]) -> None:
    """The chart that the study is made for; a click on a point leads to its groups."""
    if chosen["protocol"] in info.get("confounded", []):
        st.warning("Confounded: under this protocol a target's context depends on its own label.")
    rows = data.table(study, "metrics", **chosen)
    metric, unit = METRICS.get(chosen["metric"]), unit_of(chosen["metric"])
    name = "AUC" if chosen["metric"] == "auc" else chosen["metric"]
    title = f"{name} of {chosen['score']}{bracketed(unit)}"
    rows = rows.sort(pl.col("condition"))
    drawn = metric_chart(rows, title=title, chance=metric.chance if metric else None, unit=unit)
    confidence = info.get("config", {}).get("confidence", 0.95)
    groups, pairs = (rows[c].max() for c in ("n_groups", "n_pairs"))
    st.subheader(f"{name} by condition")
    st.caption(
        f"Points with {confidence:.0%} intervals over groups; {groups} groups and {pairs} pairs, the same for every "
        "condition. The dashed line is chance. Click a point to see its groups."
    )
    hit = parts.chart(drawn, f"{name}-by-condition", "headline", select=True, alt_text=f"{title}, by condition")
    if hit.get("condition") in set(rows["condition"]):
        state.go("groups", condition=str(hit["condition"]), sort="low")
    with st.expander("The same as a table"):
        words = condition_words(rows["condition"].to_list())
        shown = rows.with_columns(pl.col("condition").replace(words)).drop("task", "protocol", "score", "metric")
        parts.table(shown, "metrics", "values", column_config=units(unit))


def unit_of(metric: str) -> str:
    """The metric's unit, "1" for a number without one or a metric of another version."""
    known = METRICS.get(metric)
    return known.unit if known else "1"


def bracketed(unit: str) -> str:
    """The unit as it stands behind a name."""
    return "" if unit == "1" else f" ({unit})"


def units(unit: str) -> dict[str, Any]:
    """Headings with units for tables of values."""
    said = bracketed(unit)
    number = st.column_config.NumberColumn
    return {
        "value": number(f"value{said}", format="%.4f"),
        "difference": number(f"difference{said}", format="%+.4f"),
        "ci_low": number(f"interval from{said}", format="%.4f"),
        "ci_high": number(f"interval to{said}", format="%.4f"),
        "p_value": number("p", format="%.4f"),
        "p_adjusted": number("p (adjusted)", format="%.4f"),
        "n_groups": "groups",
        "n_pairs": "pairs",
        "n_undefined": "undefined units",
    }


def differences(study: data.Study, chosen: dict[str, str]) -> None:
    """Contrasts, paired by group."""
    rows = data.table(study, "contrasts", **chosen)
    if rows.is_empty():
        return
    st.subheader("Contrasts, paired by group")
    unit = unit_of(chosen["metric"])
    title = f"difference in {chosen['metric']}{bracketed(unit)}"
    st.caption("A diamond has an adjusted p under 0.05. An interval across 0 is not a difference.")
    parts.chart(contrast_chart(rows, title=title), "contrasts", "contrasts", alt_text=title)
    with st.expander("The same as a table"):
        shown = rows.drop("task", "protocol", "score", "metric")
        parts.table(shown, "contrasts", "contrast values", column_config=units(unit))


def left_out(study: data.Study, info: Any) -> None:
    """What took no part, and why."""
    counts = info.get("counts", {})
    st.subheader("What was dropped, and why")
    rows = [("whole study", words, counts[name]) for name, words in DROPPED.items() if counts.get(name)]
    rows += [("whole study", reason.replace("_", " "), n) for reason, n in counts.get("dropped", {}).items()]
    for protocol, conditions in counts.get("undefined", {}).items():
        for name, reasons in conditions.items():
            rows += [(f"{protocol}, {name}", f"units: {reason.replace('_', ' ')}", n) for reason, n in reasons.items()]
    for protocol, units_ in counts.get("units", {}).items():
        rows.append((protocol, "units compared, of " + f"{units_['units']:,}", units_["units_compared"]))
    if not rows:
        st.caption("Nothing was dropped.")
        return
    schema = {"where": pl.String, "what": pl.String, "how many": pl.Int64}
    parts.table(pl.DataFrame(rows, schema=schema, orient="row"), "dropped", "dropped")


def provenance(study: data.Study, info: Any) -> None:
    """Where the numbers come from, and every table of the folder."""
    report = study.path / "report.html"
    if report.is_file() and report.resolve().parent == study.path:
        st.download_button("Report (HTML)", report.read_bytes, "report.html", "text/html", on_click="ignore")
    with st.expander("Provenance"):
        kept = ("teacher", "config", "packages", "git_commit", "rollouts_hash", "template_hash", "seconds")
        st.json({name: info[name] for name in kept if name in info}, expanded=1)
    with st.expander("All tables of this folder"):
        names = data.tables(study)
        name = state.choice(st, "Table", names, "table")
        parts.table(data.head(study, name), name, f"table {name}", height=360)
        st.caption(f"The first {data.HEAD:,} rows at most; the whole table is in the study's folder.")


parts.guarded("Signal quality", show)
