"""What a run needs of the machine."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from training import machine
from training.config import read_config
from training.rewards import Judge


class Healthy(BaseHTTPRequestHandler):
    """``/health`` is well, and nothing else is there."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Healthy) as found:
        thread = Thread(target=found.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()
        thread.join()


def lacking(url: str) -> list[str]:
    config = read_config("cpu-smoke", {"engine": "vllm-server", "vllm_url": url})
    return machine.lacking(config, Judge(), [])


def test_a_server_that_answers_is_not_lacking(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "find_spec", lambda name: name)  # all is installed
    assert lacking(server) == lacking(f"{server}/") == []
    assert "(HTTP Error 404: Not Found)" in lacking(f"{server}/elsewhere")[0]


@pytest.mark.parametrize(
    ("url", "why"), [("http://127.0.0.1:9", "Connection refused"), ("localhost", "unknown url type")]
)
def test_a_server_that_does_not_answer_is_named(url: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "find_spec", lambda name: name)
    (told,) = lacking(url)
    assert told.startswith(f"no vLLM server answers at vllm_url = {url!r} (")
    assert why in told
    assert "start one there with trl vllm-serve" in told


def test_each_lack_is_told() -> None:
    told = lacking("http://127.0.0.1:9")
    assert [text.split(",")[0][:24] for text in told] == ["engine = 'vllm-server' n", "no vLLM server answers a"]
