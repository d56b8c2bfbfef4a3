"""Multi-Rollout On-Policy Distillation (arXiv 2605.12652): which peer context gives a teacher signal that agrees with
the verifier?

The names below are what a notebook needs; ``mopd.teachers.hf`` (the only part of a study that imports torch) is
imported by name.
"""

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
