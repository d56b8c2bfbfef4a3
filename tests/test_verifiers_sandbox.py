"""Attacks on the code sandbox: each must fail, and be reported as what it is."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mopd.verifiers import SandboxUnavailable, sandbox, verify, verify_many
from mopd.verifiers.code import CodeResult, judge, run_code

REPOSITORY = Path(__file__).resolve().parents[1]
SECRET = 918_273_645

needs_bubblewrap = pytest.mark.skipif(
    shutil.which("bwrap") is None, reason="bubblewrap is not installed (apt-get install bubblewrap)"
)


def attack(source: str, *, allow_unsandboxed: bool = False, **options: Any) -> CodeResult:
    """Run ``f()``, which would have to return the secret to pass."""
    reference: dict[str, Any] = {
        "kind": "function",
        "entry_point": "f",
        "tests": [{"args": [], "expected": SECRET}, {"args": [], "expected": SECRET}],
        "time_limit_s": 2.0,
        **options,
    }
    result = run_code(f"```python\n{source}\n```", reference, allow_unsandboxed=allow_unsandboxed)
    assert result is not None
    assert result.passed == 0
    assert result.feedback is not None
    assert str(SECRET) not in result.feedback
    return result


def statuses(result: CodeResult) -> set[str]:
    return {test.status for test in result.tests}


@needs_bubblewrap
@pytest.mark.parametrize(
    "body",
    [
        "while True: pass",
        "import time; time.sleep(1000)",
        "'a' * 40 and __import__('re').match('(a+)+$', 'a' * 60 + 'b')",
    ],
)
def test_infinite_loop(body: str) -> None:
    began = time.monotonic()
    assert statuses(attack(f"def f():\n    {body}", time_limit_s=1.0)) == {"timeout"}
    assert time.monotonic() - began < 10.0


@needs_bubblewrap
def test_the_time_of_all_tests_together_is_limited() -> None:
    result = attack("def f():\n    while True: pass", time_limit_s=1.0, total_time_limit_s=1.0)
    assert [test.status for test in result.tests] == ["timeout", "not_run"]


@needs_bubblewrap
def test_fork_bomb() -> None:
    assert statuses(attack("import os\ndef f():\n    while True: os.fork()", time_limit_s=5.0)) == {"processes"}
    threads = (
        "from threading import Thread\nfrom time import sleep\n"
        "def f():\n    while True: Thread(target=sleep, args=(99,)).start()"
    )
    assert statuses(attack(threads, time_limit_s=5.0)) <= {"processes", "memory"}


@needs_bubblewrap
def test_stubborn_fork_bomb() -> None:
    source = "import os\ndef f():\n    while True:\n        try: os.fork()\n        except OSError: pass"
    assert statuses(attack(source, time_limit_s=1.0)) == {"timeout"}


@needs_bubblewrap
def test_memory_bomb() -> None:
    assert statuses(attack("def f():\n    return bytearray(10 ** 11)")) == {"memory"}
    slow = "def f():\n    a = []\n    while True: a.append(bytearray(10 ** 7))"
    assert statuses(attack(slow, time_limit_s=10.0, total_time_limit_s=20.0)) == {"memory"}


@needs_bubblewrap
def test_memory_bomb_of_many_processes() -> None:
    # Each process stays below its own limit of 512 MiB; together they would take 16 times 300 MiB.
    source = """
import os, time
def f():
    for _ in range(16):
        if os.fork() == 0:
            kept = bytearray(os.urandom(1 << 20)) * 300
            time.sleep(60)
    time.sleep(60)
"""
    assert "memory" in statuses(attack(source, time_limit_s=8.0, total_time_limit_s=16.0))


@needs_bubblewrap
def test_files_in_memory_are_few_and_small() -> None:
    source = """
import os
def f():
    kept, size = [], 0
    try:
        while True: kept.append(os.memfd_create('m'))
    except OSError: pass
    for one in kept[:2]:
        try: os.ftruncate(one, (4 << 20) + 1)
        except OSError as error: size += error.errno
    return [len(kept), size]
