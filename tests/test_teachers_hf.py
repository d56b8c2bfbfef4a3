"""The hf teacher against the model's own forward, one sequence at a time."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from mopd.rollouts import Group
from mopd.study import StudyConfig, fingerprint
from mopd.teachers import branching, head, hf, memory, packed
from mopd.teachers.base import DivergenceRequest, ScoreRequest
from mopd.teachers.branching import BranchReader
from mopd.teachers.cache import CachedTeacher
from mopd.teachers.head import divergences
from mopd.teachers.hf import MODES, HFTeacher, Mode
from tests.helpers import make_rollouts
from tests.tiny import plain_log_probs, tiny_model, tiny_tokenizer

ATTENTION = ("llama", "qwen3", "gemma3", "mistral")
HYBRID = ("qwen3_5", "qwen3_next")
CPU_MESSAGE = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
GROUP = Group(group_id="g", task="t", prompt="q", rollouts=())


def request(context: list[int], response: list[int]) -> ScoreRequest:
    return ScoreRequest(
        group=GROUP,
        rollout_id="r",
        peers=(),
        context_ids=np.asarray(context, dtype=np.int32),
        response_ids=np.asarray(response, dtype=np.int32),
    )


def random_requests(seed: int = 0) -> list[ScoreRequest]:
    """Contexts that share nothing and contexts that part late, longer and shorter than a window of 16; responses of 1
    to 40 tokens that share beginnings."""
    rng = np.random.default_rng(seed)
    contexts = [rng.integers(4, 300, n).tolist() for n in (1, 7, 40, 90)]
    contexts += [contexts[3][:70] + rng.integers(4, 300, n).tolist() for n in (3, 30)]
    start = rng.integers(4, 300, 12).tolist()
    responses = [[], [], start, start[:5], start, []]
    return [
        request(context, response + rng.integers(4, 300, n).tolist())
        for context in contexts
        for response, n in zip(responses, (1, 5, 1, 5, 40, 17), strict=True)
    ]


def loaded(model: Any, name: str, **options: Any) -> HFTeacher:
    """A teacher whose self-test found nothing to fall back from."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return HFTeacher(model, tiny_tokenizer(), name=name, **options)


