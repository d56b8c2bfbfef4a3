"""Look at a finished study: `streamlit run app/main.py [-- --studies FOLDER]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import polars as pl
import streamlit as st

sys.path.insert(0, str(Path(__file__).parents[1]))  # streamlit puts this folder on the path, not the checkout

from analysis.charts import metric_chart
from app.data import read_info, read_table, studies_in
from mopd.metrics import METRICS


def main() -> None:
    parser = argparse.ArgumentParser(prog="streamlit run app/main.py --")
    parser.add_argument("--studies", type=Path, default=Path("studies"), help="folder of studies, or one study")
    root = parser.parse_args().studies
    st.set_page_config(page_title="mopd", layout="wide")
    st.title("Signal quality")
    studies = studies_in(root)
    if not studies:
        st.info(f"No finished study in {root.resolve()}. Make one with: python -m analysis.signal_quality")
        return
    study = st.sidebar.selectbox("Study", studies, format_func=lambda path: path.name)
    show(study)


def show(study: Path) -> None:
    """The headline chart of one study with its tables and what was left out."""
    info, metrics = read_info(study), read_table(study, "metrics")
    choice = {
        name: str(st.sidebar.selectbox(name.capitalize(), metrics[name].unique(maintain_order=True).to_list()))
        for name in ("task", "protocol", "score", "metric")
    }
    rows = metrics.filter(*(pl.col(name) == value for name, value in choice.items()))
    if choice["protocol"] in info["confounded"]:
        st.warning("Confounded: under this protocol a target's context depends on its own label.")
    metric = METRICS[choice["metric"]]
    chart = metric_chart(rows, title=f"{choice['metric']} of {choice['score']}", chance=metric.chance)
    st.altair_chart(chart, width="stretch")
    st.subheader("Values (interval over groups)")
    st.dataframe(rows, width="stretch")
    st.subheader("Contrasts, paired by group")
    contrasts = read_table(study, "contrasts").filter(*(pl.col(name) == value for name, value in choice.items()))
    st.dataframe(contrasts, width="stretch")
    st.subheader("What took part, and what did not")
    st.json(info["counts"])
    st.subheader("Provenance")
    st.json({key: info[key] for key in ("teacher", "config", "packages", "git_commit")}, expanded=False)


main()
