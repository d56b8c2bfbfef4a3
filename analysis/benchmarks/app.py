"""Speed and memory of the app on a large study, measured in a browser.

A study of a scripted teacher is made and copied under new ids until it has the groups asked for: planning thousands of
groups would take longer than what is measured here. Seconds run from the click (or the address) until the chart or the
tokens can be seen; memory is the server's largest.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import polars as pl

from analysis.benchmarks.browser import open_browser, ready, serve
from mopd.conditions import CONDITIONS
from mopd.rollouts import validate_rollouts
from mopd.study import StudyConfig, run_study
from mopd.teachers.scripted import ScriptedTeacher

__all__ = ["add_arguments", "build_study", "command"]

SEED_GROUPS = 40
LIMITS = {"first page": 3.0, "group": 0.5, "tokens": 0.5}
"""Seconds that a view may take."""
MEMORY_LIMIT = 1024  # MiB
IDS = ("group_id", "unit_id", "rollout_id", "context_id", "largest_rollout_id")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m analysis.benchmark app``."""
    parser.add_argument("--groups", type=int, default=2000, help="rollout groups")
    parser.add_argument("--conditions", type=int, default=12, help="context conditions")
    parser.add_argument("--tokens", type=int, default=200, help="tokens of a response")
    parser.add_argument("--clicks", type=int, default=5, help="how often each view is opened; the median counts")
    parser.add_argument("--folder", type=Path, help="keep the study here, and use it if it is there")


