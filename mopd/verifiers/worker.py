"""Run a verifier in a process of its own that can be killed when it hangs.

Symbolic libraries can be driven into an endless or memory-hungry computation by a response such as
``9**9**9**9``, and the time limits that they bring rest on signals, which work in the main thread alone. Here
the process is the
limit: a thread that verifies owns one `VerifierProcess`, which judges one response after another and is
killed and replaced when one takes too long.

``python -m mopd.verifiers.worker`` is the other side: JSON lines on its standard input and output.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import select
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mopd.verifiers.base import Verdict

__all__ = ["JUDGES", "VerifierProcess", "VerifierUnavailable", "close_processes", "judge_in_process"]

JUDGES: dict[str, str] = {
    "math": "mopd.verifiers.mathematics",
    "reasoning_gym": "mopd.verifiers.gym",
}
"""Verifiers that run in a process of their own, and the module whose ``judge`` does the work."""

LOAD_LIMIT_S = 120.0
MEMORY_LIMIT_BYTES = 4 << 30


class VerifierUnavailable(RuntimeError):
    """A verifier cannot run here: a library or tool is missing, and the message says how to mend it."""


class VerifierProcess:
    """One child process that judges responses; started at the first call, replaced when it dies or hangs."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._loaded: set[str] = set()
        self._buffer = b""
        _ALIVE.add(self)

    def judge(self, name: str, response: str, reference: Mapping[str, Any], *, time_limit_s: float) -> Verdict:
        """Judge one response.

        Args:
            time_limit_s: seconds of wall-clock time, loading the libraries not counted.

        Returns:
            The verdict; unjudged if the process hung or died over this response.

        Raises:
            VerifierUnavailable: if the verifier's library cannot be imported.
            RuntimeError: if the verifier raised; the message names the exception.
        """
        self._load(name)
        reply = self._ask({"judge": name, "response": response, "reference": reference}, time_limit_s)
        if reply is None:
            return Verdict(
                reward=None,
                feedback=f"Not judged: the {name} verifier ran out of its {time_limit_s:g} s or its memory.",
            )
        if "error" in reply:
            raise RuntimeError(reply["error"])
        return Verdict(**reply)

    def close(self) -> None:
        """Kill the process, if there is one."""
        process, self._process = self._process, None
        self._loaded.clear()
        self._buffer = b""
        if process is not None:
            process.kill()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
            process.wait()

    def __del__(self) -> None:
        self.close()

    def _load(self, name: str) -> None:
        if name in self._loaded and self._process is not None and self._process.poll() is None:
            return
        reply = self._ask({"load": name}, LOAD_LIMIT_S)
        if reply is None:
            raise VerifierUnavailable(f"the process of the {name} verifier did not start within {LOAD_LIMIT_S:g} s")
        if "error" in reply:
            raise VerifierUnavailable(f"the {name} verifier cannot be loaded: {reply['error']}")
        self._loaded.add(name)

    def _ask(self, request: Mapping[str, Any], time_limit_s: float) -> dict[str, Any] | None:
        """Send a request and read its reply; None (and a killed process) if none came in time."""
        line = json.dumps(request).encode() + b"\n"
        try:
            process = self._running()
            assert process.stdin is not None  # it was opened as a pipe
            assert process.stdout is not None
            process.stdin.write(line)
            process.stdin.flush()
            return json.loads(self._read_line(process.stdout.fileno(), time_limit_s))
        except (OSError, EOFError, TimeoutError):
            self.close()
            return None

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            package_root = str(Path(__file__).resolve().parents[2])
            environment = dict(os.environ, OMP_NUM_THREADS="1")
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mopd.verifiers.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
            )
        return self._process

    def _read_line(self, descriptor: int, time_limit_s: float) -> bytes:
        deadline = time.monotonic() + time_limit_s
        ready = select.poll()  # not select.select, which fails above 1024 open files
        ready.register(descriptor, select.POLLIN)
        while b"\n" not in self._buffer:
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not ready.poll(remaining * 1000):
                raise TimeoutError
            chunk = os.read(descriptor, 1 << 16)
            if not chunk:
                raise EOFError
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line


_ALIVE: weakref.WeakSet[VerifierProcess] = weakref.WeakSet()
_LOCAL = threading.local()


def judge_in_process(name: str, response: str, reference: Mapping[str, Any], *, time_limit_s: float) -> Verdict:
    """`VerifierProcess.judge` in the process that belongs to the calling thread."""
    if not hasattr(_LOCAL, "process"):
        _LOCAL.process = VerifierProcess()
    return _LOCAL.process.judge(name, response, reference, time_limit_s=time_limit_s)


def close_processes() -> None:
    """Kill the process of the calling thread, if it has one."""
    if hasattr(_LOCAL, "process"):
        _LOCAL.process.close()


@atexit.register
def _close_all() -> None:
    for process in list(_ALIVE):
        process.close()


def _serve() -> None:
    """Answer requests until standard input closes. What a library prints must not mix with the replies."""
    import resource

    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    for line in sys.stdin.buffer:
        replies.write(json.dumps(_reply(json.loads(line))).encode() + b"\n")
        replies.flush()


def _reply(request: Mapping[str, Any]) -> dict[str, Any]:
    try:
        if "load" in request:
            importlib.import_module(JUDGES[request["load"]]).load()
            return {}
        verdict: Verdict = importlib.import_module(JUDGES[request["judge"]]).judge(
            request["response"], request["reference"]
        )
        return {"reward": verdict.reward, "answer": verdict.answer, "feedback": verdict.feedback}
    except MemoryError:
        os._exit(1)  # the parent reads a dead process as out of memory
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    _serve()
