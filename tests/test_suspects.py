"""Lines of a program under tracing: by hand, and against code that fights the tracer."""

from __future__ import annotations

import time
from typing import Any

import pytest

from mopd.localisation import STEPS
from mopd.suspects import line_spans, suspect_lines, suspect_steps
from mopd.verifiers import sandbox
from mopd.verifiers.code import CodeResult, TestResult, code_span, run_code

ABS = """def absolute(x):
    if x < 0:
        y = x
    else:
        y = x
    return y
"""
TESTS: dict[str, Any] = {
    "kind": "function",
    "entry_point": "absolute",
    "tests": [{"args": [x], "expected": abs(x)} for x in (3, -2, 0)],
}


@pytest.fixture(autouse=True, scope="module")
def needs_sandbox() -> None:
    try:
        sandbox.check_sandbox()
    except sandbox.SandboxUnavailable as error:
        pytest.skip(str(error))


def traced(source: str, reference: dict[str, Any] = TESTS) -> CodeResult:
    result = run_code(f"```python\n{source}\n```", reference, trace=True)
    assert result is not None
    return result


def one(source: str, **options: Any) -> CodeResult:
    return traced(source, {"kind": "function", "entry_point": "f", "tests": [{"args": [], "expected": 1}], **options})


def test_the_lines_of_each_test_by_hand() -> None:
    result = traced(ABS)
    assert [test.status for test in result.tests] == ["passed", "wrong_answer", "passed"]
    assert [test.lines for test in result.tests] == [(1, 2, 5, 6), (1, 2, 3, 6), (1, 2, 5, 6)]
    assert suspect_lines(result) == {1: False, 2: False, 3: True, 5: False, 6: False}


def test_steps_stand_where_the_lines_do() -> None:
    response = f"Here it is:\n```python\n{ABS}```\nDone."
    steps = suspect_steps([("r", response, TESTS), ("none", "no code here, sorry", TESTS)])
    assert dict(steps.schema) == STEPS
    found = [(response[start:end], wrong) for _, _, _, start, end, wrong in steps.rows()]
    assert found == [
        ("def absolute(x):", False),
        ("if x < 0:", False),
        ("y = x", True),
        ("y = x", False),
        ("return y", False),
    ]
    assert code_span(response) == (response.index("def"), response.index("```\nDone"))


def test_without_a_passing_and_a_failing_test_nothing_is_suspect() -> None:
    def result(*tests: TestResult) -> CodeResult:
        return CodeResult(code="", tests=tests, feedback=None)

    passed, failed = TestResult(status="passed", lines=(1, 2)), TestResult(status="timeout", lines=(1, 3))
    assert suspect_lines(result(passed, failed)) == {1: False, 2: False, 3: True}
    assert suspect_lines(result(passed, passed)) is None
    assert suspect_lines(result(failed)) is None
    assert suspect_lines(result(passed, TestResult(status="not_run"))) is None


def test_lines_are_those_of_python() -> None:
    code = "a = 1\r\n  b = 2  \n\n\tc = '\x0c'\rd"
    assert [code[start:end] for start, end in line_spans(code)][:5] == ["a = 1", "b = 2", "", "c = '\x0c'", "d"]


def test_nothing_is_traced_unless_asked() -> None:
    result = run_code(f"```python\n{ABS}```", TESTS)
    assert result is not None
    assert [test.lines for test in result.tests] == [None] * 3


def test_programs_and_threads_are_traced() -> None:
    program = "n = int(input())\nif n > 1:\n    print('many')\nelse:\n    print('one')\n"
    tests = [{"stdin": "1", "stdout": "one"}, {"stdin": "2", "stdout": "two"}]
    result = traced(program, {"kind": "stdin", "tests": tests})
    assert [test.lines for test in result.tests] == [(1, 2, 5), (1, 2, 3)]
    threaded = (
        "from threading import Thread\ndef g():\n    h()\ndef h():\n    pass\ndef f():\n    t = Thread(target=g)\n"
    )
    threaded += "    t.start()\n    t.join()\n    return 1"
    assert one(threaded).tests[0].lines == (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)


def test_lines_outlive_a_crash_and_a_kill() -> None:
    assert one("def f():\n    x = 1\n    return 1 / 0").tests[0].lines == (1, 2, 3)
    began = time.monotonic()
    (endless,) = one("def f():\n    while True:\n        pass", time_limit_s=0.2, total_time_limit_s=0.4).tests
    assert (endless.status, endless.lines) == ("timeout", (1, 2, 3))
    assert time.monotonic() - began < 30
    (gone,) = one("import os\ndef f():\n    os._exit(0)\n    return 1").tests
    assert (gone.status, gone.lines) == ("exited_early", (1, 2, 3))


@pytest.mark.parametrize(
    "body",
    [
        "import sys; sys.settrace(None); return 2",
        "import sys; sys.settrace = None; return 2",
        "import sys; sys.settrace(lambda *a: 1 / 0); return g()",
        "import sys; sys._getframe().f_trace_lines = False; return 2",
        # every mapping of the process, the marks among them, overwritten or closed
        "import gc, mmap\n    for o in gc.get_objects():\n        if isinstance(o, mmap.mmap): o.close()\n    return 2",
        "import gc\n    for o in gc.get_objects():\n"
        "        if type(o).__name__ == 'mmap': o[:] = b'x' * len(o)\n    return 2",
        "import sys\n    frame = sys._getframe()\n    while frame:\n        m = frame.f_locals.get('marks')\n"
        "        if m is not None: m[:] = b'\\xff' * len(m)\n        frame = frame.f_back\n    return 2",
    ],
)
def test_code_that_fights_the_tracer_gains_nothing(body: str) -> None:
    """It can lie about its own lines; it passes no test, ends no harness, and reports no line that it has not."""
    source = f"def g():\n    return 2\ndef f():\n    {body}"
    (test,) = one(source).tests
    assert test.status in ("wrong_answer", "exception")
    assert test.lines is not None
    assert set(test.lines) <= set(range(1, source.count("\n") + 3))


def test_very_long_code_is_traced_up_to_a_limit() -> None:
    (test,) = one("def f():\n    return 1\n" + "x = 1\n" * 20_000).tests
    assert test.status == "passed"
    assert test.lines is not None
    assert test.lines[-1] == 10_000
