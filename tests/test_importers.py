"""Importing the dumps of other tools: one small file in each real schema, and every kind of damage."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mopd.importers import FORMATS, Imported, ImportFailure, RowError, detect_format, import_rollouts
from mopd.importers.base import FileContext, ImportOptions
from mopd.rollouts import ROLLOUT_SCHEMA, read_rollouts, validate_rollouts

PROMPT = "system\nBe brief.\nuser\nWhat is 2+2?\nassistant\n"
OTHER = "user\nWhat is 3+3?\nassistant\n"
CHATML = "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n"
QUESTION = [{"role": "user", "content": "What is 2+2?"}]
TOKENS = {
    1: "<|im_start|>",
    2: "user\nWhat is 2+2?",
    3: "<|im_end|>\n",
    4: "assistant\n",
    5: "four",
    6: "five",
}


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def verl_row(**changes: Any) -> dict[str, Any]:
    row = {"input": PROMPT, "output": "4", "gts": "4", "score": 1.0, "step": 1, "acc": 1.0, "feedback": ""}
    return row | changes


def write_verl(folder: Path) -> Path:
    write_jsonl(folder / "1.jsonl", [verl_row(), verl_row(output="5", score=0.0, feedback="Not 5.", pred="5")])
    write_jsonl(folder / "10.jsonl", [verl_row(step=10), verl_row(step=10, output="6", score=math.nan)])
    write_jsonl(folder / "2.jsonl", [verl_row(step=2, input=OTHER)])
    return folder


def write_candidates(folder: Path) -> Path:
    base = {
        "prompt_id": "p",
        "uid": "p",
        "prompt": PROMPT,
        "success": True,
        "summary_text": None,
        "rollout_step": 1,
    }
    rows = [
        base | {"response_id": "p_r0", "response_text": "4", "reward": 1.0, "feedback_text": "", "pred": "4"},
        base | {"response_id": "p_r1", "response_text": "5", "reward": 0.0, "feedback_text": "Not 5."},
        base | {"response_id": "p_r2", "response_text": "4", "reward": 1.0, "rollout_step": 2},
    ]
    (folder / "dataset_summary.json").write_text("{}")
    write_jsonl(folder / "evidence_items.jsonl", [{"evidence_id": "e", "text": "4"}])
    write_jsonl(folder / "candidate_responses.jsonl", rows)
    return folder


def write_trl(folder: Path) -> Path:
    table = {
        "step": ["5", "5", "5"],
        "prompt": [CHATML] * 3,
        "completion": ["4", "5", "6"],
        "accuracy_reward": [1.0, 0.0, None],
        "advantage": [0.7, -0.7, 0.0],
    }
    pl.DataFrame(table).write_parquet(folder / "completions_00005.parquet")
    return folder


def write_verifiers(folder: Path) -> Path:
    base = {
        "example_id": 0,
        "prompt": QUESTION,
        "answer": "4",
        "task": "sums",
        "is_completed": True,
        "metrics": {},
    }
    say = lambda text: [{"role": "assistant", "content": text}]  # noqa: E731
    tool = [
        {"role": "assistant", "content": None, "tool_calls": ['{"name": "add"}']},
        {"role": "tool", "content": "4"},
    ]
    rows = [
        base | {"completion": say("4"), "reward": 1.0, "is_truncated": False, "error": None},
        base | {"completion": say("5"), "reward": 0.0, "is_truncated": True, "error": None},
        base | {"completion": say("?"), "reward": 0.0, "error": {"error": "TimeoutError"}},
        base | {"completion": [*tool, *say("4")], "reward": 1.0, "error": None},
    ]
    meta = {"env_id": "sums-env", "model": "tiny", "sampling_args": {"temperature": 1.0, "max_tokens": 64}}
    (folder / "metadata.json").write_text(json.dumps(meta))
    write_jsonl(folder / "results.jsonl", rows)
    return folder


def trace(text: str, rewards: dict[str, Any], finish: str = "stop", **changes: Any) -> dict[str, Any]:
    nodes = [
        {"message": QUESTION[0], "sampled": False, "token_ids": [1, 2, 3], "mask": [False] * 3},
        {
            "parent": 0,
            "message": {"role": "assistant", "content": text, "reasoning_content": "Hm."},
            "sampled": True,
            "token_ids": [1, 4, 5, 9],
            "mask": [False, False, True, True],
        },
    ]
    call = {"node": 1, "model": "tiny", "finish_reason": finish, "sampling": {"temperature": 0.7, "seed": 3}}
    task = {"type": "Sums", "data": {"idx": 7, "prompt": "What is 2+2?"}, "key": "k7"}
    return {
        "version": 1,
        "id": text,
        "task": task,
        "nodes": nodes,
        "calls": [call],
        "rewards": rewards,
    } | changes


def write_traces(folder: Path) -> Path:
    rows = [
        trace("4", {"right": {"score": 1.0, "weight": 0.75}, "form": {"score": 1.0, "weight": 0.25}}),
        trace("5", {"right": {"score": 0.0, "weight": 0.75}, "form": {"score": 1.0, "weight": 0.25}}, "length"),
        trace("6", {"right": None, "form": {"score": 1.0}}),
        trace("7", {"right": {"score": 0.0}}, errors=[{"type": "E", "message": "m"}]),
    ]
    write_jsonl(folder / "step_3" / "traces.jsonl", rows)
    return folder


def write_nemo(folder: Path) -> Path:
    def row(index: int, text: str, reward: float, **more: Any) -> dict[str, Any]:
        logged = {"generation_logprobs": [[0.0] * 6], "prev_logprobs": [[0.0] * 6], "advantages": [[0.5] * 6]}
        ids = {"token_ids": [[1, 2, 3, 4, 5, 0]], "token_loss_mask": [[0, 0, 0, 0, 1, 0]], "sample_loss_mask": [1.0]}
        record = {"content": [[CHATML, text]], "rewards": [reward], "input_lengths": [5], "idx": index}
        return record | logged | ids | more

    rows = [row(0, "4", 1.0), row(1, "5", 1.0, filtered_rewards=[0.0])]
    write_jsonl(folder / "train_data_step12.jsonl", rows)
    return folder


def write_open_instruct(folder: Path) -> Path:
    base = {
        "step": 4,
        "prompt_idx": 0,
        "prompt_tokens": [1, 2, 3, 1, 4],
        "advantage": 0.0,
        "dataset": "gsm8k",
    }
    rows = [
        base | {"sample_idx": 0, "response_tokens": [5, 3], "reward": 10.0, "finish_reason": "stop"},
        base | {"sample_idx": 1, "response_tokens": [6], "reward": 0.0, "finish_reason": "length"},
    ]
    write_jsonl(folder / "run_metadata.jsonl", [{"run_name": "run", "model_name": "tiny"}])
    write_jsonl(folder / "run_rollouts_000000.jsonl", rows)
    return folder


def inspect_sample(epoch: int, text: str, score: Any, **changes: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "source": "generate"}
    sample = {
        "id": "s1",
        "epoch": epoch,
        "input": "What is 2+2?",
        "target": "4",
        "messages": [{"role": "system", "content": "Be brief."}, QUESTION[0], message],
        "output": {"model": "tiny", "choices": [{"message": message, "stop_reason": "stop"}]},
        "scores": {"match": {"value": score, "answer": text, "explanation": f"expected 4, got {text}"}},
        "attachments": {},
    }
    return sample | changes


def inspect_log(samples: list[dict[str, Any]]) -> dict[str, Any]:
    run = {
        "run_id": "r",
        "task_id": "t",
        "task": "sums",
        "model": "tiny",
        "model_generate_config": {"top_p": 0.9},
    }
    return {"version": 2, "status": "success", "eval": run, "plan": {"steps": []}, "samples": samples}


def write_inspect(folder: Path) -> Path:
    long = [QUESTION[0] | {"content": "attachment://abc"}]
    samples = [
        inspect_sample(1, "4", "C"),
        inspect_sample(2, "5", "I"),
        inspect_sample(3, "?", math.nan),
        inspect_sample(4, "4", 1.0, messages=[], input=long, attachments={"abc": "A long question"}),
    ]
    (folder / "log.json").write_text(json.dumps(inspect_log(samples), indent=1))
    return folder


def write_slime(folder: Path) -> Path:
    import torch

    base = {"group_index": 0, "prompt": CHATML, "tokens": [1, 2, 3, 4, 5], "response_length": 2, "label": "4"}
    base |= {"multimodal_inputs": None, "weight_versions": ["3"], "rollout_log_probs": [-0.1, -0.2], "metadata": {}}
    base |= {"remove_sample": False, "train_metadata": None, "session_id": None, "non_generation_time": 0.0}
    base |= {"spec_info": {"spec_verify_ct": 0}, "prefix_cache_info": {"cached_tokens": 0, "total_prompt_tokens": 3}}
    samples = [
        base | {"index": 0, "response": "4", "reward": 1.0, "status": "completed", "loss_mask": None},
        base | {"index": 1, "response": "5", "reward": 0, "status": "truncated", "loss_mask": [1, 1]},
        base | {"index": 2, "response": "", "reward": 0, "status": "aborted"},
        base | {"index": 3, "response": "tool", "reward": 1, "status": "completed", "loss_mask": [1, 0]},
    ]
    torch.save({"rollout_id": 9, "samples": samples}, folder / "rollout_data_9.pt")
    return folder


def decode(token_ids: list[int], /, *, skip_special_tokens: bool) -> str:
    return "".join(TOKENS[i] for i in token_ids if not (skip_special_tokens and i in (1, 3)))


WRITERS: dict[str, Callable[[Path], Path]] = {
    "mopd-candidates": write_candidates,
    "verl": write_verl,
    "trl": write_trl,
    "verifiers": write_verifiers,
    "traces": write_traces,
    "nemo-rl": write_nemo,
    "open-instruct": write_open_instruct,
    "inspect": write_inspect,
    "slime": write_slime,
}
MESSAGES_ONLY = {"verifiers", "traces"}


def imported(folder: Path, name: str, **settings: Any) -> Imported:
    return import_rollouts(WRITERS[name](folder), decode=decode, **settings)


def test_every_format_has_a_file_here() -> None:
    assert set(WRITERS) == set(FORMATS)


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_of_each_format_is_recognised_and_read(tmp_path: Path, name: str) -> None:
    frame, report = (result := imported(tmp_path, name)).frame, result.report
    assert report.format == name == detect_format(tmp_path)
    assert frame.schema == pl.Schema(ROLLOUT_SCHEMA)
    assert report.rows_kept == frame.height > 1
    assert sum(size * n for size, n in report.group_sizes.items()) == frame.height
    assert report.success + report.failure + report.unjudged == frame.height
    assert frame["rollout_id"].is_unique().all()
    assert frame["source"][0].startswith(f"{name}:")
    assert validate_rollouts(frame, success_threshold=1.0).equals(frame)
    frame.write_parquet(tmp_path / "rollouts.parquet")
    assert read_rollouts(tmp_path / "rollouts.parquet").equals(frame)


@pytest.mark.parametrize("name", WRITERS)
def test_two_imports_agree_wherever_the_files_lie(tmp_path: Path, name: str) -> None:
    first, second = tmp_path / "a", tmp_path / "elsewhere"
    first.mkdir()
    second.mkdir()
    assert imported(first, name).frame.equals(imported(second, name).frame)


@pytest.mark.parametrize("name", WRITERS)
def test_prompt_as_text(tmp_path: Path, name: str) -> None:
    if name in MESSAGES_ONLY:
        with pytest.raises(ImportFailure, match="prompt is chat messages, not text"):
            imported(tmp_path, name, prompt_as="text")
        return
    if name == "inspect":  # its input is text, its conversations are not
        (tmp_path / "log.json").write_text(json.dumps(inspect_log([inspect_sample(1, "4", "C", messages=[])])))
        assert import_rollouts(tmp_path, prompt_as="text").frame["prompt"].to_list() == ["What is 2+2?"]
        return
    frame = imported(tmp_path, name, prompt_as="text").frame
    assert frame.schema["prompt"] == pl.String
    assert frame["prompt"][0].endswith("assistant\n")


def test_verl(tmp_path: Path) -> None:
    result = imported(tmp_path, "verl", policy="tiny", task="sums")
    rows = result.frame.to_dicts()
    # one prompt at steps 1 and 10 is two groups; files come in the order of their numbers
    assert result.frame["step"].to_list() == [1, 1, 2, 10, 10]
    assert result.frame["group_id"].n_unique() == 3
    assert rows[0]["prompt"] == [{"role": "system", "content": "Be brief."}, QUESTION[0]]
    assert [r["success"] for r in rows] == [True, False, True, True, None]
    assert (rows[1]["feedback"], rows[1]["answer"], rows[0]["feedback"]) == ("Not 5.", "5", None)
    assert rows[4]["reward"] is None  # NaN is unjudged
    assert (rows[0]["policy"], rows[0]["task"], rows[0]["finished"]) == ("tiny", "sums", None)
    assert rows[0]["source"] == "verl:1.jsonl"


def test_verl_without_a_step_takes_it_from_the_name(tmp_path: Path) -> None:
    row = verl_row()
    del row["step"]
    assert import_rollouts(write_jsonl(tmp_path / "70.jsonl", [row])).frame["step"].to_list() == [70]
    assert import_rollouts(write_jsonl(tmp_path / "dump.jsonl", [row])).frame["step"].to_list() == [None]


def test_verl_falls_back_on_acc_and_says_so(tmp_path: Path) -> None:
    result = import_rollouts(write_jsonl(tmp_path / "1.jsonl", [verl_row(score=None, acc=True)]))
    assert result.frame["success"].to_list() == [True]
    assert any("'acc'" in note for note in result.report.notes)


def test_candidates_are_taken_apart_by_step(tmp_path: Path) -> None:
    result = imported(tmp_path, "mopd-candidates")
    assert result.frame["group_id"].n_unique() == 2
    assert result.report.group_sizes == {1: 1, 2: 1}
    assert result.frame["feedback"].to_list() == [None, "Not 5.", None]
    assert not result.report.dropped  # the files beside it are no fault


def test_trl(tmp_path: Path) -> None:
    frame = imported(tmp_path, "trl").frame
    assert frame["reward"].to_list() == [1.0, 0.0, None]
    assert frame["step"].to_list() == [5, 5, 5]
    assert frame["prompt"].to_list() == [QUESTION] * 3


def test_trl_takes_no_column_of_text_for_a_reward_where_it_is_null(tmp_path: Path) -> None:
    write_trl(tmp_path)
    path = tmp_path / "completions_00005.parquet"
    logged = pl.read_parquet(path).with_columns(note=pl.Series(["ok", None, None]), nothing=pl.lit(None))
    logged.write_parquet(path)
    result = import_rollouts(tmp_path, strict=True)
    assert result.frame["reward"].to_list() == [1.0, 0.0, None]


def test_trl_with_several_rewards_asks(tmp_path: Path) -> None:
    write_trl(tmp_path)
    path = tmp_path / "completions_00005.parquet"
    pl.read_parquet(path).with_columns(format_reward=pl.lit(0.5)).write_parquet(path)
    with pytest.raises(ImportFailure, match="accuracy_reward, format_reward; say which with reward_key"):
        import_rollouts(tmp_path)
    assert import_rollouts(tmp_path, reward_key="accuracy_reward").frame["reward"].to_list() == [
        1.0,
        0.0,
        None,
    ]
    both = import_rollouts(tmp_path, reward_key="accuracy_reward+format_reward")
    assert both.frame["reward"].to_list() == [1.5, 0.5, None]
    with pytest.raises(ImportFailure, match="no column 'right'"):
        import_rollouts(tmp_path, reward_key="right")


def test_verifiers(tmp_path: Path) -> None:
    result = imported(tmp_path, "verifiers")
    rows = result.frame.to_dicts()
    assert [r["success"] for r in rows] == [True, False, None]  # an error is not a failure
    assert [r["finished"] for r in rows] == [True, False, None]
    assert (rows[0]["policy"], rows[0]["task"], rows[0]["answer"]) == ("tiny", "sums", None)
    assert rows[0]["sampling"] == {"temperature": 1.0, "top_p": None, "max_tokens": 64, "seed": None}
    (drop,) = result.report.dropped
    assert drop.reason.startswith("several sampled turns")
    assert drop.examples[0].startswith("results.jsonl:4")


def test_traces(tmp_path: Path) -> None:
    rows = imported(tmp_path, "traces").frame.to_dicts()
    # 0.75 * 1 + 0.25 * 1; 0.75 * 0 + 0.25 * 1; a part not scored; an error
    assert [r["reward"] for r in rows] == [1.0, 0.25, None, None]
    assert rows[0]["response"] == "<think>\nHm.\n</think>\n\n4"
    assert rows[0]["response_ids"] == [5, 9]
    assert [r["finished"] for r in rows[:2]] == [True, False]
    assert (rows[0]["policy"], rows[0]["task"], rows[0]["step"]) == ("tiny", "Sums", 3)
    assert (rows[0]["sampling"]["temperature"], rows[0]["sampling"]["seed"]) == (0.7, 3)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"parent": 5}, "graph is broken"),
        ({"parent": 1}, "graph is broken"),
        ({"mask": [True]}, "'mask' does not match"),
    ],
)
def test_a_broken_trace_is_dropped(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    bad = trace("4", {})
    bad["nodes"][1] |= change
    result = import_rollouts(write_jsonl(tmp_path / "traces.jsonl", [trace("5", {}), bad]))
    assert result.frame.height == 1
    assert reason in result.report.dropped[0].reason


def test_nemo(tmp_path: Path) -> None:
    rows = imported(tmp_path, "nemo-rl").frame.to_dicts()
    assert [r["reward"] for r in rows] == [1.0, 0.0]  # the second has the filtered reward
    assert rows[0]["response_ids"] == [5]
    assert (rows[0]["step"], rows[0]["prompt"], rows[0]["response"]) == (12, QUESTION, "4")


def test_open_instruct(tmp_path: Path) -> None:
    result = imported(tmp_path, "open-instruct", success_threshold=10.0)
    rows = result.frame.to_dicts()
    assert rows[0]["prompt"] == QUESTION
    assert (rows[0]["response"], rows[0]["response_ids"]) == ("four", [5, 3])
    assert [(r["success"], r["finished"]) for r in rows] == [(True, True), (False, False)]
    assert (rows[0]["policy"], rows[0]["task"], rows[0]["step"]) == ("tiny", "gsm8k", 4)
    with pytest.raises(ImportFailure, match=r"pass decode=tokenizer\.decode"):
        import_rollouts(tmp_path)


def test_inspect(tmp_path: Path) -> None:
    rows = imported(tmp_path, "inspect").frame.to_dicts()
    assert [r["success"] for r in rows] == [True, False, None, True]
    assert rows[0]["prompt"] == [{"role": "system", "content": "Be brief."}, QUESTION[0]]
    assert rows[3]["prompt"] == [{"role": "user", "content": "A long question"}]
    assert len({r["group_id"] for r in rows[:3]}) == 1  # the epochs of a sample
    assert (rows[1]["answer"], rows[1]["feedback"]) == ("5", "expected 4, got 5")
    assert (rows[0]["policy"], rows[0]["task"], rows[0]["finished"]) == ("tiny", "sums", True)
    assert rows[0]["sampling"]["top_p"] == 0.9


def test_inspect_with_several_scorers_asks(tmp_path: Path) -> None:
    scores = {"a": {"value": "C"}, "b": {"value": {"x": 0.0, "y": 1.0}}}
    (tmp_path / "log.json").write_text(json.dumps(inspect_log([inspect_sample(1, "4", "C", scores=scores)])))
    with pytest.raises(ImportFailure, match="several scorers: a, b"):
        import_rollouts(tmp_path)
    with pytest.raises(ImportFailure, match="several values: x, y"):
        import_rollouts(tmp_path, reward_key="b")
    assert import_rollouts(tmp_path, reward_key="b/x").frame["reward"].to_list() == [0.0]


def test_an_inspect_log_cut_in_the_middle_keeps_its_whole_samples(tmp_path: Path) -> None:
    write_inspect(tmp_path)
    text = (tmp_path / "log.json").read_text()
    (tmp_path / "log.json").write_text(text[: text.index('"epoch": 3')])
    result = import_rollouts(tmp_path)
    assert result.frame["success"].to_list() == [True, False]
    assert result.report.dropped[0].reason == "malformed JSON"
    assert result.report.dropped[0].examples[0].startswith("log.json:3")


def test_slime(tmp_path: Path) -> None:
    result = imported(tmp_path, "slime")
    rows = result.frame.to_dicts()
    assert [(r["success"], r["finished"], r["response_ids"]) for r in rows] == [
        (True, True, [4, 5]),
        (False, False, [4, 5]),
    ]
    assert rows[0]["step"] == 9
    assert {d.count for d in result.report.dropped} == {1}
    assert len(result.report.dropped) == 2


def test_an_evaluation_of_slime_is_kept_apart_from_the_training_of_its_step(tmp_path: Path) -> None:
    import torch

    write_slime(tmp_path)
    torch.save(torch.load(tmp_path / "rollout_data_9.pt"), tmp_path / "rollout_data_eval_9.pt")
    frame = imported(tmp_path, "slime").frame
    assert frame["source"].unique(maintain_order=True).to_list() == [
        "slime:rollout_data_9.pt",
        "slime:rollout_data_eval_9.pt",
    ]
    assert frame["group_id"].n_unique() == 2
    assert frame["step"].unique().to_list() == [9]


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    import torch

    class Attack:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"rollout_id": 1, "samples": [Attack()]}, tmp_path / "rollout.pt")
    with pytest.raises(ImportFailure, match="weights_only=True"):
        import_rollouts(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("score", "reward", "note"),
    [
        (True, 1.0, False),
        ("0.5", 0.5, True),
        (" 1 ", 1.0, True),
        ("nan", None, True),
        (None, None, False),
        (1, 1.0, False),
    ],
)
def test_scores_that_are_read(tmp_path: Path, score: Any, reward: float | None, note: bool) -> None:
    result = import_rollouts(write_jsonl(tmp_path / "1.jsonl", [verl_row(score=score, acc=None)]))
    assert result.frame["reward"].to_list() == [reward]
    assert ("reward was a number written as text" in result.report.notes) is note


BAD_LINES = [
    (b'{"input": "x", "output"', "malformed JSON"),
    (b"[1, 2]", "a line is not a JSON object"),
    (b"\xff\xfe{}", "not UTF-8"),
    (json.dumps(verl_row(score="correct")).encode(), "field 'score' is text that is not a number"),
    (json.dumps(verl_row(score=[1])).encode(), "field 'score' is not a number"),
    (json.dumps(verl_row(score=math.inf)).encode(), "field 'score' is infinite"),
    (json.dumps(verl_row(score=10**400)).encode(), "field 'score' is infinite"),
    (b'{"input": "x", "score": ' + b"1" * 5000 + b"}", "malformed JSON"),
    (b"[" * 100_000, "malformed JSON"),
    (json.dumps({"input": PROMPT, "score": 1}).encode(), "field 'output' is missing"),
    (json.dumps(verl_row(output=None)).encode(), "field 'output' is missing"),
    (json.dumps(verl_row(output=5)).encode(), "field 'output' is not text"),
    (json.dumps(verl_row(output="\ud800")).encode(), "field 'output' has an unpaired surrogate"),
    (json.dumps(verl_row(step="one")).encode(), "field 'step' is not a whole number"),
    (json.dumps(verl_row(step=2**70)).encode(), "field 'step' is not a whole number"),
    (json.dumps(verl_row(input="Q: 2+2? A:")).encode(), "prompt text ends in no assistant header"),
    (json.dumps(verl_row(output="x" * 5000)).encode(), "line too long"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES, ids=[f"{i}" for i in range(len(BAD_LINES))])
@pytest.mark.parametrize("last", [False, True])
def test_a_bad_line_is_reported_by_place_and_the_rest_is_kept(
    tmp_path: Path, line: bytes, reason: str, last: bool
) -> None:
    good = json.dumps(verl_row()).encode()
    path = tmp_path / "1.jsonl"
    path.write_bytes(b"\n".join([good, b"", line] if last else [good, b"", line, good]))
    limit = 4000 if reason == "line too long" else 2**20
    result = import_rollouts(path, max_line_bytes=limit)
    assert result.frame.height == (1 if last else 2)
    assert result.report.rows_read == result.frame.height + 1
    (drop,) = result.report.dropped
    assert drop.reason.startswith(reason)
    assert drop.examples[0].startswith("1.jsonl:3")
    assert "1.jsonl:3" in str(result.report)
    with pytest.raises(ImportFailure, match=f"1.jsonl:3: {reason}"):
        import_rollouts(path, strict=True, max_line_bytes=limit)


def test_a_line_of_100_megabytes_is_not_held_in_memory(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "1.jsonl"
    with path.open("wb") as stream:
        stream.write(json.dumps(verl_row()).encode() + b"\n")
        for _ in range(100):
            stream.write(b" " * 2**20)
        stream.write(b"\n" + json.dumps(verl_row()).encode())
    tracemalloc.start()
    result = import_rollouts(path, max_line_bytes=2**20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result.frame.height == 2
    assert result.report.dropped[0].examples == ("1.jsonl:2: 100 MiB, the limit is 1 MiB",)
    assert peak < 16 * 2**20


def test_a_truncated_parquet_file_is_reported_and_the_others_are_kept(tmp_path: Path) -> None:
    write_trl(tmp_path)
    whole = (tmp_path / "completions_00005.parquet").read_bytes()
    (tmp_path / "completions_00006.parquet").write_bytes(whole[: len(whole) // 2])
    result = import_rollouts(tmp_path)
    assert result.frame.height == 3
    assert result.report.dropped[0].examples[0].startswith("completions_00006.parquet")
    with pytest.raises(ImportFailure, match=r"completions_00006\.parquet"):
        import_rollouts(tmp_path, strict=True)
    with pytest.raises(ImportFailure, match="not a readable parquet file"):
        import_rollouts(tmp_path / "completions_00006.parquet", format="trl")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "latin-1"])
def test_another_encoding_is_named(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "1.jsonl"
    path.write_bytes(json.dumps(verl_row(output="é"), ensure_ascii=False).encode(encoding))
    with pytest.raises(ImportFailure, match=r"not UTF-8|malformed JSON"):
        import_rollouts(path, format="verl")
    with pytest.raises(ImportFailure, match=r"unknown format: (not UTF-8|line 1: (not UTF-8|malformed JSON))"):
        import_rollouts(path)


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "1.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(verl_row()).encode())
    assert import_rollouts(path, strict=True).frame.height == 1


def test_what_is_no_dump_is_refused_with_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(ImportFailure, match="nothing to import"):
        import_rollouts(tmp_path)
    with pytest.raises(ImportFailure, match="hf:// paths are read without an import"):
        import_rollouts("hf://datasets/a/b.parquet")
    other = write_jsonl(tmp_path / "x.jsonl", [{"question": "?", "gold": 1}])
    with pytest.raises(ImportFailure, match=r"unknown format: fields question, gold\. Known formats"):
        import_rollouts(other)
    with pytest.raises(ImportFailure, match="unknown format 'vrl'; known are auto, mopd-candidates, verl"):
        import_rollouts(other, format="vrl")
    own = write_jsonl(tmp_path / "own" / "x.jsonl", [{"group_id": "g", "prompt": "p", "response": "r"}])
    with pytest.raises(ImportFailure, match="it needs no import"):
        import_rollouts(own)


def test_a_folder_of_two_formats_asks(tmp_path: Path) -> None:
    write_verl(tmp_path)
    write_trl(tmp_path)
    with pytest.raises(ImportFailure, match=r"several formats: verl \(3 files\), trl \(1 files\)"):
        import_rollouts(tmp_path)
    assert import_rollouts(tmp_path, format="trl").frame.height == 3
    assert import_rollouts(tmp_path / "*.jsonl").report.files == ("1.jsonl", "2.jsonl", "10.jsonl")


def test_runs_in_different_folders_are_different_groups(tmp_path: Path) -> None:
    for run in ("a", "b"):
        write_jsonl(tmp_path / run / "1.jsonl", [verl_row()])
    assert import_rollouts(tmp_path).frame["group_id"].n_unique() == 2


def test_equal_rollouts_have_ids_of_their_own(tmp_path: Path) -> None:
    frame = import_rollouts(write_jsonl(tmp_path / "1.jsonl", [verl_row()] * 3)).frame
    assert frame["rollout_id"].n_unique() == 3
    assert frame["group_id"].n_unique() == 1


def test_the_report_tells_where_everything_came_from(tmp_path: Path) -> None:
    write_verl(tmp_path)
    with (tmp_path / "2.jsonl").open("a") as stream:
        stream.write("not json\n")
    text = str(import_rollouts(tmp_path).report)
    assert "more" not in text
    for part in (
        "verl: rollout_data_dir/*.jsonl",
        "3: 1.jsonl, 2.jsonl, 10.jsonl",
        "6 read, 5 kept, 1 dropped",
        "3 (1 of 1, 2 of 2)",
        "3 (1 to 10)",
        "3 success, 1 failure, 1 unjudged (success: reward >= 1)",
        "dropped   1: malformed JSON",
        "2.jsonl:2: Expecting value",
        "prompt text was split as words-on-lines",
    ):
        assert part in text, text


def test_every_dropped_line_is_kept_up_to_a_thousand_and_three_are_printed(tmp_path: Path) -> None:
    path = tmp_path / "1.jsonl"
    path.write_text(json.dumps(verl_row()) + "\n" + "not json\n" * 1005)
    report = import_rollouts(path).report
    (drop,) = report.dropped
    assert drop.count == 1005
    assert [place.split(":")[1] for place in drop.examples] == [str(n) for n in range(2, 1002)]  # 1,000 from line 2
    assert "1.jsonl:4: " in str(report)
    assert "1.jsonl:5: " not in str(report)
    assert "            and 1002 more" in str(report)  # 1,005 without the 3 printed


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
QUIET = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)


def good_records(name: str, folder: Path) -> list[dict[str, Any]]:
    path = WRITERS[name](folder)
    files = [p for p in sorted(path.rglob("*")) if p.suffix == FORMATS[name].suffix and "metadata" not in p.name]
    items = [item for file in files for item in FORMATS[name].read(file, ImportOptions())]
    return [dict(item.record) for item in items if item.record]


@pytest.mark.parametrize("name", FORMATS)
def test_any_damage_to_a_record_is_a_row_error_or_a_failure(tmp_path: Path, name: str) -> None:
    records = good_records(name, tmp_path)
    side = {"numeric": ["accuracy_reward"]} if name == "trl" else {}
    context = FileContext(path=tmp_path / "x", relative="x", options=ImportOptions(decode=decode), side=side)

    @QUIET
    @given(st.data())
    def damaged(data: st.DataObject) -> None:
        record = dict(data.draw(st.sampled_from(records)))
        for key in data.draw(st.lists(st.sampled_from(sorted(record)), min_size=1, max_size=2)):
            record[key] = data.draw(JSON | messages_of_anything())
        try:
            row = FORMATS[name].parse(record, context)
        except (RowError, ImportFailure):
            return
        assert isinstance(row.response, str)
        assert row.prompt
        assert row.reward is None or math.isfinite(row.reward)

    damaged()


def messages_of_anything() -> st.SearchStrategy[Any]:
    message = st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant"]) | JSON, "content": JSON},
        optional={"tool_calls": JSON, "reasoning_content": JSON, "source": JSON},
    )
    node = st.fixed_dictionaries({"message": message | JSON, "sampled": st.booleans(), "parent": JSON})
    scores = st.dictionaries(st.text(max_size=3), st.fixed_dictionaries({"value": JSON, "score": JSON}), max_size=2)
    return st.lists(message, max_size=3) | st.lists(node, max_size=3) | scores


def as_line(value: Any) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.parametrize("name", FORMATS)
def test_any_bytes_are_read_or_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"file{FORMATS[name].suffix}"
    (tmp_path / "good").mkdir()
    good = [json.dumps(r, default=str).encode() for r in good_records(name, tmp_path / "good")]

    @QUIET
    @given(st.lists(st.binary(max_size=60) | st.sampled_from(good) | JSON.map(as_line), max_size=4))
    def noise(lines: list[bytes]) -> None:
        path.write_bytes(b"\n".join(lines))
        for format_name in (name, "auto"):
            try:
                result = import_rollouts(path, format=format_name, decode=decode)
            except ImportFailure:
                continue
            assert result.report.rows_kept == result.frame.height > 0

    noise()


TEXT = st.text(st.characters(codec="utf-8"), max_size=20)


@QUIET
@given(rows=st.lists(st.tuples(TEXT, st.none() | st.floats(-2, 2), st.integers(0, 2)), min_size=1, max_size=6))
def test_rows_survive_the_way_through_a_file(tmp_path: Path, rows: list[tuple[str, float | None, int]]) -> None:
    path = write_jsonl(tmp_path / "r.jsonl", [verl_row(output=o, score=s, step=n, acc=None) for o, s, n in rows])
    frame = import_rollouts(path, strict=True).frame
    back = list(zip(frame["response"], frame["reward"], frame["step"], strict=True))
    assert sorted(back, key=repr) == sorted(rows, key=repr)
    assert frame["group_id"].n_unique() == len({step for _, _, step in rows})
