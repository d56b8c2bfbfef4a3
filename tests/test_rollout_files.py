"""The commands import and show: every format into a study, what is printed, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from analysis import rollouts as door
from analysis import signal_quality
from analysis.rollout_files import METADATA_KEY, load_decode
from mopd.importers import FORMATS
from mopd.importers.report import ImportReport
from mopd.rollouts import read_rollouts
from mopd.samples import sample_path
from tests.test_importers import WRITERS, good_records, inspect_log, inspect_sample, trace, verl_row, write_jsonl
from tests.tiny import tiny_tokenizer

ANSWERS = [("4", 1.0), ("four", 1.0), ("It is 4.", 1.0), ("5", 0.0), ("six", 0.0)]
"""One group in which every default condition can be filled: 2s1f takes three successes and two failures."""

Record = dict[str, Any]


def lines(name: str, file: str, change: Callable[[Record, str, float], Record]) -> Callable[[Path], None]:
    """Writes the answers as rows like the first one of the format's fixture."""

    def write(folder: Path) -> None:
        first = good_records(name, folder)[0]
        for old in folder.glob("*.jsonl"):
            if "metadata" not in old.name:
                old.unlink()
        write_jsonl(folder / file, [first | change(first, text, reward) for text, reward in ANSWERS])

    return write


def trl_file(folder: Path) -> None:
    (path,) = WRITERS["trl"](folder).glob("*.parquet")
    texts, rewards = zip(*ANSWERS, strict=True)
    first = pl.concat([pl.read_parquet(path).head(1)] * len(ANSWERS))
    first.with_columns(completion=pl.Series(texts), accuracy_reward=pl.Series(rewards)).write_parquet(path)


def traces_file(folder: Path) -> None:
    rows = [trace(text, {"right": {"score": reward, "weight": 1.0}}) for text, reward in ANSWERS]
    write_jsonl(folder / "step_3" / "traces.jsonl", rows)