"""
    # 32 descriptors with the standard streams and the channel taken; EFBIG is 27, for each of the two files.
    limits = sandbox.Limits(file_mb=4)
    job = {"kind": "function", "code": "import signal\nsignal.signal(25, signal.SIG_IGN)" + source, "entry_point": "f"}
    (report,) = sandbox.run_tests({**job, "tests": [{"args": [], "kwargs": {}}]}, limits=limits)
    assert report["value"] == [{"int": hex(32 - 4)}, {"int": hex(2 * 27)}]


@needs_bubblewrap
def test_shared_segments_that_nobody_has_attached_are_counted() -> None:
    # Ten segments of 64 MiB, each written, then detached: nothing of them is left in the process.
    source = """
import ctypes, time
c = ctypes.CDLL(None, use_errno=True)
c.shmat.restype = ctypes.c_void_p
def f():
    for _ in range(10):
        number = c.shmget(0, 64 << 20, 0o1600)
        at = c.shmat(number, None, 0)
        ctypes.memset(at, 1, 64 << 20)
        c.shmdt(ctypes.c_void_p(at))
    time.sleep(30)
    return 1
"""
    assert attack(source, time_limit_s=20.0, total_time_limit_s=20.0).tests[0].status == "memory"


@needs_bubblewrap
@pytest.mark.parametrize("descriptor", [1, 2])
def test_output_flood(descriptor: int) -> None:
    source = f"import os\ndef f():\n    while True: os.write({descriptor}, b'x' * 65536)"
    assert statuses(attack(source)) == {"output_too_large"}


@needs_bubblewrap
def test_flood_of_the_result() -> None:
    assert statuses(attack("def f():\n    return 'x' * (32 << 20)")) == {"output_too_large"}


@needs_bubblewrap
def test_flood_of_the_disk() -> None:
    source = "def f():\n    with open('/tmp/big', 'wb') as file:\n        while True: file.write(bytes(1 << 20))"
    result = attack(source)
    assert statuses(result) <= {"exception", "killed"}


@needs_bubblewrap
def test_network() -> None:
    result = attack("import socket\ndef f():\n    socket.create_connection(('192.0.2.1', 80), 1)")
    assert statuses(result) == {"exception"}
    assert "Network is unreachable" in str(result.tests[0].detail)
    names = attack("import socket\ndef f():\n    return socket.if_nameindex()")
    assert names.tests[0].output == "[(1, 'lo')]"


@needs_bubblewrap
def test_local_server_of_the_host_is_out_of_reach() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        result = attack(f"import socket\ndef f():\n    socket.create_connection(('127.0.0.1', {port}), 1)")
    assert statuses(result) == {"exception"}


@needs_bubblewrap
def test_reading_the_repository_and_home() -> None:
    for path in (
        __file__,
        str(REPOSITORY / "mopd" / "verifiers" / "base.py"),
        "/etc/passwd",
        "/etc/hostname",
    ):
        result = attack(f"def f():\n    return open({path!r}).read()")
        assert statuses(result) == {"exception"}
        assert "No such file" in str(result.tests[0].detail)
    seen = attack(f"import os\ndef f():\n    return [os.path.exists({str(REPOSITORY)!r}), os.listdir('/tmp')]")
    assert seen.tests[0].output == "[False, []]"
    home = attack(f"import os\ndef f():\n    return os.listdir({os.path.expanduser('~')!r})")
    if home.tests[0].output is not None:  # there at all only where the Python installation lies below it
        assert len(eval(home.tests[0].output)) <= 1


@needs_bubblewrap
def test_reading_installed_packages() -> None:
    """They may hold mopd, with the answers of its tasks."""
    installed = sysconfig.get_path("purelib", vars={"base": sys.base_prefix})
    folders = [name for name in (installed, "/usr/lib/python3/dist-packages", "/usr/src") if os.path.isdir(name)]
    assert os.listdir(installed)
    source = f"import os\ndef f():\n    return [[os.listdir(n), os.access(n, os.W_OK)] for n in {folders}]"
    assert attack(source).tests[0].output == str([[[], False]] * len(folders))


@needs_bubblewrap
def test_a_package_beside_the_standard_library_is_hidden(tmp_path: Path, fresh_folders: pytest.MonkeyPatch) -> None:
    package = tmp_path / "prefix" / "lib" / "python3.11" / "site-packages" / "mopd"
    answers = package / "tasks" / "data" / "code.jsonl"
    answers.parent.mkdir(parents=True)
    answers.write_text("the answers")
    shown = tmp_path / "prefix" / "lib" / "python3.11" / "string.py"
    shown.write_text("the library")
    tmp_path.chmod(0o755)
    real = sandbox._python_prefixes()
    fresh_folders.setattr(sandbox, "_python_prefixes", lambda: [*real, tmp_path / "prefix"])
    # /tmp is mounted over the prefix's parents here, so only the order of the mounts is looked at.
    command = sandbox._sandbox_command(as_root=True)
    folder = str(package.parent)
    bound, hidden = command.index(str(tmp_path / "prefix"), command.index("--ro-bind")), command.index(folder)
    assert bound < hidden
    assert command[hidden - 1 : hidden + 3] == ["--tmpfs", folder, "--remount-ro", folder]


@pytest.fixture
def fresh_folders(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Nothing that other tests found out about the folders of this machine is remembered, and nothing of this one."""
    sandbox._hidden_folders.cache_clear()
    sandbox._sandbox_problem.cache_clear()
    yield monkeypatch
    sandbox._hidden_folders.cache_clear()
    sandbox._sandbox_problem.cache_clear()


