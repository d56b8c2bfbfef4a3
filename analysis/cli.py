"""What the command lines share: defaults from a TOML file, and bad input as exit code 2."""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from mopd.study import Progress

__all__ = ["Help", "add_config", "fail", "parse", "progress_bars"]


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows every default, and keeps the description as it was written."""


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add ``--config``."""
    parser.add_argument("--config", type=Path, metavar="FILE.toml", help="options by their long names; flags win")


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line over the defaults of ``--config``."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path)
    path = first.parse_known_args(argv)[0].config
    if path is not None:
        parser.set_defaults(**_from_toml(parser, path))
    return parser.parse_args(argv)


def _from_toml(parser: argparse.ArgumentParser, path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        parser.error(f"--config {path} cannot be read: {error}")
    actions = {a.dest: a for a in parser._actions if a.dest not in ("help", "config")}
    found: dict[str, Any] = {}
    for key, value in values.items():
        action = actions.get(key.replace("-", "_"))
        if action is None:
            names = ", ".join(sorted(name.replace("_", "-") for name in actions))
            parser.error(f"--config {path}: unknown option {key!r}; known are {names}")
        found[action.dest] = _checked(parser, path, action, key, value)
    return found


def _checked(parser: argparse.ArgumentParser, path: Path, action: argparse.Action, key: str, value: Any) -> Any:
    """A TOML value as the flag would have given it."""
    if action.nargs == 0:
        if not isinstance(value, bool):
            parser.error(f"--config {path}: {key} must be true or false, got {value!r}")
        return value
    if isinstance(value, dict):  # a table for an option that takes JSON
        value = json.dumps(value)
    many = action.nargs in ("+", "*") or isinstance(action.nargs, int)
    convert: Callable[[Any], Any] = action.type if callable(action.type) else str
    try:
        converted = [convert(str(v)) for v in (value if isinstance(value, list) else [value])]
    except (ValueError, argparse.ArgumentTypeError) as error:
        parser.error(f"--config {path}: {key} = {value!r}: {error}")
    wanted = action.nargs if isinstance(action.nargs, int) else 1
    if len(converted) != wanted and action.nargs not in ("+", "*"):
        parser.error(
            f"--config {path}: {key} takes {'one value' if wanted == 1 else f'{wanted} values'}, got {value!r}"
        )
    wrong = [v for v in converted if action.choices is not None and v not in action.choices]
    if wrong:
        parser.error(f"--config {path}: {key} = {wrong[0]!r}; choose from {', '.join(map(str, action.choices or ()))}")
    return converted if many else converted[0]


def fail(message: object) -> NoReturn:
    """End with exit code 2: the input was bad, the message says how to mend it."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def progress_bars() -> Progress:
    """A bar on stderr for each kind of work, with rate and time left."""
    bars: dict[str, tqdm[Any]] = {}

    def tell(what: str, done: int, total: int) -> None:
        if what not in bars:
            bars[what] = tqdm(total=total, desc=what, unit=what.split()[0].removesuffix("s"), file=sys.stderr)
        bar = bars[what]
        bar.total = total
        bar.update(done - bar.n)
        if done >= total:
            bar.close()

    return tell
