"""The benchmark of judging code: its rollouts, and a small run."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from analysis import benchmark
from analysis.benchmarks.verify import SLOW, VARIANTS, code_rollouts
from mopd.verifiers.sandbox import SandboxUnavailable, check_sandbox


def test_the_rollouts_are_the_same_every_time_and_of_all_kinds() -> None:
    rollouts = code_rollouts(1000)
    assert rollouts == code_rollouts(1000)
    counts = Counter(variant for variant, _, _ in rollouts)
    assert set(counts) == {*VARIANTS, SLOW}
    assert counts[SLOW] == 20
    # Three of eight turns are the reference, less what the loops took the place of.
    assert 345 <= counts["reference"] <= 385
    assert rollouts[:10] == code_rollouts(10)


def test_every_problem_meets_every_variant() -> None:
    met: dict[str, set[str]] = {}
    for variant, _, reference in code_rollouts(1000):
        met.setdefault(reference["entry_point"], set()).add(variant)
    assert all(set(VARIANTS) <= variants for variants in met.values())


def test_a_small_run_prints_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        check_sandbox()
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    benchmark.main(["verify", "--count", "8"])
    out = capsys.readouterr().out
    figures = json.loads(out.splitlines()[-1])
    assert (figures["count"], figures["successes"]) == (8, 3)
    assert figures["rollouts_per_second"] == pytest.approx(8 / figures["seconds"], rel=0.01)
    assert "8 code rollouts in" in out


def test_no_rollouts_are_refused() -> None:
    with pytest.raises(ValueError, match="--count must be at least 1, got 0"):
        code_rollouts(0)