@needs_bubblewrap
@pytest.mark.parametrize(("inside", "what"), [("home", "holds the home folder"), ("code", "holds the repository")])
def test_a_python_that_holds_home_or_the_repository_is_refused(
    inside: str, what: str, tmp_path: Path, fresh_folders: pytest.MonkeyPatch
) -> None:
    folders = {"home": tmp_path / "home", "code": tmp_path / "code"}
    fresh_folders.setattr(sandbox, "_private_folders", lambda: list(folders.values()))
    fresh_folders.setattr(sandbox, "_python_prefixes", lambda: [folders[inside]])
    with pytest.raises(SandboxUnavailable, match=what):
        sandbox.check_sandbox()


@needs_bubblewrap
def test_reading_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOPD_TEST_TOKEN", "hidden")
    result = attack("import os\ndef f():\n    return dict(os.environ)")
    assert "hidden" not in str(result.tests[0].output)


@needs_bubblewrap
def test_writing_outside(tmp_path: Path) -> None:
    for path in ("/usr/evil", "/evil", "/etc/evil", "/harness.py", "/dev/evil", str(tmp_path / "evil")):
        result = attack(f"def f():\n    open({path!r}, 'w').write('x')")
        assert statuses(result) == {"exception"}
    assert list(tmp_path.iterdir()) == []
    assert attack("def f():\n    return open('/tmp/mine', 'w').write('x')").tests[0].output == "1"
    assert not Path("/tmp/mine").exists()


@needs_bubblewrap
def test_killing_the_parent() -> None:
    # Under real root the code runs as another user than the harness and may not; elsewhere it takes the
    # sandbox down, and fails for it.
    expected = {"exception", "sandbox_ended", "not_run"}
    assert statuses(attack("import os\ndef f():\n    os.kill(os.getppid(), 9)\n    return 1")) <= expected
    result = attack("import os\ndef f():\n    os.kill(-1, 9)\n    return 1")
    assert statuses(result) <= {"killed", "exception", "sandbox_ended", "not_run", "wrong_answer"}


@needs_bubblewrap
def test_privileges_are_gone() -> None:
    source = (
        "def f():\n    lines = open('/proc/self/status')\n"
        "    return [line.split()[1] for line in lines if line.startswith('Cap')]"
    )
    # In the order inheritable, permitted, effective, bounding, ambient. The first and the fourth only matter
    # to a program with file capabilities, and those give nothing under no-new-privileges.
    values = eval(str(attack(source).tests[0].output))
    assert {values[1], values[2], values[4]} == {"0" * 16}
    assert attack(source.replace("'Cap'", "'NoNewPrivs'")).tests[0].output == "['1']"
    assert statuses(attack("import os\ndef f():\n    os.setuid(0)")) == {"exception"}


@needs_bubblewrap
def test_reading_the_expected_answers() -> None:
    source = f"""
import gc, glob, os, sys
def f():
    found = []
    for thing in gc.get_objects():
        if isinstance(thing, dict):
            found += [value for value in list(thing.values()) if type(value) is int and value > {SECRET - 10}]
    frame = sys._getframe()
    while frame:
        found += [value for value in frame.f_locals.values() if type(value) is int]
        frame = frame.f_back
    for path in glob.glob('/proc/*/cmdline') + glob.glob('/proc/*/environ'):
        try: found += [path] if b'{SECRET}' in open(path, 'rb').read() else []
        except OSError: pass
    return [thing for thing in found if thing == int('{str(SECRET)[::-1]}'[::-1])] or 'nothing'
"""
    result = attack(source)
    assert statuses(result) == {"wrong_answer"}
    assert result.tests[0].output == "'nothing'"


