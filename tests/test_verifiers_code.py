from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mopd.verifiers import code, sandbox, verify, verify_many
from mopd.verifiers._harness import encode
from mopd.verifiers.code import CodeResult, extract_code, judge, run_code

SQUARE: dict[str, Any] = {
    "kind": "function",
    "entry_point": "square",
    "tests": [{"args": [number], "expected": number * number} for number in range(3)],
}


@pytest.fixture(autouse=True, scope="module")
def needs_sandbox() -> None:
    try:
        sandbox.check_sandbox()
    except sandbox.SandboxUnavailable as error:
        pytest.skip(str(error))


def run(source: str, reference: dict[str, Any]) -> CodeResult:
    result = run_code(f"```python\n{source}\n```", reference)
    assert result is not None
    return result


def one_test(*args: object, expected: object, name: str = "f", **options: object) -> dict[str, Any]:
    return {
        "kind": "function",
        "entry_point": name,
        "tests": [{"args": list(args), "expected": expected}],
        **options,
    }


def test_a_right_function_passes_every_test() -> None:
    verdict = judge("Here:\n```python\ndef square(x):\n    return x * x\n```\nDone.", SQUARE)
    assert (verdict.reward, verdict.feedback) == (1.0, None)
    assert verdict.answer == "def square(x):\n    return x * x\n"


def test_partial_credit_is_no_success() -> None:
    result = run("def square(x):\n    return x + x", SQUARE)
    # 0 + 0 = 0 * 0 and 2 + 2 = 2 * 2, but 1 + 1 is not 1: two of three.
    assert [test.status for test in result.tests] == ["passed", "wrong_answer", "passed"]
    assert result.fraction == pytest.approx(2 / 3)
    assert not result.success
    verdict = judge("```python\ndef square(x):\n    return x + x\n```", SQUARE)
    assert verdict.reward == 0.0
    assert verdict.feedback == "2 of 3 tests passed. On test 2 the code gave a wrong answer.\nArguments: 1\nOutput: 2"


def test_a_program_reads_and_prints() -> None:
    reference = {
        "kind": "stdin",
        "tests": [{"stdin": "2 3\n", "stdout": "5\n"}, {"stdin": "4 -4", "stdout": "0"}],
    }
    assert run("print(sum(map(int, input().split())))", reference).success
    assert run("import sys\nprint(sum(map(int, sys.stdin.read().split())), '')\nsys.exit(0)", reference).success
    assert run(
        "def main():\n    print(eval(input().replace(' ', '+')))\nif __name__ == '__main__':\n    main()",
        reference,
    ).success
    assert [test.status for test in run("print(5)", reference).tests] == ["passed", "wrong_answer"]
    assert run("print(5)\nraise SystemExit(3)", reference).tests[0].status == "exception"


def test_programs_may_print_from_threads_and_at_exit() -> None:
    reference = {"kind": "stdin", "tests": [{"stdin": "", "stdout": "a\nb\n"}]}
    source = (
        "import atexit, os, threading\natexit.register(lambda: os.write(1, b'b\\n'))\n"
        "threading.Thread(target=lambda: print('a', flush=True)).start()"
    )
    assert run(source, reference).success


def test_a_method_of_class_solution_gets_the_usual_imports() -> None:
    source = "class Solution:\n    def f(self, xs: List[int]) -> int:\n        return Counter(xs).most_common(1)[0][0]"
    assert run(source, one_test([1, 2, 2], expected=2)).success
    assert run(source, one_test([1, 2, 2], expected=2, name="Solution.f")).success


def test_keyword_arguments_and_a_prelude() -> None:
    reference = {"kind": "function", "entry_point": "f", "prelude": "import math",
                 "tests": [{"args": [], "kwargs": {"x": 9}, "expected": 3}]}  # fmt: skip
    assert run("def f(x):\n    return math.isqrt(x)", reference).success


@pytest.mark.parametrize(
    ("expression", "expected", "passes"),
    [
        ("(1, 2)", [1, 2], True),
        ("{2, 1}", [1, 2], True),
        ("{frozenset([1, 2])}", [[1, 2]], True),
        ("{frozenset([1, 2]), frozenset([3])}", [[3], [2, 1]], True),
        ("{frozenset([1, 2])}", [[1, 3]], False),
        ("{frozenset([1, 2])}", {frozenset([2, 1])}, True),
        ("{(1, 2), (2, 1)}", [[2, 1], [1, 2]], True),
        ("{(1, 2)}", [[2, 1]], False),
        ("{(1, frozenset([2, 3]))}", [[1, [3, 2]]], True),
        ("[{frozenset([1]): 2}]", [{"frozenset({1})": 2}], True),
        pytest.param("{10 ** 5000, 1}", [1, 10**5000], True, id="a set with more digits than Python prints"),
        ("{1: 'a'}", {"1": "a"}, True),
        ("1.0", 1, True),
        ("True", 1, False),
        ("1", True, False),
        ("0.1 + 0.2", 0.3, True),
        ("0.31", 0.3, False),
        ("float('nan')", math.nan, True),
        ("'1'", 1, False),
        ("None", None, True),
        ("None", 0, False),
        pytest.param("10 ** 5000", 10**5000, True, id="more digits than Python prints"),
        ("__import__('collections').Counter('aab')", {"a": 2, "b": 1}, True),
        ("[1, [2, (3,)]]", [1, [2, [3]]], True),
        ("[1, 2]", [2, 1], False),
        ("b'x'", "x", False),
    ],
)
def test_values_are_compared_as_plain_data(expression: str, expected: object, passes: bool) -> None:
    assert run(f"def f():\n    return {expression}", one_test(expected=expected)).success is passes


