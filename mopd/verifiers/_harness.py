"""The process inside the sandbox: it runs untrusted code test by test and reports what came out.

Run as a script, with the standard library alone; it imports nothing of mopd, so that no file of the
repository has to be visible to the code. One JSON job comes on standard input, JSON lines go out on standard
output: ``{"started": i}`` before and ``{"test": i, ...}`` after each test.

Each test gets a fresh fork. The fork and the untrusted code share an interpreter, hence the code can write
anything to its result channel. That gains it nothing: the job holds inputs only, the expected answers stay
with the process outside, and a forged message can at most state a value that the code had to find.

With ``"trace": true`` a report also has ``"lines"``, those of the code that the test executed. They are marks in a few
shared bytes of fixed size, so that they outlive a kill at a time limit, and nothing that the code writes there is
parsed: it can lie about its own lines, and no more.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import mmap
import os
import resource
import select
import signal
import sys
import time

MAX_SHOWN = 2000
# A file in memory (memfd_create) is in no process's memory; this and the file size are all that bounds it.
OPEN_FILES = 32
MAX_TRACED_LINES = 10_000
SOLUTION_PRELUDE = """
import bisect, collections, functools, heapq, itertools, math, operator, random, re, string
from bisect import *; from collections import *; from functools import *; from heapq import *
from itertools import *; from math import *; from typing import *
"""
OUT_OF_PROCESSES = "processes"


class NotPlainDataError(Exception):
    """The returned value, or a part of it, is no plain data."""


def encode(value: object) -> object:
    """Plain data as tagged JSON. Methods of the built-in types are called, so that a subclass cannot lie."""
    if value is None or value is True or value is False:
        return value
    if isinstance(value, int):
        return {"int": hex(int.__int__(value))}
    if isinstance(value, float):
        return {"float": float.__repr__(float.__float__(value))}
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": bytes(memoryview(value)).hex()}
    if isinstance(value, list):
        return [encode(item) for item in list.__iter__(value)]
    if isinstance(value, tuple):
        return {"tuple": [encode(item) for item in tuple.__iter__(value)]}
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in dict.items(value)]}
    if isinstance(value, set):
        return {"set": [encode(item) for item in set.__iter__(value)]}
    if isinstance(value, frozenset):
        return {"set": [encode(item) for item in frozenset.__iter__(value)]}
    raise NotPlainDataError(type(value).__name__)


def describe(error: BaseException) -> str:
    """``ZeroDivisionError: division by zero (line 3)``; the line is the last one inside the solution."""
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<solution>":
            line = trace.tb_lineno
        trace = trace.tb_next
    if isinstance(error, SyntaxError):
        line = error.lineno
    try:
        message = str(error)[:MAX_SHOWN]
    except BaseException:
        message = "(its message cannot be read)"
    return f"{type(error).__name__}: {message}" + (f" (line {line})" if line is not None else "")


def status_of(error: BaseException) -> str:
    """Name of the limit that the exception stands for, or plain ``exception``."""
    if isinstance(error, MemoryError):
        return "memory"
    no_fork = isinstance(error, OSError) and error.errno == errno.EAGAIN
    if no_fork or (isinstance(error, RuntimeError) and "start new thread" in str(error)):
        return OUT_OF_PROCESSES
    if isinstance(error, SyntaxError) and error.filename == "<solution>":
        return "syntax_error"
    return "exception"


def find_entry_point(namespace: dict, name: str):
    """The function of that name, or such a method of a ``class Solution``; None if neither."""
    owner, _, method = name.rpartition(".")
    solution = namespace.get(owner or "Solution")
    found = None if owner else namespace.get(name)
    if not callable(found) and isinstance(solution, type):
        found = getattr(solution(), method, None)
    return found if callable(found) else None


def run_function(job: dict, test: dict) -> dict:
    """Define the code, call its entry point and encode what it returns."""
    source = job["code"]
    namespace = {"__name__": "solution", "__builtins__": __builtins__}
    if "class Solution" in source:
        exec(SOLUTION_PRELUDE, namespace)
    if job.get("prelude"):
        exec(compile(job["prelude"], "<prelude>", "exec"), namespace)
    try:
        exec(compile(source, "<solution>", "exec", dont_inherit=True), namespace)
        function = find_entry_point(namespace, job["entry_point"])
        if function is None:
            return {"status": "missing_entry_point", "detail": f"the code defines no {job['entry_point']!r}"}
        return {"status": "returned", "value": encode(function(*test["args"], **test["kwargs"]))}
    except SystemExit as error:
        return {"status": "exited_early", "detail": describe(error)}
    except NotPlainDataError as error:
        return {"status": "not_plain_data", "detail": f"the function returned an object of type {error}"}
    finally:
        namespace.clear()


def run_program(job: dict, test: dict) -> dict:
    """Run the code as a script that reads standard input."""
    namespace = {"__name__": "__main__", "__builtins__": __builtins__}
    try:
        exec(compile(job["code"], "<solution>", "exec", dont_inherit=True), namespace)
        # What the interpreter does at its end: programs print from threads and from atexit handlers.
        if "threading" in sys.modules:
            sys.modules["threading"]._shutdown()
        if "atexit" in sys.modules:
            sys.modules["atexit"]._run_exitfuncs()
    except SystemExit as error:
        if error.code not in (None, 0):
            return {"status": "exception", "detail": describe(error)}
    finally:
        namespace.clear()
    return {"status": "returned", "value": None}


def limit_self(job: dict) -> None:
    """Put the rlimits on this process and give up every privilege."""
    memory = job["memory_mb"] << 20
    seconds = int(job["time_limit_s"]) + 2
    for limit, amount in [
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, job["file_mb"] << 20),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, job["process_limit"]),
    ]:
        resource.setrlimit(limit, (amount, amount))
    if job["run_as"] is not None:
        os.setgroups([])
        os.setresgid(job["run_as"], job["run_as"], job["run_as"])
        os.setresuid(job["run_as"], job["run_as"], job["run_as"])


def trace_lines(marks: mmap.mmap) -> None:
    """Mark each line of the solution that is executed from now on, in this thread and in those that it starts."""
    import threading

    size = len(marks)

    def on_line(frame, event, argument):
        if event == "line" and frame.f_lineno <= size:
            marks[frame.f_lineno - 1] = 1
        return on_line

    def on_call(frame, event, argument):
        return on_line if frame.f_code.co_filename == "<solution>" else None

    threading.settrace(on_call)
    sys.settrace(on_call)


def child(
    job: dict, test: dict, nonce: str, stdin: int, stdout: int, stderr: int, channel: int, marks: mmap.mmap | None
) -> None:
    """Body of the fork: run one test and write its message to the channel."""
    me = os.getpid()
    os.setsid()
    signal.set_wakeup_fd(-1)
    for source, target in ((stdin, 0), (stdout, 1), (stderr, 2)):
        os.dup2(source, target)
    os.closerange(3, channel)
    os.closerange(channel + 1, 256)
    # New objects, because the inherited ones hold what the harness has buffered.
    sys.stdin = sys.__stdin__ = os.fdopen(0, encoding="utf-8", errors="replace", closefd=False)
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", encoding="utf-8", errors="replace", closefd=False)
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", encoding="utf-8", errors="replace", closefd=False)
    sys.argv = ["solution.py"]
    dumps, write, leave, settrace = json.dumps, os.write, os._exit, sys.settrace
    ignored: list[str] = []

    def keep_ignored(unraisable) -> None:
        ignored.append(f"{type(unraisable.exc_value).__name__}: {unraisable.exc_value} (in {unraisable.object!r:.200})")

    sys.unraisablehook = keep_ignored
    limit_self(job)
    try:
        if marks is not None:
            trace_lines(marks)
        message = (run_function if job["kind"] == "function" else run_program)(job, test)
        if marks is not None:
            settrace(None)
        sys.stdout.flush()
        gc.collect()  # so that exceptions in __del__ come up while somebody looks
    except BaseException as error:
        message = {"status": status_of(error), "detail": describe(error)}
    if ignored and message["status"] == "returned":
        message = {"status": "exception", "detail": f"exception in a finalizer: {ignored[0][:MAX_SHOWN]}"}
    if os.getpid() != me:
        leave(0)  # a fork of the untrusted code that ran out of it at the end
    try:
        sys.stdout.flush()
        payload = dumps({**message, "nonce": nonce}).encode()
    except BaseException as error:
        payload = dumps({"status": status_of(error), "detail": describe(error), "nonce": nonce}).encode()
    while payload:
        payload = payload[write(channel, payload) :]
    leave(0)


def watch(job: dict, pid: int, pipes: dict[str, int], deadline: float) -> tuple[dict[str, bytearray], str | None, int]:
    """Read the pipes of a test until its process ends; kill it at the first limit it breaks.

    Returns:
        What came through each pipe, the broken limit or None, and the wait status.
    """
    output = {name: bytearray() for name in pipes}
    names = {descriptor: name for name, descriptor in pipes.items()}
    pidfd = os.pidfd_open(pid)
    poll = select.poll()
    for descriptor in (pidfd, *names):
        poll.register(descriptor, select.POLLIN)
    broken = None
    ended = False
    last_look = time.monotonic()
    while not ended and broken is None:
        events = poll.poll(50)
        ended = any(descriptor == pidfd for descriptor, _ in events)
        for descriptor, _ in events:
            if descriptor in names and not pump(descriptor, output[names[descriptor]]):
                poll.unregister(descriptor)
        now = time.monotonic()
        if any(len(data) > job["output_limit_bytes"] for data in output.values()):
            broken = "output_too_large"
        elif now > deadline:
            broken = "timeout"
        elif job["sandboxed"] and now - last_look > 0.05:
            last_look = now
            broken = "memory" if resident_bytes() > job["memory_mb"] << 20 else None
    end_all(job, pid)
    _, status = os.waitpid(pid, 0)
    os.close(pidfd)
    for descriptor, name in names.items():
        while broken is None and pump(descriptor, output[name]):
            if len(output[name]) > job["output_limit_bytes"]:
                broken = "output_too_large"
        os.close(descriptor)
    return output, broken, status


def pump(descriptor: int, into: bytearray) -> bool:
    """Move what is there; False at the end of the pipe, or if nothing is there."""
    try:
        data = os.read(descriptor, 1 << 16)
    except BlockingIOError:
        return False
    into += data
    return bool(data)


def resident_bytes() -> int:
    """Resident memory of all processes in this pid namespace, and the shared segments (System V) of its IPC one."""
    total = 0
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/statm") as statm:
                total += int(statm.read().split()[1])
    return total * resource.getpagesize() + shared_segment_bytes()


def shared_segment_bytes() -> int:
    """Resident memory of System V segments, which need not be attached to any process."""
    try:
        with open("/proc/sysvipc/shm") as table:
            heading, *rows = (line.split() for line in table)
        column = heading.index("rss")
        return sum(int(row[column]) for row in rows)
    except (OSError, ValueError, IndexError):  # a kernel without System V IPC has no such memory
        return 0


def end_all(job: dict, pid: int) -> None:
    """Kill the test's process and all that it started."""
    # In its own pid namespace, as process 2 below bubblewrap's 1, everybody else is the untrusted code's.
    if job["sandboxed"] and os.getpid() == 2:
        targets = [(os.kill, -1), (os.kill, pid)]
    else:
        targets = [(os.killpg, pid), (os.kill, pid)]
    for kill, target in targets:
        with contextlib.suppress(OSError):
            kill(target, signal.SIGKILL)


