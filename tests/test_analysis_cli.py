"""What the command lines share: --config under the flags, bad input as exit code 2."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from analysis.cli import Help, add_config, fail, parse, progress_bars


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="prog", formatter_class=Help, allow_abbrev=False)
    made.add_argument("--seed", type=int, default=0, help="of the draws")
    made.add_argument("--share", type=float, default=0.5, help="a share")
    made.add_argument("--output", type=Path, help="a folder")
    made.add_argument("--names", nargs="+", default=["a"], choices=("a", "b", "c"), help="some names")
    made.add_argument("--max-tokens", type=int, help="a limit")
    made.add_argument("--kwargs", default="{}", help="as JSON")
    made.add_argument("--resume", action="store_true", help="go on")
    made.add_argument("--grid", nargs=2, type=int, help="two numbers")
    made.add_argument("--mode", default="x", choices=("x", "y"), help="one of two")
    add_config(made)
    return made


def config(tmp_path: Path, text: str) -> str:
    path = tmp_path / "c.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def refusal(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        parse(parser(), argv)
    assert caught.value.code == 2
    out = capsys.readouterr()
    assert out.out == ""
    return out.err


def test_without_a_config_the_defaults_hold() -> None:
    args = parse(parser(), [])
    assert (args.seed, args.names, args.resume, args.config) == (0, ["a"], False, None)


@pytest.mark.parametrize(
    ("text", "dest", "value"),
    [
        ("seed = 7", "seed", 7),
        ("share = 1", "share", 1.0),
        ('output = "x/y"', "output", Path("x/y")),
        ('names = ["b", "c"]', "names", ["b", "c"]),
        ('names = "b"', "names", ["b"]),
        ("max-tokens = 9", "max_tokens", 9),
        ("max_tokens = 9", "max_tokens", 9),
        ("grid = [3, 2]", "grid", [3, 2]),
        ("resume = true", "resume", True),
        ("resume = false", "resume", False),
        ('mode = "y"', "mode", "y"),
    ],
)
def test_a_value_of_the_file_is_as_the_flag_would_have_given_it(
    tmp_path: Path, text: str, dest: str, value: Any
) -> None:
    found = getattr(parse(parser(), ["--config", config(tmp_path, text)]), dest)
    assert found == value
    assert type(found) is type(value)


def test_a_table_is_json(tmp_path: Path) -> None:
    args = parse(parser(), ["--config", config(tmp_path, "[kwargs]\nenable_thinking = false\n")])
    assert json.loads(args.kwargs) == {"enable_thinking": False}


@pytest.mark.parametrize("order", [0, 1])
def test_flags_win_wherever_they_stand(tmp_path: Path, order: int) -> None:
    path = config(tmp_path, 'seed = 7\nnames = ["b"]\nshare = 0.25\n')
    flags, file = ["--seed", "1", "--names", "c", "a"], [f"--config={path}"]
    args = parse(parser(), [*flags, *file] if order else [*file, *flags])
    assert (args.seed, args.names, args.share) == (1, ["c", "a"], 0.25)
    assert args.config == Path(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sead = 1", "unknown option 'sead'; known are"),
        ('config = "other.toml"', "unknown option 'config'"),
        ("help = true", "unknown option 'help'"),
        ('seed = "x"', "seed = 'x': invalid literal"),
        ("seed = 1.5", "seed = 1.5: invalid literal"),
        ("seed = [1, 2]", "seed takes one value, got [1, 2]"),
        ("grid = [3]", "grid takes 2 values, got [3]"),
        ("seed = []", "seed takes one value, got []"),
        ('resume = "yes"', "resume must be true or false, got 'yes'"),
        ('mode = "z"', "mode = 'z'; choose from x, y"),
        ('names = ["a", "z"]', "names = 'z'; choose from a, b, c"),
        ("seed = ", "cannot be read"),
    ],
)
def test_a_bad_config_is_exit_code_2_and_says_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    err = refusal(capsys, ["--config", config(tmp_path, text)])
    assert words in err
    assert "c.toml" in err


def test_a_config_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "cannot be read" in refusal(capsys, ["--config", str(tmp_path / "none.toml")])


def test_a_config_that_is_not_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.toml").write_bytes(b"\xff\xfe")
    assert "cannot be read" in refusal(capsys, ["--config", str(tmp_path / "c.toml")])


def test_flags_are_not_abbreviated(capsys: pytest.CaptureFixture[str]) -> None:
    assert "unrecognized arguments: --see" in refusal(capsys, ["--see", "1"])
    assert "unrecognized arguments: --conf" in refusal(capsys, ["--conf", "x"])


def test_help_shows_every_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(parser(), ["--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "of the draws (default: 0)",
        "a share (default: 0.5)",
        "go on (default: False)",
        "--config FILE.toml",
    ):
        assert words in text


def test_fail_is_exit_code_2_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        fail(ValueError("no rollouts at x"))
    assert caught.value.code == 2
    assert capsys.readouterr() == ("", "error: no rollouts at x\n")


def test_progress_is_shown_on_stderr_alone(capsys: pytest.CaptureFixture[str]) -> None:
    tell = progress_bars()
    for done in (1, 2, 4):
        tell("rows scored", done, 4)
    tell("groups planned", 1, 3)
    out, err = capsys.readouterr()
    assert out == ""
    assert "rows scored: 100%" in err
    assert "4/4" in err
    assert "groups planned" in err
