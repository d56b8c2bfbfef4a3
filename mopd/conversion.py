"""From a quantised GGUF file to a model folder of transformers (safetensors in float32, tokenizer, template).

Three things are not a plain reading of the file, because a plain reading is not the model that was released:

- The tokenizer is built from the file's vocabulary and merges with the released model's pre-tokenizer and
  normaliser. The GGUF reader of transformers knows neither SmolLM2's split at digits (it reads a blank line
  before a digit as two tokens where the model was trained on one) nor Qwen2.5's NFC normaliser.
- Entries of the vocabulary that only pad the embedding matrix (``[PAD151665]`` and so on) are no tokens.
- The released models have one matrix for embedding and head. Qwen2.5-Coder's file stores two roundings of it
  (5 and 8 bits); the finer one, the head, serves for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

__all__ = ["CONVERTING_PACKAGES", "convert"]

CONVERTING_PACKAGES = ("torch", "transformers", "tokenizers", "gguf", "safetensors")


def convert(gguf: Path, folder: Path, *, end_tokens: Sequence[str]) -> None:
    """Save the GGUF file's model (float32), tokenizer, chat template and generation config into ``folder``.

    ``end_tokens`` are those of the released generation config, the chat one first. Raises ValueError if the
    file's own end token is another one, or its pre-tokenizer is not one of the two known ones.
    """
    from transformers import GenerationConfig

    tokenizer = _tokenizer(gguf)
    if tokenizer.eos_token != end_tokens[0]:
        raise ValueError(f"the end token of {gguf} is {tokenizer.eos_token!r}, expected {end_tokens[0]!r}")
    model = _model(gguf)
    ends = [tokenizer.convert_tokens_to_ids(token) for token in end_tokens]
    special = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model.config.update({**special, "eos_token_id": ends[0]})
    model.generation_config = GenerationConfig(**special, eos_token_id=ends if len(ends) > 1 else ends[0])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _model(gguf: Path) -> PreTrainedModel:
    """The dequantised model in float32, embedding and head tied as released, free of traces of GGUF."""
    import torch
    from transformers import AutoModelForCausalLM

    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config, state = read.config, read.state_dict()
    for trace in ("quantization_config", "_model_name_or_path"):
        delattr(config, trace)
    config._name_or_path = ""
    if not config.tie_word_embeddings:  # both presets are tied; a second matrix is a second rounding of the first
        config.tie_word_embeddings = True
        state["model.embed_tokens.weight"] = state["lm_head.weight"]
    del read
    # On the meta device, so that the fresh model costs no memory before the weights are put in.
    with torch.device("meta"):
        fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    fresh.load_state_dict(state, assign=True)
    fresh.tie_weights()
    return fresh


def _tokenizer(gguf: Path) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    fields = _tokenizer_fields(gguf)
    tokens = fields["tokens"]
    special = {
        f"{role}_token": tokens[fields[f"{key}_token_id"]]
        for role, key in {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}.items()
        if f"{key}_token_id" in fields
    }
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_backend(fields),
        model_max_length=fields["context_length"],
        clean_up_tokenization_spaces=False,
        **special,
    )
    tokenizer.chat_template = fields["chat_template"]
    return tokenizer


def _tokenizer_fields(gguf: Path) -> dict[str, Any]:
    """The file's ``tokenizer.*`` fields by their last name, and the context length."""
    from gguf import GGUFReader

    fields = {}
    for key, value in GGUFReader(gguf).fields.items():
        if key.startswith("tokenizer.") or key.endswith(".context_length"):
            fields[key.rsplit(".", 1)[1]] = value.contents()
    return fields


def _backend(fields: dict[str, Any]) -> Tokenizer:
    """A byte-level BPE of the file's vocabulary and merges, split and normalised as released."""
    from gguf import TokenType
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    kinds = dict(zip(fields["tokens"], fields["token_type"], strict=True))
    ids = {token: index for index, token in enumerate(fields["tokens"]) if kinds[token] != TokenType.UNUSED}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[tuple(merge.split(" ")) for merge in fields["merges"]]))
    if fields["pre"] == "smollm":
        split = pre_tokenizers.Digits(individual_digits=True)
    elif fields["pre"] == "qwen2":
        split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated")
        tokenizer.normalizer = normalizers.NFC()
    else:
        raise ValueError(f"the GGUF file's pre-tokenizer is {fields['pre']!r}, expected 'smollm' or 'qwen2'")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=fields["pre"] == "smollm")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    whole = {TokenType.CONTROL: True, TokenType.USER_DEFINED: False}  # never split; the value: is it special?
    tokenizer.add_tokens(
        [AddedToken(token, special=whole[kinds[token]], normalized=False) for token in ids if kinds[token] in whole]
    )
    return tokenizer