@needs_bubblewrap
def test_forging_the_result_line() -> None:
    flood = """
import os
def f():
    for descriptor in range(3, 64):
        try: os.write(descriptor, b'{"test": 0, "status": "passed", "value": null}\\n')
        except OSError: pass
    return 1
"""
    assert statuses(attack(flood)) == {"forged_result"}
    stolen = """
import json, os, sys
def f():
    frame = sys._getframe()
    while 'nonce' not in frame.f_locals: frame = frame.f_back
    names = frame.f_locals
    message = {'nonce': names['nonce'], 'status': 'passed', 'value': None}
    os.write(names['channel'], json.dumps(message).encode())
    os._exit(0)
"""
    assert statuses(attack(stolen)) == {"forged_result"}
    assert statuses(attack(stolen.replace("'passed'", "'returned'"))) == {"wrong_answer"}


FORGED_PROGRAM = """
import os, sys
frame = sys._getframe()
while 'nonce' not in frame.f_locals: frame = frame.f_back
names = frame.f_locals
os.write(names['channel'], MESSAGE.replace('NONCE', names['nonce']).encode())
os._exit(0)
"""


@needs_bubblewrap
@pytest.mark.parametrize("kind", ["stdin", "function"])
@pytest.mark.parametrize(
    "fields",
    [
        '"status": "returned", "detail": 5',
        '"status": "returned", "detail": 1e999',
        '"status": "returned", "detail": [[1]]',
        '"status": [], "detail": {}',
        '"status": "returned", "value": {"float": 1' + "0" * 400 + "}",
        '"status": "returned", "value": {"set": [{"dict": []}]}',
        '"status": "returned", "value": ' + "[" * 400 + "]" * 400,
        '"status": "exception", "detail": "\\ud800"',
    ],
)
def test_no_forged_message_leaves_the_response_unjudged(kind: str, fields: str) -> None:
    source = FORGED_PROGRAM.replace("MESSAGE", repr(f'{{"nonce": "NONCE", {fields}}}'))
    test = {"stdin": "", "stdout": "7"} if kind == "stdin" else {"args": [], "expected": 7}
    verdict = verify("code", f"```python\n{source}\n```", {"kind": kind, "entry_point": "f", "tests": [test]})
    assert verdict.reward == 0.0
    assert verdict.feedback is not None
    verdict.feedback.encode()  # no surrogate is left


@pytest.mark.parametrize(
    "line",
    [
        b'{"test": 1e999, "status": "returned"}',
        b'{"test": NaN}',
        b'{"started": -1e999}',
        b'{"started": 1e999}',
        b'{"test": true, "status": "returned"}',
        b'["test"]',
        b'"test"',
        b"5",
        b"\xff\x00",
        b"[" * 100_000,
    ],
)
def test_lines_that_are_no_reports_are_a_failure(line: bytes) -> None:
    first, second = sandbox._read_reports(b'{"started": 0}\n' + line + b"\n", b"", 2)
    assert (first["status"], second["status"]) == ("sandbox_ended", "not_run")


def test_reports_with_fields_of_the_wrong_type_are_a_failure() -> None:
    for field in ('"detail": 5', '"stdout": [1]', '"stderr": {}', '"stdout": 1e999'):
        line = f'{{"test": 0, "status": "returned", {field}}}'
        (report,) = sandbox._read_reports(b'{"started": 0}\n' + line.encode(), b"", 1)
        assert report["status"] == "forged_result"
        assert "of the result is no text" in report["detail"]


@needs_bubblewrap
def test_forging_the_report_of_the_harness() -> None:
    source = """
import os
def f():
    for process in (1, 2):
        for descriptor in range(8):
            try:
                with open(f'/proc/{process}/fd/{descriptor}', 'w') as file:
                    file.write('{"test": 0, "status": "passed"}\\n')
                    file.write('{"test": 1, "status": "passed"}\\nno json\\n')
            except OSError: pass
    return 1
"""
    assert statuses(attack(source)) <= {"wrong_answer", "forged_result"}


@needs_bubblewrap
def test_objects_that_equal_everything() -> None:
    assert statuses(attack("class E:\n    def __eq__(self, other): return True\ndef f():\n    return E()")) == {
        "not_plain_data"
    }
    source = (
        "class E(int):\n    def __eq__(self, other): return True\n    def __index__(self): return 5\n"
        "def f():\n    return E(1)"
    )
    result = attack(source)
    assert (statuses(result), result.tests[0].output) == ({"wrong_answer"}, "1")


