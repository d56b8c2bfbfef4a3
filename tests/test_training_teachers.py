"""The averaged teacher of a checkpoint, on its way back."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from training import teachers


@pytest.mark.parametrize("trust", [False, True])
def test_a_model_with_its_own_code_is_trusted_as_when_the_run_began(
    trust: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a run of such a model could not be resumed."""
    asked: dict[str, Any] = {}
    saved = torch.nn.Linear(1, 1)

    def from_pretrained(folder: Path, **options: Any) -> Any:
        asked.update(options)
        return saved

    monkeypatch.setattr(teachers, "AutoModelForCausalLM", SimpleNamespace(from_pretrained=from_pretrained))
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "config.json").write_text("{}")
    teacher = torch.nn.Linear(1, 1)
    accelerator = SimpleNamespace(num_processes=1, unwrap_model=lambda model: model)
    teachers.load_average(teacher, accelerator, tmp_path, trust_remote_code=trust)
    assert asked["trust_remote_code"] is trust
    assert torch.equal(teacher.weight, saved.weight)