def test_a_set_of_sets_is_shown_and_not_taken_for_tampering() -> None:
    (result,) = run("def f():\n    return {frozenset([1, 2])}", one_test(expected=[[1, 3]])).tests
    assert (result.status, result.output) == ("wrong_answer", "{frozenset({1, 2})}")


def test_numbers_printed_are_close_only_where_the_reference_allows_it() -> None:
    reference = {"kind": "stdin", "tests": [{"stdin": "", "stdout": "0.333333"}]}
    assert not run("print(1 / 3)", reference).success
    assert run("print(1 / 3)", {**reference, "float_tolerance": 1e-5}).success


@pytest.mark.parametrize(
    ("source", "status", "detail"),
    [
        ("def square(x):\n    return x / 0", "exception", "ZeroDivisionError: division by zero (line 2)"),
        ("def square(x) return x", "syntax_error", "SyntaxError"),
        ("def cube(x):\n    return x", "missing_entry_point", "square"),
        ("def square(x):\n    return object()", "not_plain_data", "object"),
        ("import sys\nsys.exit(0)", "exited_early", "SystemExit"),
        ("def square(x):\n    return square(x)", "exception", "RecursionError"),
        ("def square(x):\n    a = []\n    a.append(a)\n    return a", "exception", "RecursionError"),
    ],
)
def test_each_failure_is_named(source: str, status: str, detail: str) -> None:
    result = run(source, SQUARE)
    assert {test.status for test in result.tests} == {status}
    assert detail in str(result.tests[0].detail)
    assert result.fraction == 0.0


def test_tests_do_not_share_state() -> None:
    source = "seen = []\ndef f(x):\n    seen.append(x)\n    return len(seen)"
    tests = [{"args": [0], "expected": 1}, {"args": [0], "expected": 1}]
    assert run(source, {"kind": "function", "entry_point": "f", "tests": tests}).success


@pytest.mark.parametrize(
    ("response", "extracted"),
    [
        ("```python\na = 1\n```\n```python\nb = 2\n```", "b = 2\n"),
        ("```python\na = 1\n```\n```text\nout\n```", "a = 1\n"),
        ("```\na = 1\n```", "a = 1\n"),
        ("```python\na = 1\n", "a = 1\n"),
        ("text\n  ~~~py\na = 1\n  ~~~", "a = 1\n"),
        ("a = 1", "a = 1"),
        ("print(input())", "print(input())"),
        ("<think>```python\nx = 0\n```</think>```python\na = 1\n```", "a = 1\n"),
        ("I cannot do this.", None),
        ("Sorry", None),
        ("42", None),
        ("", None),
        ("```python\n```", None),
    ],
)
def test_code_is_found(response: str, extracted: str | None) -> None:
    assert extract_code(response) == extracted


@given(st.text(max_size=200) | st.text(alphabet="`~\npython a=1 ", max_size=200))
def test_no_text_makes_the_extraction_raise(text: str) -> None:
    assert extract_code(text) is None or isinstance(extract_code(text), str)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.sets(st.integers() | st.frozensets(st.integers(), max_size=3), max_size=3)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(PLAIN)
def test_plain_data_survives_the_channel(value: object) -> None:
    assert code._decode(encode(value)) == value


def test_no_code_is_a_failure_and_a_malformed_reference_is_unjudged() -> None:
    assert verify("code", "I cannot.", SQUARE).reward == 0.0
    for reference in ({}, {"kind": "function", "tests": []}, {"kind": "stdin", "tests": [{"stdin": ""}]}):
        verdict = verify("code", "```python\na = 1\n```", reference)
        assert verdict.reward is None
        assert "ValueError" in str(verdict.feedback)


def test_many_are_judged_in_order() -> None:
    items = [
        ("code", f"```python\ndef square(x):\n    return x * x + {number % 2}\n```", SQUARE) for number in range(8)
    ]
    assert [verdict.reward for verdict in verify_many(items)] == [1.0, 0.0] * 4
