"""A browser and a server for the tests that drive the app."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from analysis.benchmarks.browser import Server, chromium_path, open_browser, serve
from tests.app_studies import STUDIES, hostile_study

HOSTILE_NAME = "<img src=x onerror=window.__broken=1>"


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    if chromium_path() is None and not os.environ.get("MOPD_BROWSER_REQUIRED"):
        pytest.skip("no Chromium here")
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("studies")
    for name in ("plain", "marked", "long", "scripts"):
        STUDIES[name](folder / name)
    hostile_study(folder / HOSTILE_NAME)
    with serve(["--studies", str(folder)]) as running:
        yield running


@pytest.fixture
def downloads(tmp_path: Path) -> Path:
    return tmp_path