def check(teacher: HFTeacher, model: Any, requests: list[ScoreRequest]) -> None:
    for asked, got in zip(requests, teacher.score(requests), strict=True):
        want = plain_log_probs(model, asked.context_ids, asked.response_ids)
        np.testing.assert_allclose(got.logprob, want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("token_budget", [5, 64, 100_000])
@pytest.mark.parametrize("family", ATTENTION)
def test_log_probs_equal_those_of_the_plain_forward(family: str, token_budget: int) -> None:
    model = tiny_model(family)
    teacher = loaded(model, family, token_budget=token_budget)
    assert teacher.mode == "packed"
    requests = random_requests()
    check(teacher, model, requests)
    assert teacher.tokens_forwarded == bound(requests)


@pytest.mark.parametrize("token_budget", [5, 100_000])
@pytest.mark.parametrize("family", HYBRID)
def test_log_probs_of_hybrids_equal_those_of_the_plain_forward(family: str, token_budget: int) -> None:
    # Recurrent states round otherwise when a sequence is read in two parts; the wide weights of the others make
    # chaos of that (1.5e-4 nats for qwen3_next).
    model = tiny_model(family, initializer_range=0.2)
    teacher = loaded(model, family, token_budget=token_budget)
    assert teacher.mode == "branches"
    check(teacher, model, random_requests())


def bound(requests: list[ScoreRequest]) -> int:
    return len({
        tuple([*r.context_ids.tolist(), *r.response_ids.tolist()][: i + 1])
        for r in requests
        for i in range(len(r.context_ids) + len(r.response_ids) - 1)
    })  # fmt: skip


token_lists = st.lists(st.integers(4, 7), min_size=1, max_size=12)
# The hybrid's weights are smaller: at 0.2 its own plain forward in float32 strays from float64 by up to 1.5e-4 nats
# (300 random inputs), more than the bound that is tested; at 0.1 the bound tests the reading and not the rounding.
WIDTHS = {"llama": 0.2, "gemma3": 0.2, "qwen3_5": 0.1}
MODELS = {family: tiny_model(family, initializer_range=width) for family, width in WIDTHS.items()}


@pytest.mark.parametrize("family", MODELS)
@settings(max_examples=20, deadline=None)
@given(
    drawn=st.lists(st.tuples(token_lists, token_lists), min_size=1, max_size=10),
    repeats=st.integers(1, 4),
    token_budget=st.sampled_from([1, 5, 30, 1000]),
)
def test_random_tries_equal_the_plain_forward(family: str, drawn: list, repeats: int, token_budget: int) -> None:
    """Four letters share prefixes at any depth; contexts are repeated to outgrow the window of 16."""
    mode: Any = "branches" if family == "qwen3_5" else "packed"
    teacher = HFTeacher(MODELS[family], tiny_tokenizer(), name=family, mode=mode, token_budget=token_budget)
    if isinstance(teacher._reader, BranchReader):
        teacher._reader.saving = 1
    requests = [request(context * repeats, response) for context, response in drawn]
    check(teacher, MODELS[family], requests)
    assert teacher.tokens_forwarded == bound(requests)


@pytest.mark.parametrize("mode", ["branches", "head", "logits"])
@pytest.mark.parametrize("family", ATTENTION)
def test_the_slower_ways_give_the_same_numbers(family: str, mode: Any) -> None:
    model = tiny_model(family)
    check(HFTeacher(model, tiny_tokenizer(), name=family, mode=mode, token_budget=64), model, random_requests(1)[8:24])


def test_logit_softcapping_is_applied() -> None:
    model = tiny_model("gemma3", final_logit_softcapping=1.5)
    teacher = HFTeacher(model, tiny_tokenizer(), name="capped")
    assert teacher.mode == "packed"
    asked = random_requests(2)[3]
    want = plain_log_probs(model, asked.context_ids, asked.response_ids)
    np.testing.assert_allclose(teacher.score([asked])[0].logprob, want, atol=1e-4, rtol=0)


def test_entropy_is_that_of_the_next_token_distribution() -> None:
    model = tiny_model("llama")
    asked = request([5, 6, 7], [8, 9])
    got = HFTeacher(model, tiny_tokenizer(), name="llama").score([asked])[0].entropy
    with torch.inference_mode():
        log_p = model(input_ids=torch.tensor([[5, 6, 7, 8]])).logits[0, 2:].log_softmax(-1)
    assert got is not None
    np.testing.assert_allclose(got, -(log_p.exp() * log_p).sum(-1).numpy(), atol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_a_rank_counts_the_likelier_tokens(mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "CACHE_BYTES", 1)  # a row at a time
    model = tiny_model("llama")
    # a place that predicts two tokens, and one that predicts one
    asked = [request([5, 6, 7], [8, 9]), request([5, 6, 7], [10, 11])]
    teacher = HFTeacher(model, tiny_tokenizer(), name="llama", mode=mode)
    for r, got in zip(asked, teacher.score(asked), strict=True):
        with torch.inference_mode():
            ids = torch.tensor([[*r.context_ids, r.response_ids[0]]])
            log_p = model(input_ids=ids).logits[0, 2:].log_softmax(-1)
        order = log_p.argsort(-1, descending=True).tolist()
        assert got.rank is not None
        assert got.rank.tolist() == [
            1 + places.index(token) for places, token in zip(order, r.response_ids.tolist(), strict=True)
        ]


def test_tokens_alike_share_a_rank() -> None:
    logits = torch.tensor([[1.0, 3.0, 1.0, 2.0]])
    got = head.token_scores(logits, torch.zeros(4, dtype=torch.long), torch.arange(4), 0)
    assert got["rank"].tolist() == [3, 1, 3, 2]


def test_the_likeliest_tokens_come_on_request() -> None:
    model = tiny_model("llama")
    asked = [request([5, 6, 7], [8, 9]), request([5, 6, 7], [8, 10, 11])]
    for got in HFTeacher(model, tiny_tokenizer(), name="llama", top_k=3).score(asked):
        assert got.top_ids is not None
        assert got.top_logprob is not None
        with torch.inference_mode():
            log_p = model(input_ids=torch.tensor([[5, 6, 7, 8]])).logits[0, 2:].log_softmax(-1)
        want = log_p.topk(3)
        np.testing.assert_array_equal(got.top_ids[:2], want.indices.numpy())
        np.testing.assert_allclose(got.top_logprob[:2], want.values.numpy(), atol=1e-4)
    assert HFTeacher(model, tiny_tokenizer(), name="llama").score(asked)[0].top_ids is None


def test_divergences_by_hand() -> None:
    # P = (1/2, 1/4, 1/4), Q = (1/4, 1/4, 1/2); an offset of the logits changes nothing
    p, q = torch.tensor([[0.5, 0.25, 0.25]]).log() + 3, torch.tensor([[0.25, 0.25, 0.5]]).log() - 7
    got = {name: float(value) for name, value in divergences(p, q).items()}
    # KL(P|Q) = 1/2 ln 2 + 0 + 1/4 ln 1/2 = 1/4 ln 2, and the same the other way round
    assert got["forward"] == pytest.approx(math.log(2) / 4, abs=1e-6)
    assert got["reverse"] == pytest.approx(math.log(2) / 4, abs=1e-6)
    # M = (3/8, 1/4, 3/8): KL(P|M) = 1/2 ln 4/3 + 1/4 ln 2/3 = KL(Q|M)
    assert got["jensen_shannon"] == pytest.approx(math.log(4 / 3) / 2 + math.log(2 / 3) / 4, abs=1e-6)
    # the likeliest of P and the rest: (1/2, 1/2) and (1/4, 3/4)
    got = {name: float(value) for name, value in divergences(p, q, top_k=1).items()}
    assert got["forward"] == pytest.approx(math.log(2) / 2 + math.log(2 / 3) / 2, abs=1e-6)
    assert got["reverse"] == pytest.approx(math.log(1 / 2) / 4 + 3 / 4 * math.log(3 / 2), abs=1e-6)


def test_divergences_at_the_edges() -> None:
    impossible = torch.tensor([[0.0, -torch.inf, 0.0]])
    even = torch.zeros(1, 3)
    # KL of (1/2, 0, 1/2) from thirds is ln 3/2; the other way a third lies where P has nothing
    got = {name: float(value) for name, value in divergences(impossible, even).items()}
    assert got["forward"] == pytest.approx(math.log(1.5), abs=1e-6)
    assert got["reverse"] == math.inf
    assert got["jensen_shannon"] < math.log(2)
    apart = divergences(torch.tensor([[0.0, -torch.inf]]), torch.tensor([[-torch.inf, 0.0]]))
    assert float(apart["jensen_shannon"]) == pytest.approx(math.log(2), abs=1e-6)
    for top_k in (None, 2, 3, 9):
        assert all(float(value) == 0.0 for value in divergences(impossible, impossible, top_k).values())


@pytest.mark.parametrize("mode", ["packed", "branches", "logits"])
@pytest.mark.parametrize("top_k", [None, 5])
def test_divergences_of_two_contexts(mode: Any, top_k: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf, "HEAD_ROWS", 3)  # the seven tokens of a response come in three pieces
    model = tiny_model("llama")
    teacher = HFTeacher(model, tiny_tokenizer(), name="llama", mode=mode, token_budget=8)
    contexts = [[5, 6, 7, 8], [5, 6, 30, 31, 32], [40]]
    response = [9, 10, 11, 12, 13, 14, 15]
    asked = [
        DivergenceRequest(
            context_ids=np.array(a, np.int32), reference_ids=np.array(b, np.int32), response_ids=np.array(r, np.int32)
        )
        for a, b, r in [
            (contexts[0], contexts[2], response),
            (contexts[1], contexts[2], response[:2]),
            (contexts[1], contexts[1], response[:1]),
        ]
    ]
    got = teacher.divergences(asked, top_k=top_k)
    for request, one in zip(asked, got, strict=True):
        p, q = (
            plain_log_rows(model, ids, request.response_ids) for ids in (request.context_ids, request.reference_ids)
        )
        for name, want in divergences(p, q, top_k).items():
            np.testing.assert_allclose(getattr(one, name), want.numpy(), atol=1e-4)
            assert getattr(one, name).dtype == np.float32
    np.testing.assert_allclose(got[2].forward, 0.0, atol=1e-6)
    assert teacher.divergences([]) == []


@torch.inference_mode()
def plain_log_rows(model: Any, context: np.ndarray, response: np.ndarray) -> torch.Tensor:
    ids = torch.from_numpy(np.concatenate([context, response]).astype(np.int64))[None]
    return model(input_ids=ids, use_cache=False).logits[0, len(context) - 1 : -1].float().log_softmax(-1)


def test_divergences_of_no_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        HFTeacher(tiny_model("llama"), tiny_tokenizer(), name="llama", mode="packed").divergences([], top_k=0)


@pytest.mark.parametrize("family", ["gemma3", "mistral"])
def test_the_self_test_reaches_beyond_a_wide_window(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that forgets a window of 400 tokens, which the test's sequences of about a hundred do not fill."""
    attend = packed.attend

    def blind(*args: Any, sliding_window: int | None = None, **kwargs: Any) -> Any:
        return attend(*args, **kwargs)

    model = tiny_model(family, sliding_window=400)
    assert loaded(model, family).mode == "packed"
    monkeypatch.setitem(packed.AttentionInterface._global_mapping, packed.NAME, blind)
    with pytest.warns(UserWarning, match="scoring by packed differs"):
        teacher = HFTeacher(model, tiny_tokenizer(), name=family)
    assert teacher.mode == "branches"
    windows = {m.sliding_window for m in [model.config, *model.modules()] if getattr(m, "sliding_window", None)}
    assert windows == {400}


def test_equal_requests_are_forwarded_once() -> None:
    teacher = HFTeacher(tiny_model("llama"), tiny_tokenizer(), name="llama", mode="packed")
    teacher.score([request([5, 6, 7, 8], [9, 10, 11]), request([5, 6, 7, 8], [9, 10, 11])])
    assert teacher.tokens_forwarded == 6  # the context, 4, and the response but for its last token, 2
    assert teacher.score([]) == []


def test_a_response_of_one_token_needs_its_context_alone() -> None:
    teacher = HFTeacher(tiny_model("llama"), tiny_tokenizer(), name="llama", mode="packed")
    teacher.score([request([5, 6, 7, 8], [9]), request([5, 6, 7, 8], [10])])
    assert teacher.tokens_forwarded == 4


def test_the_score_of_a_response_does_not_depend_on_its_batch() -> None:
    teacher = HFTeacher(tiny_model("qwen3"), tiny_tokenizer(), name="qwen3")
    requests = random_requests(3)
    together = teacher.score(requests)
    for asked, got in zip(requests, together, strict=True):
        np.testing.assert_allclose(teacher.score([asked])[0].logprob, got.logprob, atol=1e-4)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError(CPU_MESSAGE)])
@pytest.mark.parametrize("family", ["llama", "qwen3_5"])
def test_running_out_of_memory_halves_the_budget(family: str, error: Exception) -> None:
    model = tiny_model(family, initializer_range=0.2)
    teacher = HFTeacher(model, tiny_tokenizer(), name=family, token_budget=300)
    forward = model.model.forward

    def small(input_ids: torch.Tensor, **kwargs: Any) -> Any:
        if input_ids.numel() > 100:
            raise error
        return forward(input_ids=input_ids, **kwargs)

    model.model.forward = small
    requests = random_requests()
    with pytest.warns(UserWarning, match="out of memory") as seen:
        scores = teacher.score(requests)
    assert [str(w.message) for w in seen] == [
        f"out of memory: going on with a token budget of {budget}" for budget in (150, 75)
    ]
    assert teacher.token_budget == 75
    model.model.forward = forward
    for asked, got in zip(requests, scores, strict=True):
        want = plain_log_probs(model, asked.context_ids, asked.response_ids)
        np.testing.assert_allclose(got.logprob, want, atol=1e-4, rtol=0)


def test_another_error_is_not_taken_for_a_lack_of_memory() -> None:
    model = tiny_model("llama")
    teacher = HFTeacher(model, tiny_tokenizer(), name="llama", token_budget=8)
    model.model.forward = lambda **_: (_ for _ in ()).throw(RuntimeError("device lost"))
    with pytest.raises(RuntimeError, match="device lost"):
        teacher.score(random_requests())
    assert teacher.token_budget == 8


@pytest.mark.parametrize(
    ("family", "mode", "most"),
    [("llama", "packed", 8), ("llama", "branches", 8), ("gemma2", "branches", 8), ("llama", "head", 202)],
)
def test_unrelated_sequences_keep_to_the_budget(family: str, mode: Any, most: int) -> None:
    """Two sequences of 202 tokens that share nothing; only ``head`` reads a sequence whole, one at a time."""
    rng = np.random.default_rng(0)
    requests = [request([first, *rng.integers(4, 300, 190).tolist()], [7] * 12) for first in (4, 5)]
    model = tiny_model(family, initializer_range=0.2)
    teacher = HFTeacher(model, tiny_tokenizer(), name=family, mode=mode, token_budget=8)
    read: list[int] = []
    watch = model.get_input_embeddings().register_forward_hook(lambda _, args, out: read.append(args[0].numel()))
    scores = teacher.score(requests)
    watch.remove()
    assert max(read) == most
    assert sum(read) == teacher.tokens_forwarded == 2 * 202  # 191 of the context and 11 of the response
    for asked, got in zip(requests, scores, strict=True):
        want = plain_log_probs(model, asked.context_ids, asked.response_ids)
        np.testing.assert_allclose(got.logprob, want, atol=1e-4, rtol=0)


def test_one_path_is_held_beside_the_chunk() -> None:
    """Sixty branches of 20 tokens behind 50 shared ones: the buffers are as long as one path."""
    rng = np.random.default_rng(0)
    stem = rng.integers(4, 300, 50).tolist()
    requests = [request(stem, rng.integers(4, 300, 20).tolist()) for _ in range(60)]
    teacher = HFTeacher(tiny_model("llama"), tiny_tokenizer(), name="llama", mode="packed", token_budget=64)
    capacities = []

    class Counted(packed.Path):
        def __init__(self, capacity: int) -> None:
            capacities.append(capacity)
            super().__init__(capacity)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "Path", Counted)
        teacher.score(requests)
    assert capacities == [50 + 19]


