"""Teachers: requests in, token scores out.

``hf`` needs torch and transformers and is imported only when it is used; ``scripted`` needs neither.
"""

from mopd.teachers.base import ScoreRequest, Teacher, TokenScores
from mopd.teachers.cache import CachedTeacher
from mopd.teachers.scripted import SCRIPTED, ScriptedTeacher

__all__ = ["SCRIPTED", "CachedTeacher", "ScoreRequest", "ScriptedTeacher", "Teacher", "TokenScores"]
