"""Loads a model of transformers and its tokenizer, for scoring and sampling alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mopd import models

__all__ = ["Pretrained", "load_pretrained", "load_tokenizer"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pretrained:
    """A causal language model in evaluation mode on its device, its tokenizer, and the hashes of its files."""

    model: Any
    tokenizer: Any
    weights_hash: str
    config_hash: str


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a preset, a hub id or a local folder (``mopd.models.resolve``)."""
    from transformers import AutoTokenizer

    folder = models.resolve(name, trust_remote_code=trust_remote_code)
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)


def load_pretrained(
    name: str, *, dtype: str = "float32", device: str | None = None, trust_remote_code: bool = False
) -> Pretrained:
    """Load a preset, a hub id or a local folder (``mopd.models.resolve``).

    Args:
        name: which model.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        device: a torch device; None takes the GPU if there is one.
        trust_remote_code: run code that comes with the model.

    Raises:
        ValueError: a GPU was asked for and there is none.
        mopd.models.ModelError: there is no such model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if where.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {where!r} was asked for, but torch finds no CUDA GPU; leave --device out")
    folder: Path = models.resolve(name, trust_remote_code=trust_remote_code)
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), trust_remote_code=trust_remote_code
    )
    return Pretrained(
        model=model.to(where).eval(),
        tokenizer=load_tokenizer(name, trust_remote_code=trust_remote_code),
        weights_hash=models.weights_hash(folder),
        config_hash=models.config_hash(folder),
    )
