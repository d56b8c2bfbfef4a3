"""``python -m analysis.benchmark verify``: how fast code rollouts are judged, on all cores.

The rollouts are made from the embedded code suite: the reference solution of a problem, and broken variants of it that
fail in the ways that models fail (a wrong value, an exception, no function, a syntax error, no code, an endless loop
once in a while), in turns. They are the same on every machine, and each verdict is compared with what it must be.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from typing import Any

from tqdm import tqdm

from mopd.tasks import load
from mopd.tasks.embedded import read_data
from mopd.verifiers import verify_many

__all__ = ["add_verify", "code_rollouts", "verify_command"]

VARIANTS = ("reference", "wrong value", "reference", "exception", "reference", "no function", "syntax error", "no code")
SLOW = "endless loop"
SLOW_EVERY = 50


def code_rollouts(count: int) -> list[tuple[str, str, dict[str, Any]]]:
    """``(variant, response, reference)`` of ``count`` rollouts, problems in turns."""
    if count < 1:
        raise ValueError(f"--count must be at least 1, got {count}")
    solutions = {f"code-{row['id']}": row["solution"] for row in read_data("code")}
    items = load("code")
    found = []
    for number in range(count):
        round_, place = divmod(number, len(items))
        item = items[place]
        # One step further in each round over the problems, so that every problem meets every variant.
        variant = VARIANTS[(place + round_) % len(VARIANTS)]
        if number % SLOW_EVERY == SLOW_EVERY - 1:
            variant = SLOW
        name = str(item.reference["entry_point"])
        found.append((variant, _response(variant, name, solutions[item.item_id]), dict(item.reference)))
    return found


def _response(variant: str, name: str, solution: str) -> str:
    code = {
        "reference": solution,
        "wrong value": f"{solution}\n\ndef {name}(*args):\n    return object\n",
        "exception": f"{solution}\n\ndef {name}(*args):\n    raise RuntimeError('broken')\n",
        "no function": solution.replace(f"def {name}(", "def another_name(", 1),
        "syntax error": f"{solution}\n)",
        SLOW: f"def {name}(*args):\n    while True:\n        pass\n",
    }
    return "I do not know." if variant == "no code" else f"```python\n{code[variant]}```"


def verify_command(options: argparse.Namespace) -> dict[str, Any]:
    """Print seconds, cores and rollouts a second; the figures."""
    rollouts = code_rollouts(options.count)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load_before = os.getloadavg()[0]
    start = time.perf_counter()
    with tqdm(total=len(rollouts), unit="rollout", desc="verify") as bar:

        def progress(done: int) -> None:
            bar.update(done - bar.n)

        verdicts = verify_many(
            [("code", response, reference) for _, response, reference in rollouts], progress=progress
        )
    seconds = time.perf_counter() - start
    wrong = Counter(
        variant
        for (variant, _, _), verdict in zip(rollouts, verdicts, strict=True)
        if verdict.reward is None or (verdict.reward >= 1.0) != (variant == "reference")
    )
    if wrong:
        raise SystemExit(f"error: the verifier misjudged {dict(wrong)}; its times mean nothing")
    print(
        f"{len(rollouts):,} code rollouts in {seconds:.1f} s on {cores} cores: {len(rollouts) / seconds:.1f} a second"
    )
    return {
        "benchmark": "verify",
        "count": len(rollouts),
        "seconds": round(seconds, 3),
        "cores": cores,
        "rollouts_per_second": round(len(rollouts) / seconds, 2),
        "successes": sum(verdict.reward == 1.0 for verdict in verdicts),
        "load_before": round(load_before, 2),
    }


def add_verify(commands: Any, formatter: Any) -> None:
    """Add the subcommand."""
    command = commands.add_parser("verify", help="speed of judging code", formatter_class=formatter)
    command.add_argument("--count", type=int, default=1000, help="rollouts to judge")
    command.set_defaults(run=verify_command)
