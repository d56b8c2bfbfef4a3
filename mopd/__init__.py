"""Multi-Rollout On-Policy Distillation (arXiv 2605.12652).

Which peer context gives a teacher signal that agrees with the verifier? The names below are what a notebook needs.
They are loaded when they are first used, so that ``import mopd`` is light; ``mopd.teachers.hf``, the only part of a
study that imports torch, is imported by name.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mopd.conditions import CONDITIONS, Condition, condition
    from mopd.contexts import Templates
    from mopd.peers import PROTOCOLS
    from mopd.rollouts import RolloutError, groups_of, read_rollouts, validate_rollouts
    from mopd.store import StudyError
    from mopd.study import NothingToCompare, Study, StudyConfig, run_study
    from mopd.teachers.scripted import ScriptedTeacher

__all__ = [
    "CONDITIONS",
    "PROTOCOLS",
    "Condition",
    "NothingToCompare",
    "RolloutError",
    "ScriptedTeacher",
    "Study",
    "StudyConfig",
    "StudyError",
    "Templates",
    "condition",
    "groups_of",
    "read_rollouts",
    "run_study",
    "validate_rollouts",
]

_HOMES = {
    "mopd.conditions": ("CONDITIONS", "Condition", "condition"),
    "mopd.contexts": ("Templates",),
    "mopd.peers": ("PROTOCOLS",),
    "mopd.rollouts": ("RolloutError", "groups_of", "read_rollouts", "validate_rollouts"),
    "mopd.store": ("StudyError",),
    "mopd.study": ("NothingToCompare", "Study", "StudyConfig", "run_study"),
    "mopd.teachers.scripted": ("ScriptedTeacher",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'mopd' has no attribute {name!r}")
