"""Rewards that any text has, for training tiny random models; and one that ends the process amid a run."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from typing import Any

CALLS = {"n": 0}


def parity(response: str, reference: Mapping[str, Any]) -> float:
    """1 for about every other response: the sum of its bytes is odd."""
    return float(sum(response.encode()) % 2)


def parity_then_killed(response: str, reference: Mapping[str, Any]) -> float:
    """As ``parity``, until the call whose number is in the environment: then the process is gone, as by kill -9."""
    CALLS["n"] += 1
    if CALLS["n"] == int(os.environ.get("MOPD_TEST_KILL_AT", "0")):
        os.kill(os.getpid(), signal.SIGKILL)
    return parity(response, reference)
