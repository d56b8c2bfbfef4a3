"""Models of a known shape with random weights, and groups of random tokens: speed without a download.

What a forward costs depends on shapes alone. Token ids are drawn at random, so that prefixes are shared where
contexts share them and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mopd.conditions import condition
from mopd.teachers.plan import Pair, Trie, build_trie

if TYPE_CHECKING:
    from mopd.teachers.hf import HFTeacher

__all__ = ["PEAK_TFLOPS", "SHAPES", "Shape", "random_teacher", "random_tries"]

PEAK_TFLOPS = {"A100": 312.0, "H100": 989.0, "H200": 989.0}
"""Dense bfloat16 products of the SXM boards, as their vendor gives them."""
ROLLOUTS = 8


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model of the Qwen3 family, and lengths in tokens from - to."""

    config: dict[str, Any]
    prompt: tuple[int, int]
    response: tuple[int, int]


SHAPES = {
    "qwen3-4b": Shape(
        config={
            "vocab_size": 151936,
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 40960,
            "tie_word_embeddings": True,
        },
        prompt=(300, 1500),
        response=(300, 4000),
    ),
    "tiny": Shape(
        config={
            "vocab_size": 300,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 4096,
        },
        prompt=(5, 20),
        response=(5, 30),
    ),
}


def random_teacher(shape: Shape, *, dtype: str, device: str | None, token_budget: int | None) -> HFTeacher:
    """A teacher with random weights, made where it stays."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    from mopd.teachers.hf import HFTeacher

    torch.manual_seed(0)
    with torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")):
        model = Qwen3ForCausalLM(Qwen3Config(**shape.config)).to(getattr(torch, dtype)).eval()
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"?": 0}, unk_token="?")))
    return HFTeacher(model, words, name="random", token_budget=token_budget)


def random_tries(shape: Shape, conditions: Sequence[str], groups: int, *, seed: int = 0) -> list[Trie]:
    """Groups of eight rollouts, four of them right, each target under a context of the others (self-exclusion)."""
    rng = np.random.default_rng(seed)

    def some(n: int) -> np.ndarray:
        return rng.integers(0, shape.config["vocab_size"], n).astype(np.int32)

    shell = some(8)  # wording before each peer
    tries = []
    for _ in range(groups):
        prompt = some(int(rng.integers(*shape.prompt, endpoint=True)))
        responses = [some(int(rng.integers(*shape.response, endpoint=True))) for _ in range(ROLLOUTS)]
        pairs: list[Pair] = [(prompt, response) for response in responses]
        for recipe in map(condition, conditions):
            for target, response in enumerate(responses):
                right = [i for i in range(0, ROLLOUTS, 2) if i != target][recipe.success_offset :][
                    : recipe.success_slots
                ]
                wrong = [i for i in range(1, ROLLOUTS, 2) if i != target][: recipe.failure_slots]
                shown = [part for i in (*right, *wrong) for part in (shell, responses[i])]
                pairs.append((np.concatenate([prompt, *shown, shell[:4]]), response))
        tries.append(build_trie(pairs))
    return tries