def test_caches_of_a_path_share_their_keys() -> None:
    """Two stems one above the other: the upper one looks at the beginning of the lower one's keys."""
    model = tiny_model("llama")
    cache: Any = DynamicCache(config=model.config)
    ids = torch.arange(4, 34)[None]
    with torch.inference_mode():
        model.model(input_ids=ids, past_key_values=cache)
        lower: Any = BranchReader._fork(cache, 1)
        before = cache.layers[0].keys.clone()
        model.model(input_ids=ids, past_key_values=lower)
    branching._share([cache], lower)
    assert torch.equal(cache.layers[0].keys, before)
    assert cache.layers[0].keys.data_ptr() == lower.layers[0].keys.data_ptr()
    assert (cache.get_seq_length(), lower.get_seq_length()) == (30, 60)


def test_the_model_is_as_before_after_scoring() -> None:
    model = tiny_model("llama")
    before = model.config._attn_implementation
    HFTeacher(model, tiny_tokenizer(), name="llama").score(random_requests())
    assert model.config._attn_implementation == before


def test_attention_that_looks_elsewhere_falls_back_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(self: Any, before: int, n: int, window: int | None, like: torch.Tensor) -> torch.Tensor:
        return torch.eye(n, before + n, dtype=torch.bool)  # each token sees one of the path

    monkeypatch.setattr(packed.Path, "mask", forgetful)
    with pytest.warns(UserWarning, match="'llama': scoring by packed differs"):
        teacher = HFTeacher(tiny_model("llama"), tiny_tokenizer(), name="llama")
    assert teacher.mode == "branches"


