"""Importing the rollout dumps of other tools; ``FORMATS`` lists them."""

from mopd.importers.base import ImportFailure, RowError
from mopd.importers.formats import FORMATS, Format
from mopd.importers.markup import MARKUPS, split_prompt
from mopd.importers.report import Dropped, ImportReport
from mopd.importers.run import Imported, detect_format, holds_own_table, import_rollouts

__all__ = [
    "FORMATS",
    "MARKUPS",
    "Dropped",
    "Format",
    "ImportFailure",
    "ImportReport",
    "Imported",
    "RowError",
    "detect_format",
    "holds_own_table",
    "import_rollouts",
    "split_prompt",
]