def run_test(job: dict, test: dict, deadline: float) -> dict:
    """Run one test in a fork and say what came out of it."""
    nonce = os.urandom(16).hex()
    stdin = os.memfd_create("stdin")
    data = memoryview(test.get("stdin", "").encode("utf-8", "surrogatepass"))
    while data:
        data = data[os.write(stdin, data) :]
    os.lseek(stdin, 0, os.SEEK_SET)
    readers, writers = {}, {}
    for name in ("stdout", "stderr", "channel"):
        readers[name], writers[name] = os.pipe()
        os.set_blocking(readers[name], False)
    lines = min(job["code"].count("\n") + job["code"].count("\r") + 1, MAX_TRACED_LINES)
    marks = mmap.mmap(-1, lines) if job.get("trace") else None
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        try:
            child(job, test, nonce, stdin, writers["stdout"], writers["stderr"], writers["channel"], marks)
        finally:
            os._exit(70)  # code that broke the interpreter under `child` must not fall back into this loop
    for descriptor in (stdin, *writers.values()):
        os.close(descriptor)
    output, broken, status = watch(job, pid, readers, deadline)
    report = judge_end(bytes(output["channel"]), broken, status, nonce, job["kind"])
    report["stdout"] = output["stdout"][: job["output_limit_bytes"]].decode("utf-8", "replace")
    report["stderr"] = output["stderr"][-MAX_SHOWN:].decode("utf-8", "replace")
    report["seconds"] = time.monotonic() - began
    if marks is not None:
        report["lines"] = [i + 1 for i, mark in enumerate(marks[:]) if mark]
        marks.close()
    return report


