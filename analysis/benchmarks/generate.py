"""``python -m analysis.benchmark generate``: tokens per second of the two backends on the same prompts.

Each backend runs in a process of its own, so that neither finds the other's threads or memory. vLLM may live in another
environment, which ``--vllm-python`` names.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from mopd import tasks
from mopd.generation import Sampler, Sampling
from mopd.models import DEFAULT_PRESET

__all__ = ["add_generate", "generate_command", "measure"]

ROOT = Path(__file__).parents[2]
MARK = "mopd-benchmark "  # engines print to stdout as well


def measure(
    backend: str,
    *,
    model: str,
    dtype: str,
    task: str,
    prompts: int,
    sequences: int,
    group_size: int,
    max_tokens: int,
    repeats: int,
    seed: int,
) -> dict[str, Any]:
    """Load a backend, sample once to warm it up, then ``repeats`` times.

    Both have ``sequences`` sequences at work at a time. ``hf`` takes them in batches and waits for the longest of each;
    vLLM is given all and fills a place as soon as it is free.

    Returns:
        Response tokens (end tokens included) and seconds of each repeat, and their quotient over all repeats.
    """
    sampler = _load(backend, model, dtype, sequences)
    asked = [item.prompt for item in tasks.load(task, limit=prompts)]
    size = len(asked) if backend == "vllm" else max(1, sequences // group_size)
    batches = [asked[start : start + size] for start in range(0, len(asked), size)]
    sampler.sample(asked[:1], 2, sampling=Sampling(temperature=0.8, max_tokens=4), seed=seed)
    sampling = Sampling(temperature=0.8, max_tokens=max_tokens)
    tokens, seconds = [], []
    for repeat in range(repeats):
        start = time.perf_counter()
        groups = [
            group
            for batch in batches
            for group in sampler.sample(batch, group_size, sampling=sampling, seed=seed + repeat)
        ]
        seconds.append(time.perf_counter() - start)
        tokens.append(sum(len(c.ids) for group in groups for c in group))
    return {
        "engine": sampler.provenance()["engine"],
        "rollouts": len(asked) * group_size,
        "tokens": tokens,
        "seconds": [round(s, 3) for s in seconds],
        "tokens_per_second": round(sum(tokens) / sum(seconds), 1),
    }


def _load(backend: str, model: str, dtype: str, sequences: int) -> Sampler:
    if backend == "vllm":
        from mopd.generation.vllm import VLLMSampler

        return VLLMSampler.load(model, dtype=dtype, max_model_len=2048, max_num_seqs=sequences)
    from mopd.generation.hf import HFSampler

    return HFSampler.load(model, dtype=dtype)


def generate_command(options: argparse.Namespace) -> dict[str, Any]:
    """Print tokens per second of both backends and their quotient."""
    shared = {
        name: getattr(options, name)
        for name in ("model", "task", "prompts", "sequences", "group_size", "max_tokens", "repeats", "seed")
    }
    results = {}
    for backend, dtype in (("hf", options.hf_dtype), ("vllm", options.vllm_dtype)):
        python = _vllm_python(options.vllm_python) if backend == "vllm" else sys.executable
        results[backend] = _in_process(python, {"backend": backend, "dtype": dtype, **shared}) | {"dtype": dtype}
    print(f"{'backend':<10}{'engine':<24}{'dtype':<10}{'rollouts':>10}{'tokens':>9}{'seconds':>9}{'tokens/s':>10}")
    for backend, r in results.items():
        print(
            f"{backend:<10}{r['engine']:<24}{r['dtype']:<10}{r['rollouts']:>10}{sum(r['tokens']):>9}"
            f"{sum(r['seconds']):>9.1f}{r['tokens_per_second']:>10.1f}"
        )
    ratio = results["vllm"]["tokens_per_second"] / results["hf"]["tokens_per_second"]
    print(f"vllm is {ratio:.1f} times as fast as hf")
    return {
        "benchmark": "generate",
        **shared,
        "cores": os.cpu_count(),
        "load_before": round(options.load_before, 2),
        **results,
        "ratio": round(ratio, 2),
    }


def _vllm_python(given: Path | None) -> str:
    if given is not None:
        return str(given)
    if importlib.util.find_spec("vllm") is not None:
        return sys.executable
    own = ROOT / ".venv-vllm" / "bin" / "python"
    if own.exists():
        return str(own)
    raise SystemExit("error: vLLM is not installed here; run `make setup-vllm`, or give --vllm-python")


def _in_process(python: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Run ``measure`` under an interpreter."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [python, "-m", "analysis.benchmarks.generate", json.dumps(arguments)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not lines:
        raise SystemExit(f"error: the {arguments['backend']} backend failed under {python} (exit {done.returncode})")
    return json.loads(lines[-1].removeprefix(MARK))


def add_generate(commands: Any, formatter: Any) -> None:
    """Add the subcommand."""
    command = commands.add_parser("generate", help="tokens/s of the backends", formatter_class=formatter)
    command.add_argument("--model", default=DEFAULT_PRESET, help="preset, hub id or local folder")
    command.add_argument("--task", default="code", help="suite whose prompts are asked; its answers set the length")
    command.add_argument("--prompts", type=int, default=32, help="prompts to sample")
    command.add_argument("--sequences", type=int, default=64, help="at work at a time")
    command.add_argument("--group-size", type=int, default=8, help="rollouts of each prompt")
    command.add_argument("--max-tokens", type=int, default=64, help="most tokens of a response")
    command.add_argument("--repeats", type=int, default=3, help="timed calls of each backend")
    command.add_argument("--hf-dtype", default="float32", help="weights under hf: its default")
    command.add_argument("--vllm-dtype", default="bfloat16", help="weights under vllm: its default")
    command.add_argument("--vllm-python", type=Path, help="interpreter that has vLLM; found if left out")
    command.add_argument("--seed", type=int, default=0, help="of the sampling")
    command.set_defaults(run=generate_command, load_before=os.getloadavg()[0])


if __name__ == "__main__":
    print(MARK + json.dumps(measure(**json.loads(sys.argv[1]))), flush=True)
