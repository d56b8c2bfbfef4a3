"""A flag for every key of the configuration, with the words of its docstring."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any, Literal, get_args, get_origin, get_type_hints

from training.config import SECTION_OF, SECTIONS, RunConfig, read_config
from training.methods import METHODS

__all__ = ["add_flags", "from_flags"]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add ``--config``, ``--method`` and a flag for every key; what is not given stays out of the namespace."""
    parser.add_argument("--config", metavar="FILE.toml", help="tables of options, or the name of a shipped one")
    parser.add_argument("--method", choices=list(METHODS), default=argparse.SUPPRESS, help="default mopd")
    for section, table in SECTIONS.items():
        group = parser.add_argument_group(section)
        docs = _attribute_docs(table)
        hints = get_type_hints(table)
        for field in dataclasses.fields(table):
            _add_flag(group, field, hints[field.name], docs[field.name])


def _add_flag(group: Any, field: dataclasses.Field[Any], hint: Any, doc: str) -> None:
    default = field.default if field.default is not dataclasses.MISSING else {}
    shown = " ".join(map(str, default)) or "none" if isinstance(default, tuple) else default
    options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": f"{doc} (default: {shown})".replace("%", "%%")}
    if hint is bool:
        options["action"] = argparse.BooleanOptionalAction
    elif get_origin(hint) is tuple:
        options |= {"nargs": "*", "metavar": "VALUE"}
    elif get_origin(hint) is dict:
        options |= {"type": _object, "metavar": "JSON"}
    elif get_origin(hint) is Literal:
        options["choices"] = get_args(hint)
    else:
        options["metavar"] = "VALUE"
        if type(None) in get_args(hint):
            options["type"] = lambda text: None if text == "none" else text
    group.add_argument(f"--{field.name.replace('_', '-')}", **options)


def _object(text: str) -> dict[str, Any]:
    """A JSON object; argparse tells what is wrong with anything else."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f'must be a JSON object such as {{"enable_thinking": false}}, got {text!r}')
    return found


def _attribute_docs(table: type) -> dict[str, str]:
    """First words of each attribute's entry in the class's docstring, which is where they are said once."""
    found: dict[str, str] = {}
    name = ""
    body = (table.__doc__ or "").partition("Attributes:\n")[2]
    for line in body.splitlines():
        if line.startswith("        ") and not line.startswith("         "):
            name, _, text = line.strip().partition(": ")
            found[name] = text
        elif name and line.strip():
            found[name] += " " + line.strip()
    return {name: text.rstrip(".").replace("``", "") for name, text in found.items()}


def from_flags(flags: argparse.Namespace) -> RunConfig:
    """The configuration that parsed flags ask for.

    Raises:
        ConfigError: as ``read_config``.
    """
    overrides: dict[str, Any] = {k: v for k, v in vars(flags).items() if k in SECTION_OF or k == "method"}
    return read_config(flags.config, overrides)
