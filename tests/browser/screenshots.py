"""Pictures of the app: `python -m tests.browser.screenshots --output FOLDER [--studies FOLDER] [--pages ...]`.

Each page in light and dark, at twice the zoom, and on a laptop's screen; the two of the README are
`--readme docs/images`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from urllib.parse import urlencode

from playwright.sync_api import Browser

from analysis.benchmarks.browser import Server, open_browser, ready, serve

PAGES = {
    "overview": ("", "Signal quality", {}),
    "groups": ("groups", "Groups", {}),
    "matrix": ("group", "Group", {"view": "matrix", "score": "delta_mean"}),
    "pairs": ("group", "Group", {"view": "pairs"}),
    "saw": ("group", "Group", {"view": "saw"}),
    "tokens": ("tokens", "Tokens", {}),
    "two": ("tokens", "Tokens", {"mode": "two"}),
    "difference": ("tokens", "Tokens", {"mode": "difference"}),
    "lines": ("tokens", "Tokens", {"lines": "yes"}),
    "contexts": ("contexts", "Contexts", {"second": "1s"}),
    "compare": ("compare", "Compare", {}),
    "training": ("training", "Training", {}),
}
LOOKS = {
    "light": {"color_scheme": "light", "viewport": {"width": 1366, "height": 768}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1366, "height": 768}},
    # what a 1366 x 768 window has left at 200%
    "zoom": {"color_scheme": "light", "viewport": {"width": 683, "height": 384}, "device_scale_factor": 2},
}
TALLEST = 2400
PATIENCE = 240_000  # milliseconds
README = {"overview": 1180, "difference": 900}  # picture, height


def picture(
    browser: Browser, server: Server, name: str, look: str, file: Path, query: dict, height: int | None
) -> None:
    """One page in one look, as high as it is, or as given."""
    path, title, own = PAGES[name]
    page = browser.new_page(**LOOKS[look])
    page.set_default_timeout(PATIENCE)
    page.goto(f"{server.address}/{path}?{urlencode({**query, **own})}")
    ready(page, title, timeout_seconds=PATIENCE / 1000)
    page.wait_for_timeout(2500)  # charts draw after the script has ended
    size = page.viewport_size or {"width": 1280, "height": 800}
    full = page.evaluate("document.querySelector('[data-testid=stMainBlockContainer]').scrollHeight")
    page.set_viewport_size({"width": size["width"], "height": height or min(TALLEST, max(size["height"], full))})
    page.wait_for_timeout(800)
    page.screenshot(path=file)
    page.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.browser.screenshots", description=__doc__)
    parser.add_argument("--output", type=Path, help="folder for all pages in all looks")
    parser.add_argument("--readme", type=Path, help="folder for the two pictures of the README")
    parser.add_argument("--studies", type=Path, help="folder of studies (default: the app's own)")
    parser.add_argument("--query", default=[], nargs="*", metavar="NAME=VALUE", help="state, such as study=arithmetic")
    parser.add_argument("--pages", nargs="*", default=list(PAGES), choices=PAGES)
    parser.add_argument("--looks", nargs="*", default=list(LOOKS), choices=LOOKS)
    args = parser.parse_args()
    query = dict(pair.split("=", 1) for pair in args.query)
    with serve(["--studies", str(args.studies)] if args.studies else []) as server, open_browser() as browser:
        if args.output:
            args.output.mkdir(parents=True, exist_ok=True)
            for name in args.pages:
                for look in args.looks:
                    picture(browser, server, name, look, args.output / f"{name}-{look}.png", query, None)
        if args.readme:
            args.readme.mkdir(parents=True, exist_ok=True)
            for name, height in README.items():
                picture(browser, server, name, "light", args.readme / f"{name}.png", query, height)


if __name__ == "__main__":
    main()
