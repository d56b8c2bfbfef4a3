"""The app in real Chromium: a walk through it, links, downloads, keys, and hostile text."""

from __future__ import annotations

import csv
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest

pytest.importorskip("playwright")

from playwright.sync_api import Browser, Dialog, Page, expect

from analysis.benchmarks.browser import Server, ready
from tests.app_studies import HOSTILE
from tests.browser.conftest import HOSTILE_NAME

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]
PATIENCE = 120_000  # milliseconds: a loaded machine is no failure of the app
expect.set_options(timeout=PATIENCE)


def opened(browser: Browser) -> Page:
    """A page in a context of its own, as a new visitor has it."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    context.set_default_timeout(PATIENCE)
    return context.new_page()


def state(page: Page) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(page.url).query).items()}


def visit(page: Page, server: Server, name: str, title: str, **query: str) -> None:
    page.goto(f"{server.address}/{name}?{urlencode(query)}")
    ready(page, title)


def choose(page: Page, label: str, option: str) -> None:
    page.get_by_role("combobox", name=label, exact=True).click()
    page.get_by_role("option", name=option, exact=True).click()


def first_row(page: Page) -> None:
    """Select the first row of the first table; a table is drawn on a canvas, its boxes at the left."""
    page.get_by_test_id("stDataFrame").first.locator(".dvn-scroller").click(position={"x": 16, "y": 52})


def test_a_walk_from_the_overview_to_a_download(browser: Browser, server: Server, downloads: Path) -> None:
    page = opened(browser)
    visit(page, server, "", "Signal quality", study="plain")
    expect(page.get_by_test_id("stVegaLiteChart").first).to_be_visible()

    page.get_by_role("link", name="Groups").click()
    ready(page, "Groups")
    page.get_by_role("textbox", name="Search").fill("question 1")
    page.get_by_role("textbox", name="Search").press("Enter")
    expect(page.get_by_text("1 of 2 groups")).to_be_visible()
    assert state(page)["words"] == "question 1"

    first_row(page)
    ready(page, "Group")
    assert state(page)["group"] == "g001"

    chart = page.get_by_test_id("stVegaLiteChart").first
    expect(chart).to_be_visible()
    box = chart.bounding_box()
    assert box is not None
    chart.click(position={"x": box["width"] * 0.5, "y": box["height"] * 0.55})
    ready(page, "Tokens")
    expect(page.locator(".tv-text .t").first).to_be_visible()
    assert state(page)["group"] == "g001"

    choose(page, "View", "first minus second")
    expect(page.locator(".tv-side h4")).to_contain_text("−")
    assert state(page)["mode"] == "difference"
    page.locator(".tv-text .t").nth(2).hover()
    expect(page.locator(".tv-info")).to_contain_text("token 3 of")

    link = page.url
    title = page.locator(".tv-side h4").inner_text()
    fresh = opened(browser)
    fresh.goto(link)
    ready(fresh, "Tokens")
    expect(fresh.locator(".tv-side h4")).to_have_text(title)
    assert state(fresh) == {name: values[0] for name, values in parse_qs(urlsplit(link).query).items()}
    fresh.context.close()

    with page.expect_download() as event:
        page.get_by_role("button", name="Standalone HTML").click()
    saved = downloads / "tokens.html"
    event.value.save_as(saved)
    alone = page.context.new_page()
    alone.goto(saved.as_uri())
    alone.locator(".tv-text .t").nth(2).hover()
    expect(alone.locator(".tv-info")).to_contain_text("token 3 of")
    alone.close()
    with page.expect_download() as event:
        page.get_by_role("button", name="CSV").first.click()
    event.value.save_as(downloads / "tokens.csv")
    with (downloads / "tokens.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == page.locator(".tv-text .t").count()
    page.context.close()


def test_keys_go_to_the_next_group_and_along_the_tokens(browser: Browser, server: Server) -> None:
    page = opened(browser)
    visit(page, server, "group", "Group", study="plain", group="g000")
    page.keyboard.press("n")
    expect(page.get_by_text("question 1").first).to_be_visible()
    page.wait_for_url("**group=g001**")
    visit(page, server, "tokens", "Tokens", study="marked", colour="copied")
    page.locator(".tv-text").click(position={"x": 5, "y": 5})
    page.locator(".tv-text").press("ArrowRight")
    before = page.locator(".tv-info").inner_text()
    page.locator(".tv-text").press("ArrowRight")
    assert page.locator(".tv-info").inner_text() != before
    page.get_by_role("button", name="copied").click()
    expect(page.locator(".tv-info")).to_contain_text("token 2 of")
    page.context.close()


def test_a_chart_and_a_table_are_downloaded(browser: Browser, server: Server, downloads: Path) -> None:
    page = opened(browser)
    visit(page, server, "", "Signal quality", study="plain")
    with page.expect_download() as event:
        page.get_by_role("button", name="Chart (PNG)").first.click()
    event.value.save_as(downloads / "chart.png")
    assert (downloads / "chart.png").read_bytes().startswith(b"\x89PNG")
    page.context.close()


def test_long_and_foreign_responses_are_shown(browser: Browser, server: Server) -> None:
    page = opened(browser)
    visit(page, server, "tokens", "Tokens", study="long", condition="question_only")
    assert page.locator(".tv-text .t").count() > 20_000
    visit(page, server, "tokens", "Tokens", study="scripts", lines="yes")
    expect(page.locator(".tv-text")).to_contain_text("👩")
    page.context.close()


def test_no_hostile_string_runs(browser: Browser, server: Server, downloads: Path) -> None:
    page = opened(browser)
    dialogs: list[str] = []

    def note(dialog: Dialog) -> None:
        dialogs.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", note)

    def harmless(where: str) -> None:
        page.wait_for_timeout(150)
        assert page.evaluate("window.__broken") is None, where

    study = {"study": HOSTILE_NAME}
    for name, title in (("", "Signal quality"), ("groups", "Groups"), ("compare", "Compare"), ("training", "Training")):
        visit(page, server, name, title, **study)
        harmless(title)
    for i, text in enumerate(HOSTILE):
        for name, title in (("group", "Group"), ("tokens", "Tokens"), ("contexts", "Contexts")):
            shown = {"view": "texts"} if name == "group" else {}
            visit(page, server, name, title, group=f"g{i:03d}", **study, **shown)
            harmless(f"{title}: {text}")
        visit(page, server, "tokens", "Tokens", group=f"g{i:03d}", words=text, **study)
        page.locator(".tv-text .t").nth(1).hover()
        harmless(f"hover: {text}")
    with page.expect_download() as event:
        page.get_by_role("button", name="Standalone HTML").click()
    event.value.save_as(downloads / "hostile.html")
    page.goto((downloads / "hostile.html").as_uri())
    harmless("standalone")
    assert not dialogs
    page.context.close()
