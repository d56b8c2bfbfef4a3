"""Tiny random models and the plain way to score with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3_5ForCausalLM,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.4,  # far from uniform, so that a wrong position shows
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW: dict[str, Any] = {"sliding_window": 16}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def trainable(folder: Path, **changes: Any) -> Path:
    """A tiny random model with its tokenizer, saved in a folder, which is returned."""
    tokenizer = tiny_tokenizer()
    changes = {"max_position_embeddings": 1024, "vocab_size": len(tokenizer)} | changes
    tiny_model("llama", **changes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_model(family: str, **changes: Any) -> Any:
    """A random model in evaluation mode, the same at each call."""
    torch.manual_seed(0)
    settings = SIZES | changes
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(**settings)).eval()
    if family == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**settings)).eval()
    if family == "gemma2":
        return Gemma2ForCausalLM(Gemma2Config(**settings | WINDOW | changes)).eval()
    if family == "gemma3":
        sliding: dict[str, Any] = {
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        }
        return Gemma3ForCausalLM(Gemma3TextConfig(**settings | sliding | changes)).eval()
    if family == "mistral":
        return MistralForCausalLM(MistralConfig(**settings | WINDOW | changes)).eval()
    if family in ("qwen3_next", "qwen3_5"):
        hybrid: dict[str, Any] = {
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        }
        if family == "qwen3_5":
            return Qwen3_5ForCausalLM(Qwen3_5TextConfig(**settings | hybrid | changes)).eval()
        experts: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
        experts["shared_expert_intermediate_size"] = 16
        return Qwen3NextForCausalLM(Qwen3NextConfig(**settings | hybrid | experts | changes)).eval()
    raise ValueError(family)


def tiny_tokenizer(chat_template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """Bytes, and the control tokens of ChatML."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", "<s>", "<|im_end|>", "<|im_start|>"]
    vocabulary = {token: i for i, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    fast.chat_template = chat_template
    return fast


@torch.inference_mode()
def plain_log_probs(model: Any, context: np.ndarray, response: np.ndarray) -> np.ndarray:
    """[T] log-probs of a response, one sequence through the model's own forward, all logits, in float32."""
    ids = torch.from_numpy(np.concatenate([context, response]).astype(np.int64))[None]
    log_p = model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
    rows = log_p[len(context) - 1 : -1]
    return rows.gather(-1, torch.from_numpy(response.astype(np.int64))[:, None])[:, 0].numpy()
