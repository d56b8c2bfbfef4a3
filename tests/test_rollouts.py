"""The rollout table: what is taken in, what is refused, and with which words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from mopd.rollouts import (
    ROLLOUT_SCHEMA,
    Rollout,
    RolloutError,
    content_id,
    groups_of,
    prompt_key,
    read_rollouts,
    rollout_frame,
    validate_rollouts,
)
from tests.helpers import make_rollouts

MESSAGES = [{"role": "user", "content": "q"}]
ROW: dict[str, Any] = {"group_id": "g", "prompt": MESSAGES, "response": "r", "reward": 1.0}


def validated(*rows: dict[str, Any], **options: Any) -> pl.DataFrame:
    return validate_rollouts(pl.DataFrame([ROW | row for row in rows or ({},)], strict=False), **options)


def write_jsonl(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_a_minimal_table_comes_out_in_the_schema() -> None:
    frame = validated({}, {"response": "r2", "reward": 0.5})
    assert dict(frame.schema) == ROLLOUT_SCHEMA
    assert frame["success"].to_list() == [True, False]  # threshold 1.0: 1.0 reaches it, 0.5 does not
    assert frame["finished"].to_list() == [None, None]


def test_unknown_columns_are_left_out() -> None:
    assert "colour" not in validated({"colour": "red"}).columns


def test_plain_text_prompts_stay_text() -> None:
    frame = validated({"prompt": "2+2="})
    assert frame.schema["prompt"] == pl.String
    assert next(groups_of(frame)).prompt == "2+2="


@pytest.mark.parametrize("threshold", [None, 0.5, 0.0])
def test_success_is_reward_at_or_above_the_threshold(threshold: float | None) -> None:
    rewards = [0.0, 0.499, 0.5, 1.0, 2.0]
    frame = validated(*({"reward": r} for r in rewards), success_threshold=threshold)
    limit = 1.0 if threshold is None else threshold
    assert frame["success"].to_list() == [r >= limit for r in rewards]


def test_a_success_column_is_kept_unless_a_threshold_is_given() -> None:
    rows = [{"reward": 0.0, "success": True}, {"reward": 1.0, "success": None}]
    assert validated(*rows)["success"].to_list() == [True, None]
    assert validated(*rows, success_threshold=1.0)["success"].to_list() == [False, True]


def test_a_success_column_of_nulls_is_filled_from_rewards() -> None:
    assert validated({"success": None})["success"].to_list() == [True]


@pytest.mark.parametrize("reward", [None, float("nan")])
def test_a_reward_that_is_not_known_is_no_failure(reward: float | None) -> None:
    frame = validated({"reward": reward}, {"reward": 0.0})
    assert frame["reward"].to_list() == [None, 0.0]
    assert frame["success"].to_list() == [None, False]


def test_made_ids_are_unique_and_the_same_on_every_run() -> None:
    frame = validated({}, {}, {"group_id": "h"})
    assert frame["rollout_id"].n_unique() == 3
    assert frame["rollout_id"].to_list() == validated({}, {}, {"group_id": "h"})["rollout_id"].to_list()
    # place 0 of group g with response r
    assert frame["rollout_id"][0] == content_id("g", 0, "r")


def test_given_ids_are_kept_beside_made_ones() -> None:
    assert validated({"rollout_id": "mine"}, {"rollout_id": None})["rollout_id"][0] == "mine"


def test_messages_may_have_their_fields_in_any_order_and_more_of_them() -> None:
    # a user's JSON can have content before role, and a name or tool calls beside them
    other = [{"content": "q", "name": "me", "role": "user"}]
    assert validated({"prompt": other})["prompt"].to_list() == [MESSAGES]


def test_sampling_takes_the_fields_it_knows() -> None:
    frame = validated({"sampling": {"temperature": 1, "min_p": 0.1}})
    assert frame["sampling"].to_list() == [{"temperature": 1.0, "top_p": None, "max_tokens": None, "seed": None}]


def test_whole_floats_are_whole_numbers() -> None:
    frame = validated({"step": 3.0, "response_ids": [1.0, 2.0], "success": 1.0})  # as pandas writes beside a null
    assert frame.select("step", "response_ids", "success").row(0) == (3, [1, 2], True)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"reward": "1.0"}, "column 'reward' has type String, expected Float64"),
        ({"success": "yes"}, "column 'success' has type String, expected Boolean"),
        ({"success": 0.3}, "column 'success'.*values that are not Boolean"),  # a cast would say true
        ({"success": 2}, "column 'success'.*values that are not Boolean"),
        ({"step": 1.5}, "column 'step'.*values that are not Int64"),
        ({"response_ids": [1.5]}, "column 'response_ids'.*values that are not"),
        ({"response_ids": [2**40]}, "column 'response_ids'"),
        ({"response": ["a", "b"]}, "column 'response' has type List"),
        ({"prompt": 3}, "column 'prompt' has type Int64"),
        ({"prompt": [{"role": "user", "text": "q"}]}, "column 'prompt'.*text"),
        ({"prompt": []}, "1 of 1 prompts are empty, the first in group 'g'"),
        ({"prompt": " \n"}, "1 of 1 prompts are empty, the first in group 'g'"),
        ({"prompt": [{"role": "user", "content": None}]}, "without a role or a content, the first in group 'g'"),
        ({"prompt": [*MESSAGES, None]}, "without a role or a content, the first in group 'g'"),
        ({"prompt": None}, "1 of 1 rollouts have no prompt"),
        ({"group_id": None}, "1 of 1 rollouts have no group_id"),
    ],
)
def test_a_bad_value_is_refused_by_the_name_of_its_column(row: dict[str, Any], words: str) -> None:
    with pytest.raises(RolloutError, match=words):
        validated(row)


def test_no_rows() -> None:
    with pytest.raises(RolloutError, match="has no rows"):
        validate_rollouts(pl.DataFrame(schema=ROLLOUT_SCHEMA))


def test_missing_columns_are_named_with_those_that_are_there() -> None:
    with pytest.raises(
        RolloutError, match=r"lacks response, reward \(or success\); it has group_id, prompt, completion"
    ):
        validate_rollouts(pl.DataFrame([{"group_id": "g", "prompt": "q", "completion": "r"}]))


def test_reward_or_success_is_enough() -> None:
    frame = pl.DataFrame([{"group_id": "g", "prompt": "q", "response": "r", "success": False}])
    assert validate_rollouts(frame)["success"].to_list() == [False]


def test_double_ids() -> None:
    with pytest.raises(RolloutError, match="1 rollout ids appear more than once, the first being 'x'"):
        validated({"rollout_id": "x"}, {"rollout_id": "x", "group_id": "h"})


@pytest.mark.parametrize(
    ("first", "second", "column"),
    [
        ({"prompt": "a"}, {"prompt": "b"}, "prompt"),
        ({"task": "a"}, {"task": "b"}, "task"),
        ({"policy": "a"}, {"policy": "b"}, "policy"),
        ({"step": 1}, {"step": 2}, "step"),  # design section 8.5: steps are not merged by prompt text
        ({"step": 1}, {"step": None}, "step"),
    ],
)
def test_a_group_is_one_prompt_task_policy_and_step(first: dict[str, Any], second: dict[str, Any], column: str) -> None:
    with pytest.raises(RolloutError, match=f"1 groups mix values of '{column}': group 'g' has 2"):
        validated(first, second)
    assert validated(first, second | {"group_id": "h"}).height == 2


def test_a_threshold_without_rewards() -> None:
    frame = pl.DataFrame([{"group_id": "g", "prompt": "q", "response": "r", "success": True}])
    with pytest.raises(RolloutError, match="threshold of 0.5 was given but no rollout has a reward"):
        validate_rollouts(frame, success_threshold=0.5)


def test_a_threshold_that_is_no_number() -> None:
    with pytest.raises(RolloutError, match="NaN"):
        validated(success_threshold=float("nan"))


def test_groups_come_in_order_of_first_appearance_with_file_order_within() -> None:
    frame = make_rollouts({"b": "sf", "a": "f"})
    groups = list(groups_of(validate_rollouts(frame[[0, 2, 1]])))
    assert [g.group_id for g in groups] == ["b", "a"]
    assert [r.rollout_id for r in groups[0].rollouts] == ["b-0", "b-1"]


def test_a_group_knows_its_classes_and_its_rollouts() -> None:
    (group,) = groups_of(make_rollouts({"g": "s?f"}))
    assert [r.rollout_id for r in group.successes] == ["g-0"]
    assert [r.rollout_id for r in group.failures] == ["g-2"]  # not judged is in neither
    assert group.by_id["g-1"].success is None


def test_a_missing_response_is_an_empty_one() -> None:
    (group,) = groups_of(validated({"response": None}))
    assert group.rollouts[0].response == ""


def test_response_ids_come_through_as_given() -> None:
    (group,) = groups_of(validated({"response_ids": [5, 7]}))
    assert group.rollouts[0] == Rollout(
        rollout_id=content_id("g", 0, "r"), group_id="g", response="r", response_ids=(5, 7), reward=1.0, success=True
    )


def test_prompt_key_tells_prompts_apart() -> None:
    (group,) = groups_of(validated())
    assert prompt_key(group.prompt) == prompt_key(({"role": "user", "content": "q"},))
    assert prompt_key(group.prompt) != prompt_key(({"role": "system", "content": "q"},))
    assert prompt_key("q") == "q"


def test_content_ids_do_not_depend_on_the_order_of_keys() -> None:
    assert content_id({"a": 1, "b": 2}) == content_id({"b": 2, "a": 1})
    assert content_id("ab", "c") != content_id("a", "bc")
    assert len(content_id()) == 16


def test_rollout_frame_fills_what_is_absent() -> None:
    frame = rollout_frame([{"group_id": "g"}])
    assert frame.row(0, named=True) == dict.fromkeys(ROLLOUT_SCHEMA) | {"group_id": "g"}


@pytest.mark.parametrize("suffix", ["jsonl", "ndjson", "parquet"])
def test_files_are_read_alike(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rollouts.{suffix}"
    write_jsonl(path, ROW, ROW | {"reward": 0}) if suffix != "parquet" else pl.DataFrame(
        [ROW, ROW | {"reward": 0.0}]
    ).write_parquet(path)
    assert read_rollouts(path)["success"].to_list() == [True, False]


def test_a_folder_stands_for_its_rollouts(tmp_path: Path) -> None:
    frame = make_rollouts({"g": "sf"})
    frame.write_parquet(tmp_path / "rollouts.parquet")
    assert read_rollouts(tmp_path).equals(frame)


def test_a_key_that_first_appears_late_in_a_jsonl_is_read(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "r.jsonl", *[ROW] * 300, ROW | {"answer": "late"})
    assert read_rollouts(path)["answer"][-1] == "late"


@pytest.mark.parametrize("name", ["missing.parquet", "missing.jsonl", "."])
def test_nothing_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"no rollouts at .*give a \.parquet or \.jsonl file"):
        read_rollouts(tmp_path / name)


@pytest.mark.parametrize("name", ["r.jsonl", "r.parquet"])
@pytest.mark.parametrize("content", ["", "{not json", '{"group_id": "g"}\n{"trunc'])
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(RolloutError, match=f"{name} cannot be read as {path.suffix[1:]}"):
        read_rollouts(path)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"group_id": "g"', r"malformed JSON \(Expecting ',' delimiter at column 17\)"),
        (b'{"reward": NaN}', r"malformed JSON \(NaN is no JSON number; write null\)"),
        (b"[1]", "not a JSON object but list"),
        (b'{"a": "\xff"}', r"not UTF-8 \(byte 0xff at column 8\)"),
    ],
)
def test_a_malformed_line_is_refused_by_file_line_and_reason(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "r.jsonl"
    good = json.dumps(ROW).encode()
    path.write_bytes(b"\n".join([good, b"", line, good]))  # a blank line counts and is no fault
    with pytest.raises(RolloutError, match=rf", 1 malformed line: .*r\.jsonl:3: {reason}\. .*whole or refused"):
        read_rollouts(path)


def test_of_many_malformed_lines_the_first_three_are_named(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(ROW) + "\n" + "not json\n" * 5)
    with pytest.raises(RolloutError, match=r", 5 malformed lines: .*:2: .*:3: .*:4: [^:]*; and 2 more\. "):
        read_rollouts(path)


def test_another_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("group_id,prompt\n")
    with pytest.raises(RolloutError, match="neither .parquet nor .jsonl.*import"):
        read_rollouts(tmp_path / "r.csv")


@pytest.mark.parametrize("text_first", [True, False])
def test_text_and_messages_in_one_file_are_refused(tmp_path: Path, text_first: bool) -> None:
    # polars reads such a file by turning the messages into text
    rows = [ROW | {"prompt": "q", "group_id": "h"}, ROW]
    path = write_jsonl(tmp_path / "r.jsonl", *(rows if text_first else rows[::-1]))
    with pytest.raises(RolloutError, match="1 of 2 prompts are the JSON of messages as text, the first in group 'g'"):
        read_rollouts(path)
