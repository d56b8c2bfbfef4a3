"""The hf teacher against the model's own forward, one sequence at a time."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

from mopd.rollouts import Group
from mopd.teachers.base import ScoreRequest
from mopd.teachers.hf import HFTeacher
from tests.tiny import plain_log_probs, tiny_model, tiny_tokenizer

FAMILIES = ("llama", "qwen3", "gemma3")
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
    """Shared and unshared contexts, longer and shorter than Gemma's window of 16, responses of 1 to 40 tokens."""
    rng = np.random.default_rng(seed)
    contexts = [rng.integers(4, 300, n).tolist() for n in (1, 7, 40, 90)]
    return [request(context, rng.integers(4, 300, n).tolist()) for context in contexts for n in (1, 5, 5, 40, 17)]


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("batch_tokens", [1, 64, 100_000])
def test_log_probs_equal_those_of_the_plain_forward(family: str, batch_tokens: int) -> None:
    model = tiny_model(family)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no fallback on these families
        teacher = HFTeacher(model, tiny_tokenizer(), name=family, batch_tokens=batch_tokens)
    assert teacher.mode == "reuse"
    requests = random_requests()
    for asked, got in zip(requests, teacher.score(requests), strict=True):
        want = plain_log_probs(model, asked.context_ids, asked.response_ids)
        np.testing.assert_allclose(got.logprob, want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("mode", ["head", "logits"])
def test_the_slower_ways_give_the_same_numbers(family: str, mode: Any) -> None:
    model = tiny_model(family)
    teacher = HFTeacher(model, tiny_tokenizer(), name=family, mode=mode)
    requests = random_requests(1)[:10]
    for asked, got in zip(requests, teacher.score(requests), strict=True):
        want = plain_log_probs(model, asked.context_ids, asked.response_ids)
        np.testing.assert_allclose(got.logprob, want, atol=1e-4, rtol=0)


def test_logit_softcapping_is_applied() -> None:
    model = tiny_model("gemma3", final_logit_softcapping=1.5)
    teacher = HFTeacher(model, tiny_tokenizer(), name="capped")
    assert teacher.mode == "reuse"
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


def test_equal_requests_are_forwarded_once() -> None:
    teacher = HFTeacher(tiny_model("llama"), tiny_tokenizer(), name="llama", mode="reuse")
    teacher.score([request([5, 6, 7, 8], [9, 10, 11]), request([5, 6, 7, 8], [9, 10, 11])])
    # the context but for its last token: 3; that token and the response but for its last: 1 + 2
    assert teacher.tokens_forwarded == 6


def test_the_score_of_a_response_does_not_depend_on_its_batch() -> None:
    teacher = HFTeacher(tiny_model("qwen3"), tiny_tokenizer(), name="qwen3")
    requests = random_requests(3)
    together = teacher.score(requests)
    for asked, got in zip(requests, together, strict=True):
        np.testing.assert_allclose(teacher.score([asked])[0].logprob, got.logprob, atol=1e-5)


def test_a_family_whose_cache_cannot_be_reused_falls_back_and_says_so() -> None:
    model = tiny_model("llama")
    decoder_forward = model.model.forward

    def forgetful(*args: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
        if past_key_values is not None and past_key_values.get_seq_length():
            past_key_values = None  # a decoder that ignores what came before
        return decoder_forward(*args, past_key_values=past_key_values, **kwargs)

    model.model.forward = forgetful
    with pytest.warns(UserWarning, match="'llama': scoring by reuse differs"):
        teacher = HFTeacher(model, tiny_tokenizer(), name="llama")
    assert teacher.mode == "head"


def test_a_head_with_something_after_it_falls_back_to_logits() -> None:
    model = tiny_model("llama")
    forward = model.forward

    def scaled(*args: Any, **kwargs: Any) -> Any:
        out = forward(*args, **kwargs)
        out.logits = out.logits * 0.5
        return out

    model.forward = scaled
    with pytest.warns(UserWarning, match="'llama': scoring by"):
        teacher = HFTeacher(model, tiny_tokenizer(), name="llama")
    assert teacher.mode == "logits"


def test_bfloat16_is_close_and_still_reuses() -> None:
    model = tiny_model("llama", initializer_range=0.1).to(torch.bfloat16)
    teacher = HFTeacher(model, tiny_tokenizer(), name="llama")
    assert teacher.mode == "reuse"
    assert teacher.provenance()["dtype"] == "bfloat16"