def judge_end(channel: bytes, broken: str | None, status: int, nonce: str, kind: str) -> dict:
    """Turn the message of a test, or the lack of one, into its report."""
    if broken is not None:
        return {"status": broken, "detail": None}
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number == signal.SIGXCPU:
            return {"status": "timeout", "detail": "CPU time"}
        return {"status": "killed", "detail": f"killed by signal {number}"}
    if not channel:
        code = os.WEXITSTATUS(status)
        # A program may end itself once it has printed its answer; a function has to return.
        name = "returned" if kind == "stdin" and code == 0 else "exited_early"
        return {"status": name, "value": None, "detail": f"the process ended itself with code {code}"}
    try:
        message = json.loads(channel)
        if message.pop("nonce") != nonce:
            raise ValueError("wrong nonce")
        return {"status": message["status"], "value": message.get("value"), "detail": message.get("detail")}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {
            "status": "forged_result",
            "detail": "the result channel holds something else than one result",
        }


def probe_limits(job: dict) -> None:
    """End this process if the limits cannot be set, before code has run that could be blamed or fake it."""
    pid = os.fork()
    if pid == 0:
        try:
            limit_self(job)
        except (OSError, ValueError) as error:
            os.write(2, describe(error).encode())
            os._exit(1)
        os._exit(0)
    if os.waitpid(pid, 0)[1] != 0:
        raise SystemExit("the limits of the sandbox cannot be set")


def main() -> None:
    job = json.loads(sys.stdin.buffer.readline())
    reports = os.fdopen(os.dup(1), "w", encoding="utf-8")
    end = time.monotonic() + job["total_time_limit_s"]
    probe_limits(job)
    gc.collect()
    gc.freeze()
    for index, test in enumerate(job["tests"]):
        now = time.monotonic()
        if now >= end:
            report = {"status": "not_run", "detail": "the time for all tests was used up"}
        else:
            print(json.dumps({"started": index}), file=reports, flush=True)
            report = run_test(job, test, min(now + job["time_limit_s"], end))
        print(json.dumps({"test": index, **report}), file=reports, flush=True)


if __name__ == "__main__":
    main()
