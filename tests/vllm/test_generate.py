"""The real vLLM, its CPU build, with the smallest embedded model: `make test-vllm`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from analysis import rollouts as door
from mopd import models, tasks
from mopd.generation import Completion, GenerationJob, Sampling, generate
from mopd.generation.folder import ModelFolder
from mopd.generation.job import settings_of
from mopd.generation.server import ServerSampler
from mopd.rollouts import groups_of, validate_rollouts
from mopd.tokens import HFCodec, response_ids
from tests.vllm.serving import running_server

vllm = pytest.importorskip("vllm")
MODEL = models.DEFAULT_PRESET
ROOT = Path(__file__).parents[2]
SAMPLING = Sampling(temperature=0.8, max_tokens=24, seed=1)

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def sampler() -> Iterator[Any]:
    from mopd.generation.vllm import VLLMSampler

    sampler = VLLMSampler.load(MODEL, max_model_len=1024)
    yield sampler
    del sampler.engine


def job(path: Path, n: int = 4) -> GenerationJob:
    return GenerationJob(
        items=tasks.load("arithmetic", limit=n),
        sampling=SAMPLING,
        group_size=4,
        output=path / "out.parquet",
        batch_size=8,
    )


def check_completions(groups: list[list[Completion]], codec: HFCodec, n: int) -> None:
    assert [len(group) for group in groups] == [n] * len(groups)
    for completion in (c for group in groups for c in group):
        assert completion.finished == (completion.ids[-1] == codec.end_id)
        assert completion.finished or len(completion.ids) == SAMPLING.max_tokens
        assert codec.end_id not in completion.ids[:-1]
        assert completion.text == codec.decode(completion.ids, skip_special=True)
    assert {c.finished for group in groups for c in group} == {True, False}
    assert all(len({c.ids for c in group}) > 1 for group in groups)


def test_ids_and_finish_reasons(sampler: Any) -> None:
    prompts = [item.prompt for item in tasks.load("arithmetic", limit=4)]
    groups = sampler.sample(prompts, 8, sampling=SAMPLING, seed=5)
    check_completions(groups, sampler.codec, 8)


def test_equal_seeds_give_equal_rollouts(sampler: Any) -> None:
    prompts = [item.prompt for item in tasks.load("arithmetic", limit=3)]
    once, other, again = (sampler.sample(prompts, 8, sampling=SAMPLING, seed=seed) for seed in (7, 8, 7))
    assert once == again
    assert once != other


def test_rollouts_are_a_table_with_exact_ids(sampler: Any, tmp_path: Path) -> None:
    frame = generate(job(tmp_path), sampler)
    assert validate_rollouts(frame).equals(frame)
    assert frame.height == 16
    assert frame["success"].null_count() == 0
    rollouts = [r for group in groups_of(frame) for r in group.rollouts if r.response.strip()]
    assert all(response_ids(r, sampler.codec).exact for r in rollouts)


def test_broken_run_goes_on_to_the_same_rollouts(sampler: Any, tmp_path: Path) -> None:
    class Stop(Exception): ...

    def stop_after_first_batch(n: int, seen: list[int] = []) -> None:  # noqa: B006
        seen.append(n)
        if sum(seen) >= 8:
            raise Stop

    (tmp_path / "whole").mkdir()
    whole = generate(job(tmp_path / "whole"), sampler)
    with pytest.raises(Stop):
        generate(job(tmp_path), sampler, progress=stop_after_first_batch)
    assert generate(job(tmp_path), sampler).equals(whole)


def test_door_goes_on_after_kill_9(tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    command = [sys.executable, "-m", "analysis.rollouts", "generate", "--backend", "vllm", "--task", "arithmetic"]
    command += ["--limit", "8", "--group-size", "4", "--batch-size", "4", "--max-tokens", "16", "--output", str(output)]
    parts = tmp_path / "out.parquet.parts"
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        while process.poll() is None and len(list(parts.glob("[0-9]*.parquet"))) < 2:
            time.sleep(0.05)
        assert process.poll() is None, "the run ended before it could be killed"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    kept = pl.concat([pl.read_parquet(p) for p in sorted(parts.glob("[0-9]*.parquet"))])
    assert 8 <= kept.height < 32
    assert not output.exists()
    subprocess.run(command, cwd=ROOT, check=True)
    frame = pl.read_parquet(output)
    assert frame.height == 32
    assert frame.head(kept.height).equals(kept)
    settings = settings_of(output)
    assert settings is not None
    assert (settings["backend"], settings["model"], settings["dtype"]) == ("vllm", MODEL, "bfloat16")
    assert settings["engine"] == f"vllm {vllm.__version__}"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with running_server(Path(models.resolve(MODEL)), "--max-model-len", "1024") as url:
        yield url


def test_server_gives_exact_ids(server: str) -> None:
    sampler = ServerSampler(server, ModelFolder.open(MODEL))
    assert sampler.window == 1024
    prompts = [item.prompt for item in tasks.load("arithmetic", limit=4)]
    check_completions(sampler.sample(prompts, 8, sampling=SAMPLING, seed=0), sampler.codec, 8)


def test_door_samples_from_a_server(server: str, tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    arguments = ["generate", "--vllm-url", server, "--limit", "2", "--group-size", "4", "--max-tokens", "16"]
    assert door.main([*arguments, "--output", str(output)]) == 0
    frame = pl.read_parquet(output)
    assert frame.height == 8
    assert frame["sampling"].struct.field("seed").null_count() == 8
    settings = settings_of(output)
    assert settings is not None
    assert settings["backend"] == "vllm-server"
