"""Verifiers: programs that give a response its reward. `verify` judges one, `verify_many` uses all cores.

Importing this package is light: the libraries behind a verifier are loaded when it judges its first response,
those that could hang in a process of their own (`mopd.verifiers.worker`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from functools import partial
from typing import Any

from mopd.verifiers import choice, code, tool_call
from mopd.verifiers.base import Verdict, Verifier
from mopd.verifiers.sandbox import SandboxUnavailable, check_sandbox
from mopd.verifiers.worker import VerifierUnavailable, close_processes, judge_in_process

__all__ = [
    "VERIFIERS",
    "SandboxUnavailable",
    "Verdict",
    "Verifier",
    "VerifierUnavailable",
    "check_sandbox",
    "verify",
    "verify_many",
]

# Seconds of wall-clock time for one response; a symbolic comparison that is going to end ends well within it.
SYMBOLIC_TIME_LIMIT_S = 10.0


def _isolated(name: str) -> Verifier:
    return partial(judge_in_process, name, time_limit_s=SYMBOLIC_TIME_LIMIT_S)


VERIFIERS: dict[str, Verifier] = {
    "math": _isolated("math"),
    "reasoning_gym": _isolated("reasoning_gym"),
    "choice": choice.judge,
    "tool_call": tool_call.judge,
    "code": code.judge,
}
"""Every verifier by the name that a task item's ``verifier`` field gives."""


def verify(verifier: str, response: str, reference: Mapping[str, Any], *, allow_unsandboxed: bool = False) -> Verdict:
    """Judge one response.

    A verifier that raises (a malformed reference, a bug in a library) leaves the response unjudged: reward
    None, with the exception's name in the feedback, so that it is counted and never taken for a failure.

    Args:
        verifier: key of `VERIFIERS`.
        response: the text that the student sampled.
        reference: the ``reference`` of the task item.
        allow_unsandboxed: run code even where bubblewrap is missing, with rlimits and time limits alone.

    Raises:
        ValueError: if there is no such verifier.
        VerifierUnavailable: if the verifier cannot run on this machine (a library or bubblewrap is missing).
    """
    if verifier not in VERIFIERS:
        raise ValueError(f"unknown verifier {verifier!r}; known are {', '.join(sorted(VERIFIERS))}")
    try:
        if verifier == "code":
            return code.judge(response, reference, allow_unsandboxed=allow_unsandboxed)
        return VERIFIERS[verifier](response, reference)
    except VerifierUnavailable:
        raise
    except Exception as error:
        return Verdict(reward=None, feedback=f"Not judged: {type(error).__name__}: {error}"[:1000])


def verify_many(
    items: Sequence[tuple[str, str, Mapping[str, Any]]],
    *,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
    allow_unsandboxed: bool = False,
) -> list[Verdict]:
    """Judge many responses on all cores; verdicts come in the order of the items.

    The workers are threads that wait for processes of their own, so that nothing is pickled and no
    ``__main__`` guard is needed.

    Args:
        items: ``(verifier, response, reference)`` each.
        workers: responses judged at a time; None for the number of usable cores.
        allow_unsandboxed: as in `verify`.
        progress: called with the number of responses judged so far, from the worker threads, one at a time.

    Raises:
        ValueError: if a verifier is unknown, or ``workers`` is below 1.
        VerifierUnavailable: as `verify`, at the first such item.
    """
    unknown = sorted({name for name, _, _ in items} - set(VERIFIERS))
    if unknown:
        raise ValueError(f"unknown verifiers {unknown}; known are {', '.join(sorted(VERIFIERS))}")
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    if not allow_unsandboxed and any(name == "code" for name, _, _ in items):
        check_sandbox()  # before the first response is judged, not in the middle
    run = _Run(items=items, progress=progress, allow_unsandboxed=allow_unsandboxed)
    with ThreadPoolExecutor(workers, thread_name_prefix="verify") as pool:
        futures = [pool.submit(run.work) for _ in range(min(workers, len(items)))]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            run.stop()
    for future in futures:
        future.result()
    return [verdict for verdict in run.verdicts if verdict is not None]


class _Run:
    """Shared state of the threads of one `verify_many`."""

    def __init__(
        self,
        *,
        items: Sequence[tuple[str, str, Mapping[str, Any]]],
        progress: Callable[[int], None] | None,
        allow_unsandboxed: bool,
    ) -> None:
        self.verdicts: list[Verdict | None] = [None] * len(items)
        self._items, self._progress, self._allow_unsandboxed = items, progress, allow_unsandboxed
        self._lock = threading.Lock()
        self._next = 0
        self._done = 0

    def stop(self) -> None:
        with self._lock:
            self._next = len(self._items)

    def work(self) -> None:
        """Judge items until none is left, then end the process that this thread owns."""
        try:
            while True:
                with self._lock:
                    index, self._next = self._next, self._next + 1
                if index >= len(self._items):
                    return
                self.verdicts[index] = verify(*self._items[index], allow_unsandboxed=self._allow_unsandboxed)
                with self._lock:
                    self._done += 1
                    if self._progress is not None:
                        self._progress(self._done)
        finally:
            close_processes()
