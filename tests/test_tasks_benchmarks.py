"""Every benchmark loader on a small file that the test writes: invented rows in the set's real columns."""

from __future__ import annotations

import base64
import json
import logging
import os
import pickle
import zlib
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mopd.tasks import TASKS, load
from mopd.tasks.base import TaskItem
from mopd.tasks.benchmarks import BENCHMARKS, load_benchmark
from mopd.tasks.livecodebench import time_limits
from mopd.tasks.rows import BadRow, HubSource, TaskDataError, read_hub, read_local

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "benchmarks"


def packed(value: object) -> str:
    """As LiveCodeBench packs its private tests."""
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


STDIN_TESTS = [{"input": "2 3\n", "output": "5\n", "testtype": "stdin"}]
LCB = {
    "question_title": "Add",
    "question_content": "Add two integers given on one line.",
    "platform": "atcoder",
    "question_id": "zz1_a",
    "contest_id": "zz1",
    "contest_date": "2025-02-01T00:00:00",
    "starter_code": "",
    "difficulty": "easy",
    "public_test_cases": json.dumps(STDIN_TESTS),
    "private_test_cases": packed(json.dumps([{"input": "-1 1\n", "output": "0\n", "testtype": "stdin"}])),
    "metadata": "{}",
}
LCB_FUNCTION = {
    **LCB,
    "question_content": "Return the sum of the list, plus k.",
    "platform": "leetcode",
    "starter_code": "class Solution:\n    def total(self, nums: List[int], k: int) -> int:\n        ",
    "public_test_cases": json.dumps([{"input": "[1, 2]\n3", "output": "6", "testtype": "functional"}]),
    "private_test_cases": json.dumps([{"input": "[]\n0", "output": "0", "testtype": "functional"}]),
    "metadata": json.dumps({"func_name": "total"}),
}
SCIENCE = {
    "question": "Which of these compounds is the most soluble in water?",
    "answer": "",
    "type": "mcq-4-choices",
    "domain": "Chemistry",
    "details": {"level": "L3", "task": "solubility", "subtask": "solubility_choice", "source": "invented"},
    "answerKey": "C",
    "choices": {"text": ["AgCl", "BaSO4", "NaCl", "CaCO3"], "label": ["A", "B", "C", "D"]},
    "prompt": {"default": "Choose."},
}
TOOLALPACA = {
    "Name": "Lamps",
    "Description": "Lamps in a house",
    "Link": "https://example.org",
    "Category": "Home",
    "NLDocumentation": 'switchLamp: Switch a lamp.\nParameters: {"room": "string.", "on": "boolean."}\nOutput: Done.',
    "Function_Description": {"switchLamp": "Switch a lamp.", "components": ""},
    "Instructions": ["Turn on the lamp in the attic.", "What is the time?", "Turn off the lamp in the cellar."],
    "Golden_Answers": [
        [{"Action": "switchLamp", "Action_Input": '{"room": "attic", "on": true}'}],
        [{"Action": "switchLamp", "Action_Input": "{not json"}],
        [{"Action": "switchLamp", "Action_Input": '{"room": "cellar", "on": false}'}],
    ],
}
MATHARENA = {"problem_idx": 7, "problem": "What is $1+1$?", "answer": "2", "problem_type": ["Algebra"]}
AIME_2024 = {
    "id": 60,
    "problem": "Find $2+2$.",
    "solution": "It is 4.",
    "answer": "4",
    "url": "https://example.org",
    "year": "2024",
}
DEEPMATH = {
    "question": "Evaluate $\\int_0^1 x\\,dx$.",
    "final_answer": "\\dfrac{1}{2}",
    "difficulty": 4.5,
    "topic": "Calculus",
    "r1_solution_1": "...",
}
GSM8K = {
    "question": "A farm sells 3 boxes of 400 eggs. How many eggs?",
    "answer": "3*400=<<3*400=1200>>1200\n#### 1,200",
}
SDPO_MCQ = {
    "idx": 3,
    "kind": "mcq",
    "dataset": "sciknoweval",
    "answer": "B",
    "elo": 1500,
    "prompt": "Which score fits?\n\nA: 0.1\nB: 1.9\nPlease reason step by step.",
    "description": "Which score fits?",
    "tests": "-",
    "embedding": [],
    "system": "\nChoose one.\n",
}
SDPO_TOOL = {
    **SDPO_MCQ,
    "kind": "tooluse",
    "dataset": "tooluse",
    "system": None,
    "prompt": "Turn on the lamp.",
    "tests": None,
    "answer": '[{"Action": "switchLamp", "Action_Input": "{\\"on\\": true}"}, {"Action": "now", "Action_Input": "{}"}]',
}
SDPO_MATH = {
    **SDPO_MCQ,
    "kind": "math",
    "dataset": "math",
    "prompt": "What is 6*7?",
    "answer": "42",
    "system": "",
}
SDPO_CODE = {
    **SDPO_MCQ,
    "kind": "code",
    "dataset": "livecodebench",
    "answer": "-",
    "prompt": "Add two integers.",
    "system": None,
    "tests": json.dumps(
        {
            "inputs": ["2 3\n"],
            "outputs": ["5\n"],
            "testtype": "stdin",
            "fn_name": "",
            "time_limit": 2,
        }
    ),
}
SDPO_FUNCTION = {
    **SDPO_CODE,
    "prompt": "Write total(nums, k).",
    "tests": json.dumps(
        {
            "inputs": ["[1, 2]\n3"],
            "outputs": ["6"],
            "testtype": "functional",
            "fn_name": "total",
            "time_limit": None,
        }
    ),
}
SDPO_KEYWORDS = {
    **SDPO_CODE,
    "prompt": "Write total(nums, k) again.",
    "tests": json.dumps(
        {
            "inputs": [{"nums": [1], "k": 2}],
            "outputs": ["3"],
            "testtype": "functional",
            "fn_name": "total",
            "time_limit": None,
        }
    ),
}