def test_a_family_whose_cache_cannot_be_reused_falls_back_and_says_so() -> None:
    model = tiny_model("qwen3_5")
    decoder_forward = model.model.forward

    def forgetful(*args: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
        if past_key_values is not None and past_key_values.get_seq_length():
            past_key_values = None  # a decoder that ignores what came before
        return decoder_forward(*args, past_key_values=past_key_values, **kwargs)

    model.model.forward = forgetful
    with pytest.warns(UserWarning, match="'qwen3_5_text': scoring by branches differs"):
        teacher = HFTeacher(model, tiny_tokenizer(), name="qwen3_5")
    assert teacher.mode == "head"


def test_attention_of_another_kind_falls_back() -> None:
    """Gemma 2 caps attention logits, which attention along a path does not do."""
    model = tiny_model("gemma2")
    with pytest.warns(UserWarning, match="'gemma2': scoring by packed failed .attention with softcap"):
        teacher = HFTeacher(model, tiny_tokenizer(), name="gemma2")
    assert teacher.mode == "branches"
    check(teacher, model, random_requests())


def test_positions_that_depend_on_the_whole_length_are_not_shared() -> None:
    model = tiny_model("llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0})
    with pytest.warns(UserWarning, match="'llama': its rotary embedding depends on the length"):
        assert HFTeacher(model, tiny_tokenizer(), name="llama").mode == "logits"


def test_a_head_with_something_after_it_falls_back_to_logits() -> None:
    model = tiny_model("llama")
    forward = model.forward

    def scaled(*args: Any, **kwargs: Any) -> Any:
        out = forward(*args, **kwargs)
        out.logits = out.logits * 0.5
        return out

    model.forward = scaled
    with pytest.warns(UserWarning, match="scoring by") as seen:
        teacher = HFTeacher(model, tiny_tokenizer(), name="llama")
    assert [str(w.message).partition(" differs")[0] for w in seen] == [
        f"model family 'llama': scoring by {mode}" for mode in ("packed", "branches", "head")
    ]
    assert teacher.mode == "logits"


def test_bfloat16_is_close_and_still_shares() -> None:
    model = tiny_model("llama", initializer_range=0.1).to(torch.bfloat16)
    teacher = HFTeacher(model, tiny_tokenizer(), name="llama")
    assert teacher.mode == "packed"
    assert teacher.provenance()["dtype"] == "bfloat16"


def test_another_configuration_is_another_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOPD_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    tiny_model("llama", initializer_range=0.2).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)

    def load() -> HFTeacher:
        teacher = HFTeacher.load(str(folder), device="cpu")
        described = HFTeacher.describe(str(folder)).provenance()
        assert {**described, "mode": teacher.mode} == teacher.provenance()
        return teacher

    asked = [request(list(range(5, 45)), [7, 8, 9])]
    before = load()
    with CachedTeacher(before, tmp_path / "scores") as kept:
        first = kept.score(asked)[0].logprob
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["rope_parameters"]["rope_theta"] = 17.0
    path.write_text(json.dumps(config))
    after = load()
    assert after.weights_hash == before.weights_hash
    again = CachedTeacher(after, tmp_path / "scores")
    second = again.score(asked)[0].logprob
    assert again.cache_hits == 0
    assert np.abs(first - second).max() > 1e-3  # stale scores would have been wrong
    rollouts = make_rollouts({"a": "sf"})
    assert fingerprint(rollouts, after, StudyConfig()) != fingerprint(rollouts, before, StudyConfig())


@pytest.mark.parametrize("budget", [0, -1])
def test_a_budget_below_one_token_is_refused(budget: int) -> None:
    with pytest.raises(ValueError, match=f"token_budget must be at least 1, got {budget}"):
        HFTeacher(tiny_model("llama"), tiny_tokenizer(), name="llama", token_budget=budget)


@pytest.mark.parametrize(
    ("line", "folder", "limit", "used", "idle"),
    [
        ("0::/pod/job", "pod/job", "memory.max", "memory.current", "inactive_file"),
        (
            "4:memory:/pod/job",
            "memory/pod/job",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    ],
)
def test_a_container_bounds_the_free_memory(
    line: str, folder: str, limit: str, used: str, idle: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = tmp_path / "cgroups" / folder
    own.mkdir(parents=True)
    (tmp_path / "self").write_text(f"1:name=systemd:/\n{line}\n")
    monkeypatch.setattr(memory, "CGROUP", tmp_path / "self")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroups")
    cpu = torch.device("cpu")
    unbounded = memory.free_bytes(cpu)
    for group, most, now in ((own, "max", 10), (own.parent, "1000", 700)):
        (group / limit).write_text(f"{most}\n")
        (group / used).write_text(f"{now}\n")
        (group / "memory.stat").write_text(f"anon 500\n{idle} 150\n")
    assert memory.free_bytes(cpu) == 1000 - 700 + 150
    (own.parent / used).write_text("1200\n")
    assert memory.free_bytes(cpu) == 0
    (own.parent / limit).write_text("max\n")
    assert memory.free_bytes(cpu) > unbounded / 2


def test_the_budget_follows_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    # per token (8 * 32 + 3 * 64) * 4 bytes = 1792; the head's rows take 3 * 256 * 300 * 4 = 921,600
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2 * (921_600 + 1792 * 1000))
    assert memory.automatic_budget(model) == 1000
    monkeypatch.setattr(memory, "free_bytes", lambda device: 0)
    assert memory.automatic_budget(model) == memory.LEAST_TOKENS
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2**60)
    assert memory.automatic_budget(model) == memory.MOST_TOKENS["cpu"]
