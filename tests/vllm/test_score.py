"""Scoring through the real vLLM, its CPU build: `make test-vllm`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mopd import models
from mopd.peers import PROTOCOLS
from mopd.rollouts import read_rollouts
from mopd.samples import DEFAULT_SAMPLE, sample_path
from mopd.store import write_parquet
from mopd.study import StudyConfig, group_requests, plan_groups
from mopd.teachers.base import ScoreRequest
from tests.helpers import make_group, make_rollouts
from tests.tiny import tiny_model, tiny_tokenizer
from tests.vllm.serving import running_server

vllm = pytest.importorskip("vllm")
GROUP = make_group("s")
MODEL = models.DEFAULT_PRESET
TOLERANCE = 1e-3  # nats, in float32
BLOCK = 32  # of vLLM's prefix cache, as the teacher starts it on a CPU
WINDOW = 512

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]


def request(context: np.ndarray, response: np.ndarray) -> ScoreRequest:
    return ScoreRequest(
        group=GROUP,
        rollout_id="r",
        peers=(),
        context_ids=np.asarray(context, dtype=np.int32),
        response_ids=np.asarray(response, dtype=np.int32),
    )


def cases() -> list[ScoreRequest]:
    """Contexts that share blocks of the cache and end before, at and after the end of a block; responses that begin
    alike for none, some and many blocks, and part within a block and at its end; equal prompts cut in two ways."""
    rng = np.random.default_rng(0)

    def some(n: int) -> np.ndarray:
        return rng.integers(3, 259, n)

    stem, answer = some(2 * BLOCK), some(3 * BLOCK)
    contexts = [stem[:-1], stem, np.append(stem, 7), np.append(stem, some(BLOCK + 5)), some(3), some(1)]
    responses = [answer[:1], answer[: BLOCK + 3], answer, np.append(answer[:BLOCK], some(4)), some(9), some(1)]
    cut = np.concatenate([stem, answer])
    fills = some(WINDOW - 1)
    return [
        *(request(c, r) for c in contexts for r in responses),
        *(request(cut[:n], cut[n:]) for n in (5, BLOCK, 2 * BLOCK + 1, len(cut) - 1)),
        request(fills[:400], fills[400:]),
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    heads: dict[str, Any] = {"hidden_size": 64, "head_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    tiny_model("llama", max_position_embeddings=WINDOW, **heads).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def tiny(folder: Path) -> Iterator[Any]:
    from mopd.teachers.vllm import VLLMTeacher

    teacher = VLLMTeacher.load(str(folder))
    yield teacher
    del teacher.engine


@pytest.fixture(scope="module")
def want(folder: Path) -> list[np.ndarray]:
    from mopd.teachers.hf import HFTeacher

    return [score.logprob for score in HFTeacher.load(str(folder), device="cpu").score(cases())]


def check(scores: list[Any], want: list[np.ndarray]) -> None:
    gaps = [float(np.abs(s.logprob - w).max()) for s, w in zip(scores, want, strict=True)]
    print(f"largest difference: {max(gaps):.2g} nats")
    assert max(gaps) < TOLERANCE, gaps
    assert all(score.entropy is None for score in scores)


def test_log_probs_are_those_of_transformers(tiny: Any, want: list[np.ndarray]) -> None:
    tiny.engine.reset_prefix_cache()
    check(tiny.score(cases()), want)


@pytest.mark.parametrize(
    ("context", "shared", "forwarded"),
    [
        # two whole blocks of the context are read once: 74 + 7 x (74 - 64)
        (2 * BLOCK + 5, 0, 144),
        # the cache holds all of the context, so that nobody knows the first token of the 7 others, which part right
        # behind it: 69 + 7 x (69 - 64), and those 7 again in full, 7 x 69
        (2 * BLOCK, 0, 587),
        # the cache reaches 3 tokens into the responses, which all 8 have in common: 70 + 7 x (70 - 64), none again
        (2 * BLOCK - 3, 4, 112),
    ],
)
def test_shared_blocks_are_forwarded_once(tiny: Any, context: int, shared: int, forwarded: int) -> None:
    rng = np.random.default_rng(1)
    ids, begin = rng.integers(3, 259, context), rng.integers(3, 259, shared)
    requests = [request(ids, np.concatenate([begin, np.full(5, 10 + i)])) for i in range(8)]
    tiny.engine.reset_prefix_cache()
    before = tiny.tokens_forwarded
    scores = tiny.score(requests)
    assert tiny.tokens_forwarded - before == forwarded
    for one, score in zip(requests, scores, strict=True):  # each by itself, from an empty cache
        tiny.engine.reset_prefix_cache()
        np.testing.assert_allclose(tiny.score([one])[0].logprob, score.logprob, atol=TOLERANCE)


def test_a_full_cache_changes_nothing(tiny: Any, want: list[np.ndarray]) -> None:
    check(tiny.score(cases()), want)
    check(tiny.score(cases()), want)
    check(tiny.score(cases()[::-1]), want[::-1])


def test_without_the_cache_every_prompt_is_forwarded(tiny: Any, want: list[np.ndarray]) -> None:
    from mopd.teachers.vllm import VLLMTeacher

    plain = VLLMTeacher(tiny.engine, tiny.folder, read_cache=False)
    requests = cases()[:4]
    check(plain.score(requests), want[:4])
    assert plain.tokens_forwarded == sum(len(r.context_ids) + len(r.response_ids) for r in requests)


def test_a_small_kv_cache_takes_a_few_prompts_at_a_time(tiny: Any, want: list[np.ndarray]) -> None:
    config = tiny.engine.llm_engine.vllm_config.cache_config
    room = config.kv_cache_size_tokens
    assert len(list(tiny._batches([r.response_ids for r in cases()]))) == 1
    try:
        config.kv_cache_size_tokens = WINDOW
        assert len(list(tiny._batches([r.response_ids for r in cases()]))) > 1
        check(tiny.score(cases()), want)
    finally:
        config.kv_cache_size_tokens = room


def test_what_does_not_fit_is_refused_by_name(tiny: Any) -> None:
    assert tiny.window == WINDOW - 1
    with pytest.raises(ValueError, match="rollout r of group g has 500 context and 12 response tokens.* at most 511"):
        tiny.score([request(np.full(500, 5), np.full(12, 6))])


def sample_requests(teacher: Any) -> list[ScoreRequest]:
    """A few of the requests of a study of the shipped sample."""
    config = StudyConfig(conditions=("question_only", "2s1f"), limit=1)
    protocols = {"leave_pair_out": PROTOCOLS["leave_pair_out"]}
    plans, _ = plan_groups(read_rollouts(sample_path(DEFAULT_SAMPLE)), teacher, config, protocols)
    requests = group_requests(next(plan for plan in plans if plan.supported))
    return sorted(requests, key=lambda r: len(r.context_ids) + len(r.response_ids))[:6] + requests[:2]


def test_log_probs_of_an_embedded_model() -> None:
    from mopd.teachers.hf import HFTeacher
    from mopd.teachers.vllm import VLLMTeacher

    teacher = VLLMTeacher.load(MODEL, max_model_len=2048)
    hf = HFTeacher.load(MODEL, device="cpu")
    requests = sample_requests(hf)
    want = [score.logprob for score in hf.score(requests)]
    check(teacher.score(requests), want)
    assert teacher.provenance()["weights"] == hf.provenance()["weights"]
    del teacher.engine


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[str]:
    with running_server(folder, "--dtype", "float32") as url:
        yield url


def test_a_server_gives_the_same_log_probs(server: str, folder: Path, want: list[np.ndarray]) -> None:
    from mopd.teachers.server import ServerTeacher

    teacher = ServerTeacher.connect(server, str(folder))
    assert teacher.window == WINDOW - 1
    check(teacher.score(cases()), want)
    assert teacher.provenance()["engine"] == f"vllm {vllm.__version__}"


def test_a_study_through_a_server(server: str, folder: Path, tmp_path: Path) -> None:
    from analysis import signal_quality

    write_parquet(make_rollouts({"a": "ssff"}), tmp_path / "r.parquet")
    arguments = ["--rollouts", str(tmp_path / "r.parquet"), "--model", str(folder), "--vllm-url", server]
    arguments += ["--conditions", "question_only", "1s", "--score-cache", str(tmp_path / "scores")]
    assert signal_quality.main([*arguments, "--output", str(tmp_path / "study")]) == 0
    assert list((tmp_path / "scores").glob("*/*.parquet"))


def test_the_benchmark_measures_both_ways_through_vllm(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from analysis import benchmark

    write_parquet(make_rollouts({"a": "ssff", "b": "sfsf"}), tmp_path / "r.parquet")
    arguments = f"scoring --model {folder} --rollouts {tmp_path / 'r.parquet'} --limit 2 --repeats 1".split()
    arguments += ["--conditions", "question_only", "--against", "naive", "vllm", "vllm-cached"]
    benchmark.main(arguments)
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["max_abs_diff_vllm_nats"] < TOLERANCE
    assert figures["max_abs_diff_vllm_cached_nats"] < TOLERANCE
    assert figures["speedup_vs_vllm"] == pytest.approx(figures["seconds"]["vllm"] / figures["seconds"]["ours"])
    forwarded = figures["vllm_tokens_forwarded"]
    assert figures["tokens_bound"] < forwarded["vllm-cached"] < forwarded["vllm"]
    assert figures["peak_bytes_of"]["vllm"] > 0