# name of the benchmark -> rows, verifier, and the references that they must give, in order
CASES = {
    "deepmath": ([DEEPMATH], "math", [{"answer": "\\dfrac{1}{2}"}]),
    "aime_2024": ([AIME_2024], "math", [{"answer": "4"}]),
    "aime_2025": ([{**MATHARENA, "answer": 70}], "math", [{"answer": "70"}]),
    "hmmt_feb_2025": ([MATHARENA], "math", [{"answer": "2"}]),
    "hmmt_nov_2025": ([MATHARENA], "math", [{"answer": "2"}]),
    "gsm8k": ([GSM8K], "math", [{"answer": "1200"}]),
    "livecodebench_v6": (
        [LCB, LCB_FUNCTION],
        "code",
        [
            {
                "kind": "stdin",
                "tests": [{"stdin": "2 3\n", "stdout": "5\n"}, {"stdin": "-1 1\n", "stdout": "0\n"}],
                "time_limit_s": 6.0,
                "total_time_limit_s": 12.0,
            },
            {
                "kind": "function",
                "entry_point": "total",
                "tests": [
                    {"args": [[1, 2], 3], "kwargs": {}, "expected": 6},
                    {"args": [[], 0], "kwargs": {}, "expected": 0},
                ],
                "time_limit_s": 6.0,
                "total_time_limit_s": 12.0,
            },
        ],
    ),
    "sciknoweval_chemistry": (
        [
            SCIENCE,
            {**SCIENCE, "details": {"level": "L2"}},
            {**SCIENCE, "domain": "Biology"},
            {**SCIENCE, "type": "filling", "answerKey": "", "answer": "H2O", "choices": {"text": [], "label": []}},
        ],
        "choice",
        [{"answer": "C", "options": 4}],
    ),
    "sciknoweval_biology": ([{**SCIENCE, "domain": "Biology"}, SCIENCE], "choice", [{"answer": "C", "options": 4}]),
    "sciknoweval_physics": ([{**SCIENCE, "domain": "Physics"}, SCIENCE], "choice", [{"answer": "C", "options": 4}]),
    "sciknoweval_materials": ([{**SCIENCE, "domain": "Material"}, SCIENCE], "choice", [{"answer": "C", "options": 4}]),
    "toolalpaca": (
        [
            {
                **TOOLALPACA,
                "Instructions": TOOLALPACA["Instructions"][:1],
                "Golden_Answers": TOOLALPACA["Golden_Answers"][:1],
            }
        ],
        "tool_call",
        [{"calls": [{"name": "switchLamp", "arguments": {"room": "attic", "on": True}}]}],
    ),
    "sdpo": ([SDPO_MCQ], "choice", [{"answer": "B", "options": 2}]),
}


def last_message(item: TaskItem) -> str:
    assert not isinstance(item.prompt, str)
    return item.prompt[-1]["content"]


