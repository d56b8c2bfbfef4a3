"""The map of the design, held by machine: who may import whom, and what an import may cost.

The tests walk the tree, so that a module which comes later is under the rules from its first commit.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "vllm", "ray")
ARROWS = {
    "mopd": {"mopd"},
    "analysis": {"analysis", "mopd"},
    "app": {"app", "analysis", "mopd"},
    "training": {"training", "mopd"},
}
MAY_LOAD_HEAVY = {
    *(f"mopd.teachers.{name}" for name in ("branching", "head", "hf", "memory", "packed", "vllm")),
    "mopd.engine",
    *(f"mopd.generation.{name}" for name in ("hf", "vllm")),
}
LIGHT_OUTSIDE = ("analysis.charts", "app.data")
# Inside mopd, what each module may know of its neighbours; a module that is not named is free.
LAYERS = ("conditions", "rollouts", "peers", "contexts", "tokens", "teachers")
ONLY_ARRAYS = ("signals", "metrics", "inference")


def modules(package: str) -> dict[str, Path]:
    """Dotted name to file, for every module of a package of the checkout."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name: str, path: Path) -> set[str]:
    """Dotted names that the file imports anywhere in it; `from a import b` counts as `a` and `a.b`."""
    names = set()
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


def layer(name: str) -> str:
    """`mopd.teachers.hf` -> `teachers`."""
    return [*name.split("."), ""][1]


def test_relative_imports_are_read(tmp_path: Path) -> None:
    file = tmp_path / "contexts.py"
    file.write_text("from . import peers\nfrom .rollouts import Group\nimport analysis.charts\n")
    assert imported("mopd.contexts", file) == {
        "mopd",
        "mopd.peers",
        "mopd.rollouts",
        "mopd.rollouts.Group",
        "analysis.charts",
    }


@pytest.mark.parametrize("package", ARROWS)
def test_packages_import_only_along_the_arrows(package: str) -> None:
    ours = {*ARROWS, "tests"}
    wrong = {
        (name, other)
        for name, path in modules(package).items()
        for other in imported(name, path)
        if other.split(".")[0] in ours - ARROWS[package]
    }
    assert not wrong


def test_layers_of_mopd_import_only_what_is_below_them() -> None:
    wrong = set()
    for name, path in modules("mopd").items():
        known = {layer(other) for other in imported(name, path) if other.startswith("mopd.")}
        if layer(name) in LAYERS:
            above = LAYERS[LAYERS.index(layer(name)) + 1 :]
            wrong |= {(name, other) for other in known & {*above, *ONLY_ARRAYS}}
        if layer(name) in ONLY_ARRAYS:
            wrong |= {(name, other) for other in known - {*ONLY_ARRAYS, ""}}
    assert not wrong


def test_importing_the_library_loads_no_model_code() -> None:
    light = [name for name in modules("mopd") if name not in MAY_LOAD_HEAVY and not name.endswith(".__main__")]
    light += [name for name in LIGHT_OUTSIDE if name in modules(name.split(".")[0])]
    assert "mopd.models" in light
    # One process for all; each module is charged with what it was the first to load.
    program = (
        "import importlib, json, sys\n"
        "loaded = {}\n"
        f"for name in {light!r}:\n"
        "    importlib.import_module(name)\n"
        f"    for heavy in {HEAVY!r}:\n"
        "        if heavy in sys.modules:\n"
        "            loaded.setdefault(heavy, name)\n"
        "print(json.dumps(loaded))\n"
    )
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {}
