"""Run untrusted Python in a bubblewrap sandbox and bring back what it put out.

The sandbox has no network, its own process, mount, IPC and host-name spaces, a read-only view of the system
libraries and of the Python installation, a private temporary folder, and nothing else: neither home nor
repository. Installed packages (site-packages, dist-packages) and sources below ``/usr`` are hidden by empty
folders: mopd itself, with the answers of its tasks, may be among them. Inside, ``_harness.py`` puts rlimits on
every test (address space, CPU seconds, processes, file size, open files) and watches its wall-clock time, its
output and the memory of all its processes.

Limits of the design: the kernel is shared, so that a kernel bug is a way out; only the standard library is on
the code's path.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import random
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mopd.verifiers.worker import VerifierUnavailable

__all__ = ["Limits", "SandboxUnavailable", "check_sandbox", "run_tests"]

_HARNESS = Path(__file__).with_name("_harness.py")
_SETUP_SECONDS = 20.0
_REPLY_LIMIT_BYTES = 64 << 20
_INSTALL_HINT = (
    "Install bubblewrap (Debian and Ubuntu: apt-get install bubblewrap; Fedora: dnf install bubblewrap), or "
    "allow running model-written code without it (allow_unsandboxed), where a machine holds nothing of value."
)


class SandboxUnavailable(VerifierUnavailable):
    """Untrusted code cannot be run safely on this machine; the message says how to mend it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one rollout may use.

    Attributes:
        time_limit_s: wall-clock seconds of one test.
        total_time_limit_s: wall-clock seconds of all tests together; tests after it are not run.
        memory_mb: MiB of address space of each process, and of resident memory of all processes together with
            System V shared memory, looked at every 50 ms. Files in memory (``memfd_create``) that no process has
            mapped are not counted. Rlimits alone bound them: each has at most ``file_mb``, and each process at most
            32 of them open and ``memory_mb`` of them mapped, so that code written to evade the limit can take up to
            ``processes * (32 * file_mb + memory_mb)`` (32 GiB by default), and files under way in sockets. One
            process gets 1 GiB. Where that is too much, run mopd in a cgroup or container with a memory limit.
        processes: processes and threads at a time.
        output_bytes: bytes of standard output, of standard error and of the returned value, each.
        file_mb: MiB of one file in the private temporary folder.
    """

    time_limit_s: float = 4.0
    total_time_limit_s: float = 12.0
    memory_mb: int = 512
    processes: int = 32
    output_bytes: int = 4 << 20
    file_mb: int = 16

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")


def run_tests(job: Mapping[str, Any], *, limits: Limits, allow_unsandboxed: bool = False) -> list[dict[str, Any]]:
    """Run the tests of one job, each in a fresh process of one sandbox.

    Args:
        job: ``{"kind": "function" or "stdin", "code": ..., "entry_point": ..., "tests": [...]}``, the
            tests with inputs only. What is not in the job cannot be read by the code. With ``"trace": True``
            the lines that each test executes are reported, at the cost of a slower run.
        allow_unsandboxed: where bubblewrap is missing, run with rlimits and time limits alone.

    Returns:
        One report a test: ``status`` ("returned", "exception", "timeout", "memory", "processes", "killed",
        "exited_early", "output_too_large", "not_plain_data", "forged_result", "syntax_error",
        "missing_entry_point", "sandbox_ended" or "not_run"), ``value`` (tagged JSON), ``detail``, ``stdout``,
        ``stderr``, ``seconds``, and ``lines`` (of the code, from 1; None if they were not asked for).

    Raises:
        SandboxUnavailable: without a working bubblewrap, unless ``allow_unsandboxed``.
        RuntimeError: if a sandbox that works in general could not be started this time.
    """
    sandboxed = _decide(allow_unsandboxed)
    # Real root escapes RLIMIT_NPROC, so below root each sandbox gets a user id of its own.
    run_as = 1_000_000_000 + random.SystemRandom().randrange(1 << 29) if sandboxed and _is_real_root() else None
    request = {
        **job,
        "sandboxed": sandboxed,
        "run_as": run_as,
        "time_limit_s": limits.time_limit_s,
        "total_time_limit_s": limits.total_time_limit_s,
        "memory_mb": limits.memory_mb,
        "file_mb": limits.file_mb,
        "output_limit_bytes": limits.output_bytes,
        "process_limit": limits.processes + _processes_counted_already(sandboxed),
    }
    with contextlib.ExitStack() as stack:
        folder = "/tmp" if sandboxed else stack.enter_context(tempfile.TemporaryDirectory(prefix="mopd-code-"))
        command = _sandbox_command(as_root=run_as is not None) if sandboxed else _plain_command()
        reply, errors = _communicate(
            command,
            json.dumps(request).encode() + b"\n",
            seconds=limits.total_time_limit_s + _SETUP_SECONDS,
            folder=None if sandboxed else folder,
        )
    return _read_reports(reply, errors, len(job["tests"]))


def check_sandbox() -> None:
    """Start a sandbox and run a line of code in it; the result is remembered.

    Raises:
        SandboxUnavailable: if bubblewrap is missing or cannot set up a sandbox here.
    """
    problem = _sandbox_problem()
    if problem is not None:
        raise SandboxUnavailable(f"{problem} {_INSTALL_HINT}")


def _decide(allow_unsandboxed: bool) -> bool:
    """Whether to use the sandbox. One that works is always used."""
    if not allow_unsandboxed:
        check_sandbox()
        return True
    return _sandbox_problem() is None


@functools.cache
def _sandbox_problem() -> str | None:
    if not sys.platform.startswith("linux"):
        return f"The code sandbox needs Linux, this is {sys.platform}."
    if shutil.which("bwrap") is None:
        return "bubblewrap (the command bwrap) is not installed, and model-written code is not run without it."
    problem = _exposure_problem()
    if problem is not None:
        return problem
    command = [*_sandbox_command(as_root=_is_real_root())[:-1], "-c", "print('ready')"]
    try:
        done = subprocess.run(command, capture_output=True, env=_environment(), timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"bubblewrap cannot be run: {error}."
    if done.returncode != 0 or done.stdout.strip() != b"ready":
        detail = done.stderr.decode("utf-8", "replace").strip()[-500:]
        return (
            f"bubblewrap is installed but cannot set up a sandbox: {detail} (unprivileged user namespaces "
            "off? See kernel.unprivileged_userns_clone and kernel.apparmor_restrict_unprivileged_userns)."
        )
    return None


@functools.cache
def _is_real_root() -> bool:
    """Whether this is root outside every user namespace, whom RLIMIT_NPROC does not bind."""
    if os.geteuid() != 0:
        return False
    mapping = Path("/proc/self/uid_map").read_text().split()
    return mapping == ["0", "0", "4294967295"]


@functools.cache
def _bwrap_options() -> str:
    return subprocess.run(["bwrap", "--help"], capture_output=True, text=True, check=False).stdout


def _python_prefixes() -> list[Path]:
    """The folders of the Python installation, which the sandbox has to show."""
    python = Path(os.path.realpath(sys.executable))
    return sorted({Path(os.path.realpath(sys.base_prefix)), python.parents[1]})


def _private_folders() -> list[Path]:
    """Home, and the folder of the package; for a checkout all of it."""
    package = Path(__file__).resolve().parents[1]
    is_checkout = any((package.parent / name).exists() for name in ("pyproject.toml", ".git"))
    return [Path(os.path.realpath(os.path.expanduser("~"))), package.parent if is_checkout else package]


def _exposure_problem() -> str | None:
    """Why the Python installation cannot be shown to untrusted code; None if it can."""
    hidden = _hidden_folders()
    home, package = _private_folders()
    for prefix in _python_prefixes():
        mend = f"Run mopd with a Python elsewhere (sys.base_prefix is {sys.base_prefix})."
        if prefix.is_relative_to("/usr"):
            if any(prefix.is_relative_to(folder) for folder in hidden):
                return f"The Python installation {prefix} lies in a folder that the code sandbox hides. {mend}"
        elif home.is_relative_to(prefix):
            return f"The Python installation {prefix} holds the home folder {home}, which code may not read. {mend}"
        elif package.is_relative_to(prefix) and not _is_package_folder(package.parent):
            return f"The Python installation {prefix} holds the repository {package}, which code may not read. {mend}"
    return None


def _is_package_folder(folder: Path) -> bool:
    return folder.name in ("site-packages", "dist-packages")


@functools.cache
def _hidden_folders() -> tuple[Path, ...]:
    """Folders below the visible ones that may hold answers, or other things that the standard library lacks."""
    roots = [Path("/usr"), *_python_prefixes(), *(Path(name) for name in ("/lib", "/lib64", "/lib32"))]
    roots = [root for root in roots if root.is_dir() and not root.is_symlink()]
    libraries = ("lib*", "local/lib*", "envs/*/lib*")  # the last are conda's
    patterns = [f"{library}/{python}" for library in libraries for python in ("python*", "pypy*")] + ["python*"]
    names = ("site-packages", "dist-packages")
    found = {folder for root in roots for one in patterns for name in names for folder in root.glob(f"{one}/{name}")}
    found |= {Path("/usr/src"), Path("/usr/local/src"), *_private_folders()}
    inside = [
        folder
        for folder in {Path(os.path.realpath(folder)) for folder in found}
        if folder.is_dir() and any(folder != root and folder.is_relative_to(root) for root in roots)
    ]
    return tuple(sorted(folder for folder in inside if not any(other in folder.parents for other in inside)))


def _sandbox_command(*, as_root: bool) -> list[str]:
    python = os.path.realpath(sys.executable)
    command = [
        shutil.which("bwrap") or "bwrap",
        "--unshare-ipc",
        "--unshare-pid",
        "--unshare-net",
        "--unshare-uts",
        "--unshare-cgroup-try",
    ]
    command += ["--die-with-parent", "--new-session"]
    if as_root:
        # The harness needs these three to give tests another user id and to end them; a test has none.
        command += [
            "--cap-drop",
            "ALL",
            "--cap-add",
            "CAP_SETUID",
            "--cap-add",
            "CAP_SETGID",
            "--cap-add",
            "CAP_KILL",
        ]
    else:
        command += ["--unshare-user", "--uid", "65534", "--gid", "65534", "--cap-drop", "ALL"]
        if "--disable-userns" in _bwrap_options():
            command += ["--disable-userns"]
    command += ["--ro-bind", "/usr", "/usr"]
    for folder in ("/lib", "/lib64", "/lib32", "/bin"):
        if os.path.islink(folder):
            command += ["--symlink", os.readlink(folder), folder]
        elif os.path.isdir(folder):
            command += ["--ro-bind", folder, folder]
    for prefix in _python_prefixes():
        if prefix.is_relative_to("/usr"):
            continue
        if "--perms" in _bwrap_options():
            # Bubblewrap makes missing parents for their owner alone, and the code runs as somebody else.
            for parent in reversed(prefix.parents[:-1]):
                command += ["--perms", "0755", "--dir", str(parent)]
        command += ["--ro-bind", str(prefix), str(prefix)]
    for folder in _hidden_folders():
        command += ["--tmpfs", str(folder), "--remount-ro", str(folder)]
    if "--perms" in _bwrap_options():
        command += ["--perms", "0755", "--dir", "/etc"]
    command += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache", "--proc", "/proc", "--dev", "/dev"]
    if "--size" in _bwrap_options():
        command += ["--size", str(64 << 20)]
    if "--perms" in _bwrap_options():
        command += ["--perms", "1777"]
    command += ["--tmpfs", "/tmp", "--ro-bind", str(_HARNESS), "/harness.py"]
    command += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp", "--hostname", "sandbox"]
    return [*command, python, *_PYTHON_FLAGS, "/harness.py"]


# No site-packages, no user site, no script folder on the path: the standard library alone.
_PYTHON_FLAGS = ("-S", "-s", "-P", "-B")


def _plain_command() -> list[str]:
    return [os.path.realpath(sys.executable), *_PYTHON_FLAGS, str(_HARNESS)]


def _environment() -> dict[str, str]:
    """What the code may know of the environment: nothing; a fixed hash seed makes its results repeatable."""
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": "/tmp",
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        "PYTHONUTF8": "1",
    }


@functools.cache
def _kernel_counts_per_namespace() -> bool:
    major, minor = os.uname().release.split(".")[:2]
    return (int(major), int("".join(filter(str.isdigit, minor)) or 0)) >= (5, 14)


def _processes_counted_already(sandboxed: bool) -> int:
    """Tasks that RLIMIT_NPROC counts before the code starts one.

    In a user namespace Linux 5.14 and later count its tasks alone; older kernels, and every kernel without a
    sandbox, count all tasks of the user.
    """
    if sandboxed and (_is_real_root() or _kernel_counts_per_namespace()):
        return 0
    tasks = 0
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if entry.stat().st_uid == os.getuid():
                    tasks += len(os.listdir(f"/proc/{entry.name}/task"))
    return tasks


def _communicate(command: Sequence[str], request: bytes, *, seconds: float, folder: str | None) -> tuple[bytes, bytes]:
    """Send the job, read the reports within the time and up to the cap, then end everything."""
    # The job goes through a file: a pipe could block while nobody reads the other one.
    with tempfile.TemporaryFile() as job_file:
        job_file.write(request)
        job_file.seek(0)
        process = subprocess.Popen(
            list(command),
            stdin=job_file,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env=_environment(),
            start_new_session=True,
        )
    with process:
        try:
            return _read_capped(process, deadline=time.monotonic() + seconds)
        finally:
            # With bubblewrap, its end takes the whole namespace along.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)


def _read_capped(process: subprocess.Popen[bytes], *, deadline: float) -> tuple[bytes, bytes]:
    streams = [stream for stream in (process.stdout, process.stderr) if stream is not None]
    output = {stream.fileno(): bytearray() for stream in streams}
    reply, errors = output.values()
    ready = select.poll()
    for descriptor in output:
        ready.register(descriptor, select.POLLIN)
    is_open = set(output)
    while is_open and len(reply) < _REPLY_LIMIT_BYTES and time.monotonic() < deadline:
        for descriptor, _ in ready.poll(max(0.0, deadline - time.monotonic()) * 1000):
            data = os.read(descriptor, 1 << 16)
            if data:
                output[descriptor] += data
                del errors[:-10_000]
            else:
                ready.unregister(descriptor)
                is_open.discard(descriptor)
    return bytes(reply), bytes(errors)


def _read_reports(reply: bytes, errors: bytes, tests: int) -> list[dict[str, Any]]:
    """The reports by test. A test that began and has none ended the sandbox; it is a failure like another."""
    reports: dict[int, dict[str, Any]] = {}
    started: int | None = None
    for line in reply.splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            message = json.loads(line)
            index = message["started" if "started" in message else "test"]
            if type(index) is not int:
                continue
            if "started" in message:
                started = index
            else:
                reports[index] = _typed(message)
    if started is None:
        detail = errors.decode("utf-8", "replace").strip()[-500:]
        raise RuntimeError(f"the sandbox did not start: {detail or 'it said nothing'}")
    missing = {"status": "not_run", "detail": "the sandbox had ended"}
    ended = {"status": "sandbox_ended", "detail": "the code ended or flooded the process that watches it"}
    return [reports.get(index, ended if index == started else missing) for index in range(tests)]


def _typed(message: Mapping[str, Any]) -> dict[str, Any]:
    """A report whose fields have their types, whatever the code wrote into its channel."""
    report = {name: message.get(name) for name in ("status", "value", "detail", "stdout", "stderr", "seconds", "lines")}
    if not isinstance(report["status"], str):
        report |= {"status": "forged_result", "detail": "the result has no status"}
    for name in ("detail", "stdout", "stderr"):
        text = report[name]
        if isinstance(text, str):
            # A lone surrogate, as in the message of an exception, could not be written to any file.
            report[name] = text.encode("utf-8", "replace").decode()
        elif text is not None:
            report |= {"status": "forged_result", name: None}
            report["detail"] = f"the {name} of the result is no text"
    if type(report["seconds"]) is not float or not math.isfinite(report["seconds"]):
        report["seconds"] = None
    lines = report["lines"]
    if not isinstance(lines, list) or not all(type(n) is int and n > 0 for n in lines):
        report["lines"] = None
    return report