def command(options: argparse.Namespace) -> dict[str, Any]:
    """Build the study if it is not there, open the app on it, and time its views."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)) / "large"
        start = time.perf_counter()
        if not (folder / "study.json").exists():
            build_study(folder, groups=options.groups, conditions=options.conditions, tokens=options.tokens)
        built = time.perf_counter() - start
        size = sum(file.stat().st_size for file in folder.iterdir())
        rows = pl.scan_parquet(folder / "tokens.parquet").select(pl.len()).collect().item()
        print(f"{options.groups:,} groups x {options.conditions} conditions: {rows:,} scored rows, {size >> 20:,} MiB")
        seconds, peak = measure(folder, options.clicks)
    for name, value in seconds.items():
        print(f"{name:<12}{value:>8.2f} s  (at most {LIMITS[name]:.1f} s)")
    print(f"{'memory':<12}{peak:>8.0f} MiB (at most {MEMORY_LIMIT:,} MiB)")
    return {
        "benchmark": "app",
        "groups": options.groups,
        "conditions": options.conditions,
        "tokens": options.tokens,
        "scored_rows": rows,
        "build_seconds": round(built, 1),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "peak_mib": round(peak),
        "within_limits": all(seconds[name] <= limit for name, limit in LIMITS.items()) and peak <= MEMORY_LIMIT,
    }


def build_study(folder: Path, *, groups: int, conditions: int, tokens: int) -> None:
    """A finished study of a scripted teacher with 8 rollouts a group, 4 of them successes."""
    names = tuple(c.name for c in CONDITIONS.values() if c.source == "group" and c.choice == "label" and not c.feedback)
    if not 1 <= conditions <= len(names):
        raise ValueError(f"conditions must be from 1 to {len(names)}, got {conditions}")
    if groups % SEED_GROUPS:
        raise ValueError(f"groups must be a multiple of {SEED_GROUPS}, got {groups}")
    with tempfile.TemporaryDirectory() as temporary:
        seed = Path(temporary) / "seed"
        config = StudyConfig(conditions=names[:conditions], draws=200)
        run_study(_rollouts(SEED_GROUPS, tokens), ScriptedTeacher("noise"), config, folder=seed)
        folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(seed.glob("*.parquet")):
            _copied(file, folder / file.name, groups // SEED_GROUPS)
        info = json.loads((seed / "study.json").read_text(encoding="utf-8"))
        info["counts"] |= {"groups": groups, "groups_compared": groups, "rollouts": groups * 8}
        (folder / "study.json").write_text(json.dumps(info), encoding="utf-8")


def _rollouts(groups: int, tokens: int) -> pl.DataFrame:
    rows = []
    for p in range(groups):
        for g in range(8):
            words = f"attempt {g} at problem {p}: " + " ".join(
                f"step{i} of {(p * 7 + g * 3 + i) % 97}" for i in range(200)
            )
            rows.append(
                {
                    "group_id": f"group-{p:05d}",
                    "rollout_id": f"group-{p:05d}/{g}",
                    "task": "synthetic",
                    "prompt": [{"role": "user", "content": f"Problem {p}: what is {p} + {p * 3}?"}],
                    "response": words[: tokens - 1],
                    "reward": float(g % 2),
                    "finished": True,
                }
            )
    return validate_rollouts(pl.DataFrame(rows))


def _copied(source: Path, target: Path, copies: int) -> None:
    """A table again and again, each time under ids of its own; tables without groups as they are."""
    frame = pl.read_parquet(source)
    if "group_id" not in frame.columns and "context_id" not in frame.columns:
        frame.write_parquet(target)
        return
    own = [name for name in IDS if name in frame.columns]
    parts = []
    for copy in range(copies):
        marked = frame.lazy().with_columns(_renamed(pl.col(name), copy).alias(name) for name in own)
        if "peers" in frame.columns:
            marked = marked.with_columns(
                pl.col("peers").list.eval(
                    pl.struct(
                        _renamed(pl.element().struct.field("rollout_id"), copy).alias("rollout_id"),
                        pl.element().struct.field("role"),
                    )
                )
            )
        parts.append(marked)
    rows = max(16, (4 << 20) * frame.height // max(frame.estimated_size(), 1))
    pl.concat(parts).sink_parquet(target, row_group_size=rows, maintain_order=True)


def _renamed(ids: pl.Expr, copy: int) -> pl.Expr:
    """Ids of a copy: its number is put behind the word ``group`` in each, or before a hash."""
    return (
        pl.when(ids.str.contains("group-", literal=True))
        .then(ids.str.replace_all("group-", f"group-{copy:03d}-", literal=True))
        .otherwise(pl.concat_str(pl.lit(f"{copy:03d}-"), ids))
    )


def measure(folder: Path, clicks: int) -> tuple[dict[str, float], float]:
    """Median seconds of each view, and the server's peak memory in MiB.

    The first page is timed in a new browser context on a server that has just started, once: that is when everything
    is read for the first time.
    """
    seconds: dict[str, list[float]] = {name: [] for name in LIMITS}
    with serve(["--study", str(folder)]) as server, open_browser() as browser:
        page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()

        def timed(name: str, act: Callable[[], Any], title: str, seen: str) -> None:
            start = time.perf_counter()
            act()
            ready(page, title)
            page.locator(seen).first.wait_for()
            seconds[name].append(time.perf_counter() - start)

        chart = "[data-testid=stVegaLiteChart] canvas, [data-testid=stVegaLiteChart] svg"
        timed("first page", lambda: page.goto(server.address), "Signal quality", chart)
        page.get_by_role("link", name="Groups").click()
        ready(page, "Groups")
        page.get_by_role("link", name="Group", exact=True).click()
        ready(page, "Group")
        for _ in range(clicks):
            _next(page, timed, "group", "Next group", "Group", chart)
        page.get_by_role("link", name="Tokens").click()
        ready(page, "Tokens")
        for _ in range(clicks):
            _next(page, timed, "tokens", "Next rollout", "Tokens", ".tv-text .t")
        peak = server.peak_mib()
    return {name: median(values) for name, values in seconds.items()}, peak


def _next(page: Any, timed: Callable[..., None], name: str, button: str, title: str, seen: str) -> None:
    """Click a button for the next one, and wait until the page is drawn for it."""
    before = page.url

    def act() -> None:
        page.get_by_role("button", name=button).click()
        page.wait_for_function("address => location.href !== address", arg=before)

    timed(name, act, title, seen)
