"""Every ``analysis.rollouts`` command that README and docs/rollouts.md tell a reader to run, run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from analysis import rollouts as door
from mopd.rollouts import read_rollouts
from mopd.verifiers.sandbox import SandboxUnavailable, check_sandbox
from tests.test_generation import Scripted
from tests.test_importers import write_verl

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/rollouts.md")


def commands(page: str) -> list[list[str]]:
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = [shlex.split(line, comments=True) for line in lines]
    return [words[3:] for words in found if words[:3] == ["python", "-m", "analysis.rollouts"]]


ALL = [(page, command) for page in PAGES for command in commands(page)]


@pytest.mark.parametrize("page", PAGES)
def test_each_page_shows_each_command(page: str) -> None:
    assert {words[0] for words in commands(page)} == {"generate", "import", "show"}


@pytest.mark.parametrize("command", [c for _, c in ALL], ids=[f"{page}-{c[0]}" for page, c in ALL])
def test_the_command_runs(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    if command[0] == "generate":
        try:
            check_sandbox()
        except SandboxUnavailable as error:
            pytest.skip(str(error))
        # The model is another matter: what is tested here is that the options are as the page says.
        monkeypatch.setattr(door, "load_sampler", lambda _: Scripted())
        command = [*command, "--limit", "1"]
    if command[0] == "import":
        (tmp_path / "runs" / "rollouts").mkdir(parents=True)
        write_verl(tmp_path / "runs" / "rollouts")
    assert door.main(command) == 0
    if command[0] == "show":
        assert "pass@1" in capsys.readouterr().out
    else:
        assert read_rollouts(tmp_path / command[command.index("--output") + 1]).height > 0