def open_instruct_file(folder: Path) -> None:
    """With the ids of the tokenizer that the command is given."""
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder.parent / "tokenizer")
    messages = [{"role": "user", "content": "What is 2+2?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)

    def change(first: Record, text: str, reward: float) -> Record:
        ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        return {"prompt_tokens": prompt, "response_tokens": ids, "reward": reward}

    lines("open-instruct", "run_rollouts_000000.jsonl", change)(folder)


def inspect_file(folder: Path) -> None:
    samples = [inspect_sample(epoch, text, reward) for epoch, (text, reward) in enumerate(ANSWERS, start=1)]
    (folder / "log.json").write_text(json.dumps(inspect_log(samples)))


def slime_file(folder: Path) -> None:
    import torch

    (path,) = WRITERS["slime"](folder).glob("*.pt")
    content = torch.load(path)
    first = content["samples"][0]
    torch.save(content | {"samples": [first | {"response": t, "reward": r} for t, r in ANSWERS]}, path)


STUDIES: dict[str, Callable[[Path], None]] = {
    "mopd-candidates": lines(
        "mopd-candidates",
        "candidate_responses.jsonl",
        lambda _, t, r: {"response_id": t, "response_text": t, "reward": r},
    ),
    "verl": lines("verl", "1.jsonl", lambda _, t, r: {"output": t, "score": r, "acc": r}),
    "trl": trl_file,
    "verifiers": lines(
        "verifiers", "results.jsonl", lambda _, t, r: {"completion": [{"role": "assistant", "content": t}], "reward": r}
    ),
    "traces": traces_file,
    "nemo-rl": lines(
        "nemo-rl", "train_data_step12.jsonl", lambda f, t, r: {"content": [[f["content"][0][0], t]], "rewards": [r]}
    ),
    "open-instruct": open_instruct_file,
    "inspect": inspect_file,
    "slime": slime_file,
}


def test_every_format_goes_into_a_study_here() -> None:
    assert set(STUDIES) == set(FORMATS)


@pytest.mark.parametrize("name", STUDIES)
def test_a_dump_goes_through_the_command_into_a_study(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    dump, output = tmp_path / "dump", tmp_path / "rollouts.parquet"
    dump.mkdir()
    STUDIES[name](dump)
    arguments = ["import", str(dump), "--output", str(output), "--strict", "--task", "sums"]
    if name == "open-instruct":
        arguments += ["--tokenizer", str(tmp_path / "tokenizer")]
    assert door.main(arguments) == 0
    said = capsys.readouterr().out
    for words in (f"format    {name}:", "5 read, 5 kept, 0 dropped", "groups    1 (1 of 5)", "3 success, 2 failure"):
        assert words in said
    assert read_rollouts(output)["response"].to_list() == [
        # A reasoning model's thoughts are a part of what was sampled.
        f"<think>\nHm.\n</think>\n\n{text}" if name == "traces" else text
        for text, _ in ANSWERS
    ]
    study = ["--teacher", "oracle", "--rollouts", str(output), "--output", str(tmp_path / "study"), "--draws", "200"]
    assert signal_quality.main(study) == 0
    said = capsys.readouterr().out
    assert "1 compared of 1 looked at" in said
    assert "2s1f" in said


def test_the_report_is_kept_in_the_file(tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    assert door.main(["import", str(WRITERS["verl"](tmp_path)), "--output", str(output)]) == 0
    kept = json.loads(pl.read_parquet_metadata(output)[METADATA_KEY])
    assert set(kept) == set(ImportReport.__dataclass_fields__)
    assert (kept["format"], kept["rows_kept"], kept["files"]) == ("verl", 5, ["1.jsonl", "2.jsonl", "10.jsonl"])


def test_the_options_reach_the_import(tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    path = write_jsonl(tmp_path / "1.jsonl", [verl_row(score=0.4), verl_row(score=0.6)])
    options = "--format verl --prompt-as text --success-threshold 0.5 --policy me --task sums"
    assert door.main(["import", str(path), "--output", str(output), *options.split()]) == 0
    frame = read_rollouts(output)
    assert frame["success"].to_list() == [False, True]
    assert frame["prompt"][0] == verl_row()["input"]
    assert (frame["policy"][0], frame["task"][0]) == ("me", "sums")


def test_what_was_dropped_is_printed_with_its_place_and_strict_refuses_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, output = write_jsonl(tmp_path / "1.jsonl", [verl_row()]), tmp_path / "out.parquet"
    with path.open("a") as stream:
        stream.write("not json\n")
    assert door.main(["import", str(path), "--output", str(output), "--strict"]) == 2
    assert "error: 1.jsonl:2: malformed JSON" in capsys.readouterr().err
    assert not output.exists()
    assert door.main(["import", str(path), "--output", str(output)]) == 0
    said = capsys.readouterr().out
    assert "dropped   1: malformed JSON\n            1.jsonl:2" in said


def test_an_output_that_exists_is_kept_unless_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dump, output = tmp_path / "dump", tmp_path / "out.parquet"
    dump.mkdir()
    WRITERS["verl"](dump)
    output.write_text("mine")
    assert door.main(["import", str(dump), "--output", str(output)]) == 2
    assert "exists already; give another --output, or --overwrite" in capsys.readouterr().err
    assert output.read_text() == "mine"
    assert door.main(["import", str(dump), "--output", str(output), "--overwrite"]) == 0
    assert read_rollouts(output).height == 5


def test_a_failed_import_replaces_nothing(tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    output.write_text("mine")
    assert door.main(["import", str(tmp_path / "none"), "--output", str(output), "--overwrite"]) == 2
    assert output.read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["import", "none"], "nothing to import at none"),
        (["import", "dump.txt"], "unknown format: suffix '.txt'"),
        (["import", "dump.txt", "--output", "x.jsonl"], "must end in .parquet"),
        (["import", "dump.txt", "--output", "none/x.parquet"], "there is no folder 'none'"),
        (["import", "dump.txt", "--tokenizer", "none/none/none"], "no tokenizer 'none/none/none'"),
        (["import", "own.jsonl"], "needs no import"),
        (["show", "none"], "nothing to import at none"),
        (["show", "dump.txt"], "Known formats"),
        (["show", "arithmetic", "--k", "0"], "--k must be at least 1"),
        (["show", "own.jsonl"], "lacks reward (or success)"),
    ],
)
def test_bad_input_is_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dump.txt").write_text("x")
    write_jsonl(tmp_path / "own.jsonl", [{"group_id": "g", "prompt": "p", "response": "r"}])
    assert door.main(arguments) == 2
    caught = capsys.readouterr()
    assert message in caught.err
    assert caught.err.startswith("error: ")
    assert caught.out == ""


def test_unknown_format_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        door.main(["import", "x", "--format", "vrl"])
    assert caught.value.code == 2
    assert "invalid choice: 'vrl'" in capsys.readouterr().err


def small_sample(path: Path) -> pl.DataFrame:
    frame = read_rollouts(sample_path("arithmetic"))
    some = frame.filter(pl.col("group_id").is_in(frame["group_id"].unique(maintain_order=True).head(2).to_list()))
    (some.write_ndjson if path.suffix == ".jsonl" else some.write_parquet)(path)
    return some


@pytest.mark.parametrize("name", ["mine.parquet", "mine.jsonl", "rollouts.parquet"])
def test_show_prints_our_own_table(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    frame = small_sample(tmp_path / name)
    where = tmp_path if name == "rollouts.parquet" else tmp_path / name  # a study's folder
    assert door.main(["show", str(where), "--k", "1", "3"]) == 0
    said = capsys.readouterr().out
    assert "groups  2 of 16" in said
    header, row = (line.split() for line in said.splitlines() if line.startswith(("task ", "all ")))
    values = dict(zip(" ".join(header).replace("fill 2s1f", "fill").split(), row, strict=True))
    assert values["rollouts"] == "32"
    assert values["success"] == str(frame["success"].sum())
    assert values["finished"] == str(frame["finished"].sum())
    for words in ("self-BLEU", "mean@k", "pass@1 ", "pass@3 ", "answer entropy", "unique ratio"):
        assert words in said
    assert "pass@2" not in said


def test_show_reads_another_tools_dump_and_says_how(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    WRITERS["verl"](tmp_path)
    assert door.main(["show", str(tmp_path), "--success-threshold", "2"]) == 0
    said = capsys.readouterr().out
    assert "format    verl:" in said
    assert "0 success, 4 failure, 1 unjudged (success: reward >= 2)" in said
    assert "groups  1 of 1 rollouts, 2 of 2 rollouts" in said


def test_show_gives_hub_paths_to_polars(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[object] = []
    frame = read_rollouts(sample_path("arithmetic")).head(16)

    def read_parquet(path: object) -> pl.DataFrame:
        asked.append(path)
        return frame

    monkeypatch.setattr("mopd.rollouts.pl.read_parquet", read_parquet)
    assert door.main(["show", "hf://datasets/me/mine/r.parquet"]) == 0
    assert asked == ["hf://datasets/me/mine/r.parquet"]
    assert "groups  1 of 16" in capsys.readouterr().out


def test_the_tokenizer_of_a_folder(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    ids = tokenizer("hi there")["input_ids"]
    assert load_decode(str(tmp_path))(ids, skip_special_tokens=True) == "hi there"
