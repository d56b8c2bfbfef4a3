"""The embedded suites: sizes, uniqueness, determinism, and that their gold answers are right by their own means."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections import Counter
from datetime import date

import pytest

from mopd.tasks import ALL, TASKS, load
from mopd.tasks.base import TaskItem
from mopd.tasks.embedded import read_data

EMBEDDED = [name for name, suite in TASKS.items() if suite.load is not None]
FOUR = ["math", "code", "science", "tools"]


@pytest.fixture(scope="module")
def suites() -> dict[str, list[TaskItem]]:
    return {name: load(name) for name in EMBEDDED}


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_suite_has_forty_distinct_prompts_of_graded_difficulty(name, suites):
    items = suites[name]
    assert len(items) >= 40
    assert len({item.item_id for item in items}) == len(items)
    assert len({json.dumps(item.prompt) for item in items}) == len(items)
    assert len({item.metadata["difficulty"] for item in items}) >= 4
    for item in items:
        assert item.task == name
        assert json.loads(json.dumps(item.reference)) == item.reference, "references are JSON values"
        assert [m["role"] for m in item.prompt] in (["user"], ["system", "user"])  # type: ignore[index]


@pytest.mark.parametrize("name", EMBEDDED)
def test_seed_decides_and_a_smaller_limit_is_a_prefix(name):
    assert load(name, limit=12, seed=3) == load(name, limit=20, seed=3)[:12]
    assert load(name, limit=12, seed=3) != load(name, limit=12, seed=4)
    assert load(name, limit=0) == []
    with pytest.raises(ValueError, match="at least 0, got -1"):
        load(name, limit=-1)


def test_generated_suites_make_as_many_as_asked_for_in_an_even_mix():
    items = load("arithmetic", limit=200)
    assert len({item.item_id for item in items}) == 200
    counts = Counter(item.metadata["topic"] for item in items)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_all_stands_for_the_four_domains_with_the_limit_for_each():
    items = load(ALL, limit=5)
    assert [item.task for item in items] == [name for name in FOUR for _ in range(5)]


def test_unknown_task_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown task 'maths'; known tasks: all, arithmetic, math, code"):
        load("maths")
    with pytest.raises(ValueError, match="takes no source"):
        load("science", source="x.jsonl")


@pytest.mark.parametrize("name", ["arithmetic", "math"])
def test_gold_answer_of_every_generated_item_gets_the_full_score_of_its_own_scorer(name, suites):
    import reasoning_gym

    for item in suites[name]:
        entry = item.reference["entry"]
        score = reasoning_gym.get_score_answer_fn(item.reference["dataset"])(entry["answer"], entry)  # type: ignore[misc]
        assert score == 1.0, item.item_id


def test_arithmetic_answers_agree_with_the_expression_in_the_prompt(suites):
    for item in suites["arithmetic"]:
        expression = re.search(r"\d[\d +*-]*\d|\d", item.prompt[-1]["content"])  # type: ignore[index]
        assert expression is not None
        assert _value(expression.group()) == int(item.reference["entry"]["answer"])


def _value(expression: str) -> int:
    """Left to right, * before + and -: sums of products of the digits that stand there."""
    total = 0
    for sign, term in re.findall(r"([+-]?)([^+-]+)", expression.replace(" ", "")):
        product = 1
        for factor in term.split("*"):
            product *= int(factor)
        total += -product if sign == "-" else product
    return total


@pytest.mark.parametrize("row", read_data("code"), ids=lambda row: row["id"])
def test_reference_solution_passes_its_tests(row):
    """The expected values were written by hand, apart from the solution, so that each checks the other."""
    assert len(row["tests"]) >= 5
    assert row["signature"].startswith(row["id"] + "(")
    namespace: dict = {}
    exec(row["solution"], namespace)  # our own code, in this repository
    for test in row["tests"]:
        value = namespace[row["id"]](*json.loads(json.dumps(test["args"])))
        assert value == test["expected"], test
        assert type(value) is type(test["expected"]), test


def test_code_tests_tell_a_constant_from_a_solution():
    for row in read_data("code"):
        values = {json.dumps(test["expected"], sort_keys=True) for test in row["tests"]}
        assert len(values) > 1, row["id"]
        assert isinstance(ast.parse(row["solution"]).body[0], ast.FunctionDef)


def test_science_letters_are_balanced_and_options_distinct():
    rows = read_data("science")
    counts = Counter(row["answer"] for row in rows)
    assert set(counts) == set("ABCD")
    assert max(counts.values()) - min(counts.values()) <= 1
    assert {row["topic"] for row in rows} == {"biology", "chemistry", "physics", "earth science", "materials"}
    for row in rows:
        assert len(row["options"]) == len(set(row["options"])) == 4


# Worked again by hand, apart from the data file. What has no number is left to the reader of the file.
SCIENCE_BY_HAND = {
    "chemistry-02": f"{36 / 18:g}",
    "chemistry-05": f"{80 / 2**3:g} g",
    "chemistry-13": f"{10 / 100 * 56:g} g",
    "chemistry-16": f"{0.5 * 0.2 * 58.5:g} g",
    "biology-09": f"{(100 - 2 * 30) // 2}%",
    "physics-01": f"{3 * 4} m/s",
    "physics-03": f"{2 * 5**2 // 2} m",
    "physics-05": f"{4 * 3**2 // 2} J",
    "physics-08": f"{20 * 500 // 100} V",
    "physics-09": f"{6 * 3 // (6 + 3)} ohm",
    "physics-10": f"{12**2 // 4} W",
    "physics-13": f"{2 * 6 // (2 + 4)} m/s",
    "physics-15": f"{(600 - 300) * 100 // 600}%",
    "physics-16": f"{30 * 10 // (30 - 10)} cm",
    "physics-18": f"{200 * 0.1**2 / 2:g} J",
    "materials-05": f"{400 // 2} MPa",
    "materials-06": f"{200_000 // 1000} MPa",
    "materials-12": f"{2000 * 50 / 100_000:g} mm",
}


@pytest.mark.parametrize("question", SCIENCE_BY_HAND)
def test_science_gold_agrees_with_the_calculation(question):
    row = next(row for row in read_data("science") if row["id"] == question)
    assert row["options"]["ABCD".index(row["answer"])] == SCIENCE_BY_HAND[question]


def _check_value(value, schema, where):
    kinds = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list, "object": dict}
    wanted = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    assert any(isinstance(value, kinds[kind]) for kind in wanted), where
    assert not isinstance(value, bool) or "boolean" in wanted, where
    assert value in schema.get("enum", [value]), where
    if isinstance(value, list):
        for each in value:
            _check_value(each, schema["items"], where)
    if isinstance(value, dict) and "properties" in schema:
        assert set(schema["required"]) <= set(value) <= set(schema["properties"]), where
        for name, each in value.items():
            _check_value(each, schema["properties"][name], where)


@pytest.mark.parametrize("row", read_data("tools"), ids=lambda row: row["id"])
def test_gold_calls_fit_the_api_and_every_plain_argument_stands_in_the_request(row):
    functions = {
        f["name"]: f["parameters"]
        for api in read_data("tool_apis")
        if api["name"] == row["api"]
        for f in api["functions"]
    }
    for call in row["calls"]:
        _check_value(call["arguments"], functions[call["name"]], (row["id"], call["name"]))
    for value in _leaves([call["arguments"] for call in row["calls"]]):
        if isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\d", value):
            date.fromisoformat(value)
        elif row["difficulty"] <= 2 and not isinstance(value, bool):
            assert re.search(rf"(?<!\w){re.escape(str(value))}", row["request"], re.IGNORECASE), (row["id"], value)


def _leaves(value):
    if isinstance(value, (dict, list)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _leaves(each)
    else:
        yield value


def test_some_requests_need_two_calls_and_some_nested_arguments():
    rows = read_data("tools")
    assert sum(len(row["calls"]) == 2 for row in rows) >= 5
    assert (
        sum(any(isinstance(v, (dict, list)) for c in row["calls"] for v in c["arguments"].values()) for row in rows)
        >= 8
    )


GOLD_RESPONSES = {
    "science": lambda item: f"The correct answer is {item.reference['answer']}: it is known.",
    "tools": lambda item: (
        "I need these.\n"
        + "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in item.reference["calls"])
    ),
    "math": lambda item: f"So it is \\boxed{{{item.reference['entry']['answer']}}}.",
    "arithmetic": lambda item: f"It is so. Answer: {item.reference['entry']['answer']}",
    "code": lambda item: (
        "```python\n"
        + next(row["solution"] for row in read_data("code") if f"code-{row['id']}" == item.item_id)
        + "```"
    ),
}


@pytest.mark.parametrize("name", EMBEDDED)
def test_verifier_accepts_a_gold_response_in_the_format_asked_for_and_refuses_an_empty_one(name):
    verifiers = pytest.importorskip("mopd.verifiers")
    items = load(name, limit=10)
    if items[0].verifier not in verifiers.VERIFIERS:
        pytest.skip(f"verifier {items[0].verifier!r} is not installed")
    for item in items:
        try:
            verdict = verifiers.verify(item.verifier, GOLD_RESPONSES[name](item), item.reference)
        except verifiers.VerifierUnavailable as error:
            pytest.skip(str(error))
        assert verdict.reward == 1.0, (item.item_id, verdict)
        assert verifiers.verify(item.verifier, "I do not know.", item.reference).reward == 0.0


def test_importing_and_listing_tasks_is_light():
    code = (
        "import sys, mopd.tasks as t; t.load('science', limit=2); "
        "print([m for m in ('torch', 'transformers', 'vllm', 'datasets', 'reasoning_gym') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