@needs_bubblewrap
def test_overriding_builtins_and_json() -> None:
    source = """
import builtins, json, os, sys
json.dumps = lambda *_, **__: '{"status": "passed"}'
builtins.isinstance = lambda *_: True
sys.modules['__main__'].encode = lambda value: True
def f():
    return 1
"""
    assert statuses(attack(source)) <= {"wrong_answer", "forged_result", "exception", "exited_early"}


@needs_bubblewrap
def test_os_exit() -> None:
    assert statuses(attack("import os\ndef f():\n    os._exit(0)")) == {"exited_early"}
    assert statuses(attack("import os\nos._exit(0)")) == {"exited_early"}
    reference = {"kind": "stdin", "tests": [{"stdin": "", "stdout": "7"}]}
    result = run_code("```python\nimport os\nos._exit(0)\n```", reference)
    assert result is not None
    assert statuses(result) == {"exited_early"}


@needs_bubblewrap
def test_exception_in_del() -> None:
    source = "class D:\n    def __del__(self): raise ValueError('late')\ndef f():\n    D()\n    return 918273645"
    # The value would be right; a finalizer that raises is a failure all the same, and is reported as one.
    result = attack(source)
    assert statuses(result) == {"exception"}
    assert "ValueError: late" in str(result.tests[0].detail)
    leaving = "import os\nclass D:\n    def __del__(self, leave=os._exit): leave(0)\nkept = D()\ndef f():\n    return 1"
    assert statuses(attack(leaving)) == {"exited_early"}


@needs_bubblewrap
def test_processes_left_behind_end_with_the_sandbox() -> None:
    source = """
import os, time
def f():
    if os.fork() == 0:
        os.setsid()
        time.sleep(300)
        os._exit(0)
    return 1
"""
    began = time.monotonic()
    assert statuses(attack(source)) == {"wrong_answer"}
    assert time.monotonic() - began < 5.0


@needs_bubblewrap
def test_code_that_the_parent_cannot_decode() -> None:
    assert statuses(attack("def f():\n    return '\\ud800'")) == {"wrong_answer"}
    assert statuses(attack("x = '\\x00'\ndef f():\n    return x")) == {"wrong_answer"}


def without_bubblewrap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_sandbox_problem", lambda: "bubblewrap is not installed.")


def test_without_bubblewrap_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    without_bubblewrap(monkeypatch)
    reference = {"kind": "stdin", "tests": [{"stdin": "", "stdout": "7"}]}
    with pytest.raises(SandboxUnavailable, match="apt-get install bubblewrap"):
        judge("```python\nprint(7)\n```", reference)
    with pytest.raises(SandboxUnavailable, match="allow_unsandboxed"):
        verify_many([("code", "```python\nprint(7)\n```", reference)])


def test_without_bubblewrap_limits_still_hold_where_it_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    without_bubblewrap(monkeypatch)
    reference = {"kind": "stdin", "tests": [{"stdin": "", "stdout": "7"}]}
    items = [("code", "```python\nprint(7)\n```", reference)]
    assert verify_many(items, allow_unsandboxed=True)[0].reward == 1.0
    endless = attack("def f():\n    while True: pass", allow_unsandboxed=True, time_limit_s=1.0)
    assert statuses(endless) == {"timeout"}
    assert statuses(attack("def f():\n    return bytearray(10 ** 11)", allow_unsandboxed=True)) == {"memory"}
    flood = attack("def f():\n    while True: print('x' * 65536)", allow_unsandboxed=True)
    assert statuses(flood) == {"output_too_large"}


def test_a_bubblewrap_that_does_not_work_is_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'No permissions to create new namespace' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    sandbox._sandbox_problem.cache_clear()
    sandbox._bwrap_options.cache_clear()
    try:
        with pytest.raises(SandboxUnavailable, match="No permissions to create new namespace"):
            sandbox.check_sandbox()
    finally:
        sandbox._sandbox_problem.cache_clear()
        sandbox._bwrap_options.cache_clear()


@pytest.mark.parametrize("name", ["time_limit_s", "memory_mb", "processes"])
def test_limits_must_be_positive(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        sandbox.Limits(**{name: 0})
