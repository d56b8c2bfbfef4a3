"""The app in a real browser: a server of its own on a free port, and Chromium driven by playwright.

Used to measure the app, to test it, and to take its pictures. Chromium is the system's (``MOPD_CHROMIUM`` or what is on
the path); playwright brings none.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

__all__ = ["Server", "chromium_path", "open_browser", "ready", "serve"]

ROOT = Path(__file__).parents[2]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking")
START_SECONDS = 120


def chromium_path() -> str | None:
    """The browser to drive, or None if there is none."""
    given = os.environ.get("MOPD_CHROMIUM")
    return given or next((found for name in NAMES if (found := shutil.which(name))), None)


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running app."""

    address: str
    pid: int

    def peak_mib(self) -> float:
        """Largest resident memory of the server so far, MiB; only Linux tells."""
        for line in Path(f"/proc/{self.pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
        raise OSError(f"/proc/{self.pid}/status has no VmHWM line")


@contextmanager
def serve(arguments: Sequence[str]) -> Iterator[Server]:
    """The app with these arguments (``--studies FOLDER``), until the block ends.

    Raises:
        RuntimeError: it does not come up; the message has what it printed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [f"--server.port={port}", "--server.address=127.0.0.1", "--server.headless=true"]
    command = [sys.executable, "-m", "streamlit", "run", str(ROOT / "app" / "main.py"), *options, "--", *arguments]
    address = f"http://127.0.0.1:{port}"
    # in the checkout, whose theme and settings the app takes; a file for what it prints, since a pipe can fill
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait_until_healthy(address, process, log)
            yield Server(address=address, pid=process.pid)
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_healthy(address: str, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            log.seek(0)
            raise RuntimeError(f"the app ended with {process.returncode}: {log.read().decode('utf-8', 'replace')}")
        try:
            with urllib.request.urlopen(f"{address}/_stcore/health", timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"the app did not answer within {START_SECONDS} s")


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Chromium without a window.

    Raises:
        RuntimeError: there is no browser, or no playwright.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise RuntimeError("playwright is not installed: pip install playwright") from error
    path = chromium_path()
    if path is None:
        raise RuntimeError(f"no browser found among {', '.join(NAMES)}: install one, or set MOPD_CHROMIUM to its path")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


def ready(page: Page, title: str, *, timeout_seconds: float = 120) -> None:
    """Wait until the page with that title stands and its script has ended."""
    page.get_by_role("heading", level=1, name=title, exact=True).wait_for(timeout=timeout_seconds * 1000)
    page.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for(timeout=timeout_seconds * 1000)