def write(path: Path, rows: list) -> Path:
    if path.suffix == ".parquet":
        pl.DataFrame(rows).write_parquet(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_benchmark_has_a_case_and_a_row_in_the_table_of_tasks():
    assert set(CASES) == set(BENCHMARKS)
    assert set(BENCHMARKS) <= set(TASKS)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize("name", CASES)
def test_benchmark_is_read_from_a_file_of_its_schema(name, suffix, tmp_path):
    rows, verifier, references = CASES[name]
    loaded = load_benchmark(name, source=write(tmp_path / f"rows{suffix}", rows), strict=True)
    assert [dict(item.reference) for item in loaded.items] == references
    assert {item.verifier for item in loaded.items} == {verifier}
    assert {item.task for item in loaded.items} == {name}
    assert loaded.rows == len(rows)
    assert loaded.bad == ()


@pytest.mark.parametrize("name", CASES)
def test_the_question_is_in_the_prompt(name, tmp_path):
    rows = CASES[name][0]
    item = load(name, source=write(tmp_path / "rows.jsonl", rows))[0]
    columns = ("question", "problem", "question_content", "prompt")
    question = next((rows[0][c] for c in columns if isinstance(rows[0].get(c), str)), None)
    assert (question or rows[0]["Instructions"][0]) in last_message(item)


@pytest.mark.parametrize(
    ("row", "verifier", "reference"),
    [
        (
            SDPO_TOOL,
            "tool_call",
            {"calls": [{"name": "switchLamp", "arguments": {"on": True}}, {"name": "now", "arguments": {}}]},
        ),
        (SDPO_MATH, "math", {"answer": "42"}),
        (
            SDPO_CODE,
            "code",
            {
                "kind": "stdin",
                "tests": [{"stdin": "2 3\n", "stdout": "5\n"}],
                "time_limit_s": 2.0,
                "total_time_limit_s": 2.0,
            },
        ),
        (
            SDPO_FUNCTION,
            "code",
            {
                "kind": "function",
                "entry_point": "total",
                "tests": [{"args": [[1, 2], 3], "kwargs": {}, "expected": 6}],
                "time_limit_s": 6.0,
                "total_time_limit_s": 6.0,
            },
        ),
        (
            SDPO_KEYWORDS,
            "code",
            {
                "kind": "function",
                "entry_point": "total",
                "tests": [{"args": [], "kwargs": {"nums": [1], "k": 2}, "expected": 3}],
                "time_limit_s": 6.0,
                "total_time_limit_s": 6.0,
            },
        ),
    ],
)
def test_sdpo_kinds(row, verifier, reference, tmp_path):
    (item,) = load_benchmark("sdpo", source=write(tmp_path / "rows.jsonl", [row]), strict=True).items
    assert item.verifier == verifier
    assert item.reference == reference


def test_the_time_of_all_tests_grows_with_their_number_up_to_a_ceiling():
    # Four tests that may take 4 s each may take 16 s in all; a hundred of 6 s would be 600 s.
    assert time_limits(4, 4.0) == {"time_limit_s": 4.0, "total_time_limit_s": 16.0}
    assert time_limits(100, 6.0) == {"time_limit_s": 6.0, "total_time_limit_s": 180.0}
    assert time_limits(2, 200.0) == {"time_limit_s": 200.0, "total_time_limit_s": 200.0}


def test_sdpo_prompt_is_taken_over_with_its_system_text(tmp_path):
    items = load("sdpo", source=write(tmp_path / "rows.jsonl", [SDPO_MCQ, SDPO_TOOL]))
    assert items[0].prompt == (
        {"role": "system", "content": "\nChoose one.\n"},
        {"role": "user", "content": SDPO_MCQ["prompt"]},
    )
    assert items[1].prompt == ({"role": "user", "content": "Turn on the lamp."},)


def test_bad_instruction_of_an_api_costs_only_itself(tmp_path):
    loaded = load_benchmark("toolalpaca", source=write(tmp_path / "rows.json", [TOOLALPACA]))
    assert [last_message(item) for item in loaded.items] == [
        "Turn on the lamp in the attic.",
        "Turn off the lamp in the cellar.",
    ]
    assert len(loaded.bad) == 1
    assert "instruction 2" in loaded.bad[0].reason


BAD_ROWS = {
    b"{broken\n": "not JSON",
    b'"text"\n': "expected a JSON object, got str",
    b'{"question": NaN, "answer": "#### 1"}\n': "NaN is not a JSON value",
    b'{"question": "\xff", "answer": "#### 1"}\n': "UTF-8",
    b'{"question": "Q", "answer": "no final value"}\n': "no final value after '####'",
    b'{"question": 5, "answer": "#### 1"}\n': "expected a text in question, got 5",
    b"{}\n": "expected a text in answer",
}


@pytest.mark.parametrize("line", BAD_ROWS)
def test_bad_line_is_named_with_its_reason_and_the_good_ones_are_kept(line, tmp_path, caplog):
    path = tmp_path / "rows.jsonl"
    good = json.dumps(GSM8K).encode() + b"\n"
    path.write_bytes(good + b"\n" + line + json.dumps({**GSM8K, "question": "Another?"}).encode() + b"\n")
    loaded = load_benchmark("gsm8k", source=path)
    assert len(loaded.items) == 2
    (bad,) = loaded.bad
    assert (bad.source, bad.line) == (str(path), 3)  # line 2 is blank
    assert BAD_ROWS[line] in bad.reason
    with pytest.raises(TaskDataError, match=r"rows\.jsonl, row 3: "):
        load_benchmark("gsm8k", source=path, strict=True)
    with caplog.at_level(logging.WARNING):
        assert len(load("gsm8k", source=path)) == 2
    assert "row 3" in caplog.text


def test_repeated_prompt_is_dropped_because_its_group_would_be_twice_as_large(tmp_path):
    loaded = load_benchmark("gsm8k", source=write(tmp_path / "rows.jsonl", [GSM8K, GSM8K]))
    assert len(loaded.items) == 1
    assert loaded.bad[0].line == 2
    assert "repeats" in loaded.bad[0].reason


def test_limit_draws_by_seed_without_replacement(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{**GSM8K, "question": f"What is {n}?"} for n in range(50)])
    first = load("gsm8k", source=path, limit=10, seed=1)
    assert first == load("gsm8k", source=path, limit=10, seed=1)
    assert first != load("gsm8k", source=path, limit=10, seed=2)
    assert len({item.item_id for item in first}) == 10
    assert len(load("gsm8k", source=path, limit=99)) == 50


