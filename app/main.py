"""Look at finished studies and training runs: `streamlit run app/main.py [-- --studies FOLDER | --study DIR]`.

Without options it opens the studies that ship with mopd and those under ``studies/``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import streamlit as st

sys.path.insert(0, str(Path(__file__).parents[1]))  # streamlit puts this folder on the path, not the checkout

from app import state
from app.data import SHIPPED, Study, find_studies

PAGES = {
    "overview": ("Overview", ":material/insights:"),
    "groups": ("Groups", ":material/view_list:"),
    "group": ("Group", ":material/grid_on:"),
    "tokens": ("Tokens", ":material/title:"),
    "contexts": ("Contexts", ":material/forum:"),
    "compare": ("Compare", ":material/compare_arrows:"),
    "training": ("Training", ":material/trending_up:"),
}

TIGHT = "<style>.stMainBlockContainer { padding-top: 3rem; padding-bottom: 3rem; }</style>"


def roots() -> list[Path]:
    """Folders whose studies can be opened; nothing outside them is."""
    parser = argparse.ArgumentParser(prog="streamlit run app/main.py --", description=__doc__)
    parser.add_argument("--studies", type=Path, action="append", help="folder of studies (may be given again)")
    parser.add_argument("--study", type=Path, help="one study's folder")
    args = parser.parse_args()
    given = [*([args.study] if args.study else []), *(args.studies or [])]
    return given or [SHIPPED, Path("studies")]


def choose_study(found: dict[str, Study]) -> Study:
    """The study that the URL names, among those found; the first one without a name."""
    wanted = st.query_params.get("study")
    if wanted is not None and wanted not in found:
        st.error(
            "The link asks for a study that is not in the folders that this app was started with. "
            "Choose one on the left, or start the app with --studies and its folder."
        )
    words = {name: study.words for name, study in found.items()}
    return found[state.choice(st.sidebar, "Study", list(found), "study", words=words)]


def main() -> None:
    st.set_page_config(page_title="mopd", page_icon=":material/stacked_bar_chart:", layout="wide")
    pages = {
        name: st.Page(f"views/{name}.py", title=title, icon=icon, url_path=name, default=name == "overview")
        for name, (title, icon) in PAGES.items()
    }
    page = st.navigation(list(pages.values()), position="hidden")
    folders = roots()
    found = find_studies(folders)
    if not found:
        st.title("mopd")
        places = ", ".join(str(folder.resolve()) for folder in folders)
        st.info("No finished study here. Make one with: python -m analysis.signal_quality")
        st.text(f"Looked in: {places}")
        return
    st.html(TIGHT)
    study = choose_study(found)
    state.set_study(study, found)
    for name, target in pages.items():
        st.sidebar.page_link(target, label=PAGES[name][0], icon=PAGES[name][1], query_params=state.carried())
    page.run()


main()