class Bomb:
    def __reduce__(self):
        return (os.mkdir, (os.environ["BOMB"],))


@pytest.mark.parametrize(
    ("private", "reason"),
    [
        (packed({"a": 1}), "must unpack to a text, got dict"),
        (packed("[1"), "JSONDecodeError"),
        (base64.b64encode(b"no zlib").decode(), "cannot be unpacked"),
        ("???", "cannot be unpacked"),
        (base64.b64encode(zlib.compress(b"")).decode(), "cannot be unpacked"),
        ("{}", "must be a list of objects, got dict"),
    ],
)
def test_damaged_private_tests_are_reported(private, reason, tmp_path):
    lcb = {**LCB, "private_test_cases": private}
    loaded = load_benchmark("livecodebench_v6", source=write(tmp_path / "r.jsonl", [lcb]))
    assert loaded.items == ()
    assert reason in loaded.bad[0].reason


def test_pickle_that_calls_something_is_refused_and_not_run(tmp_path, monkeypatch):
    target = tmp_path / "pwned"
    monkeypatch.setenv("BOMB", str(target))
    lcb = {**LCB, "private_test_cases": packed(Bomb())}
    loaded = load_benchmark("livecodebench_v6", source=write(tmp_path / "r.jsonl", [lcb]))
    assert loaded.items == ()
    assert "asks for posix.mkdir; refused" in loaded.bad[0].reason
    assert not target.exists()


def test_files_that_cannot_be_read_at_all_say_so(tmp_path):
    truncated = write(tmp_path / "t.parquet", [GSM8K])
    truncated.write_bytes(truncated.read_bytes()[:-20])
    (tmp_path / "l.json").write_text("[{]")
    (tmp_path / "x.csv").write_text("a,b")
    for name, message in [
        ("t.parquet", "not a readable parquet file"),
        ("l.json", "not a readable JSON list"),
        ("x.csv", r"ends in '\.csv'; expected one of"),
        ("missing.jsonl", "there is no file"),
    ]:
        with pytest.raises(TaskDataError, match=message):
            load_benchmark("gsm8k", source=tmp_path / name)
    with pytest.raises(TaskDataError, match="give the path of the file as source"):
        load_benchmark("toolalpaca")
    with pytest.raises(ValueError, match="unknown benchmark 'gsm'; known benchmarks: deepmath"):
        load_benchmark("gsm")


@pytest.fixture
def answering(monkeypatch):
    """A hub that is there."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: None)


@pytest.mark.usefixtures("answering")
def test_hub_is_asked_for_repository_configuration_and_split(monkeypatch):
    import datasets

    asked = []

    def fake(path, **options):
        asked.append((path, options))
        return [GSM8K] if path == "openai/gsm8k" else [LCB]

    monkeypatch.setattr(datasets, "load_dataset", fake)
    assert len(load("gsm8k")) == 1
    assert len(load("livecodebench_v6")) == 1
    assert len(load_benchmark("gsm8k", source="openai/gsm8k").items) == 1
    files = ["hf://datasets/livecodebench/code_generation_lite/test6.jsonl"]
    assert asked == [
        ("openai/gsm8k", {"name": "main", "split": "test"}),
        ("json", {"data_files": {"test": files}, "split": "test"}),
        ("openai/gsm8k", {"name": "main", "split": "test"}),
    ]


@pytest.mark.usefixtures("answering")
def test_failed_load_names_the_set_and_the_way_around(monkeypatch):
    import datasets

    def fail(*args, **options):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(TaskDataError, match=r"could not load a/b .*ConnectionError: no route.*path of its"):
        list(read_hub(HubSource(repository="a/b", split="test")))


@pytest.mark.parametrize("files", [(), ("rows.jsonl",)])
def test_unreachable_hub_is_named_at_once(files, monkeypatch, tmp_path):
    """A port where nobody listens: a refused connection, with no second attempt."""
    import huggingface_hub
    from datasets import config
    from huggingface_hub import constants

    def knock(*_, **__):
        return huggingface_hub.get_session().get("http://127.0.0.1:9/")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", knock)
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail(f"waits {seconds} s to ask again"))
    with pytest.raises(TaskDataError, match=r"could not load a/b .*ConnectError: .*local cache does not hold it"):
        list(read_hub(HubSource(repository="a/b", split="test", data_files=files)))
    assert not constants.HF_HUB_OFFLINE


def test_unreachable_hub_leaves_what_is_in_the_cache(monkeypatch, tmp_path):
    import datasets
    import huggingface_hub

    def refused(*_, **__):
        raise OSError("no route")

    def load(path, **_):
        return [{"offline": huggingface_hub.constants.is_offline_mode()}]

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refused)
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert list(read_hub(HubSource(repository="a/b", split="test"))) == [(1, {"offline": True})]
    assert not huggingface_hub.constants.is_offline_mode()


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
JSON_VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=5), SCALARS, max_size=3)
COLUMNS = sorted({column for rows, _, _ in CASES.values() for row in rows for column in row})


@given(
    name=st.sampled_from(sorted(BENCHMARKS)), row=st.dictionaries(st.sampled_from(COLUMNS), JSON_VALUES, max_size=12)
)
def test_no_row_whatever_breaks_a_reader(name, row, tmp_path_factory):
    path = write(tmp_path_factory.mktemp("rows") / "rows.jsonl", [row, *CASES[name][0]])
    loaded = load_benchmark(name, source=path)
    assert [dict(item.reference) for item in loaded.items][-len(CASES[name][2]) :] == CASES[name][2]


@settings(max_examples=300)
@given(column=st.sampled_from(COLUMNS), value=JSON_VALUES)
def test_one_damaged_field_of_a_good_row_breaks_no_reader(column, value, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    for name, (rows, _, _) in CASES.items():
        if column not in rows[0]:
            continue
        loaded = load_benchmark(name, source=write(folder / f"{name}.jsonl", [{**rows[0], column: value}]))
        assert loaded.rows == 1


@given(data=st.binary(max_size=200))
def test_no_bytes_whatever_break_the_reader_of_lines(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_bytes(data)
    try:
        rows = list(read_local(path))
    except TaskDataError:
        return
    assert all(isinstance(row, (dict, BadRow)) for _, row in rows)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared benchmark rows are not here")
@pytest.mark.parametrize(
    ("file", "verifier", "count"),
    [("sciknoweval_biology_rows.jsonl", "choice", 50), ("toolalpaca_rows.jsonl", "tool_call", 40)],
)
def test_real_sdpo_rows_are_read_without_loss(file, verifier, count):
    loaded = load_benchmark("sdpo", source=SHARED / file)
    assert loaded.rows == count
    assert len(loaded.items) + len(loaded.bad) == count
    assert all("repeats" in bad.reason for bad in loaded.bad), loaded.bad
    assert {item.verifier for item in loaded.items} == {verifier}
