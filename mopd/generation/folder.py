"""What a sampler that does not hold the model itself reads from the model's folder: tokenizer, end tokens, hashes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mopd import models
from mopd.generation.base import end_ids
from mopd.tokens import HFCodec

__all__ = ["ModelFolder"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFolder:
    """A model on disk, weights not loaded.

    Attributes:
        name: as it was asked for.
        path: the local folder.
        codec: its tokenizer.
        end_ids: tokens that end an answer.
        weights_hash: content hash of the weights.
        config_hash: of ``config.json``; part of what a teacher is known by.
    """

    name: str
    path: Path
    codec: HFCodec
    end_ids: frozenset[int]
    weights_hash: str
    config_hash: str | None = None

    @classmethod
    def open(
        cls,
        name: str,
        *,
        template_kwargs: Mapping[str, Any] | None = None,
        trust_remote_code: bool = False,
    ) -> ModelFolder:
        """Resolve a preset, a hub id or a local folder and read it (``mopd.models.resolve``)."""
        from transformers import AutoConfig, AutoTokenizer, GenerationConfig

        path = Path(models.resolve(name, trust_remote_code=trust_remote_code))
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        codec = HFCodec(tokenizer, name=name, template_kwargs=template_kwargs)
        try:
            named = GenerationConfig.from_pretrained(path).eos_token_id
        except OSError:  # the folder has none
            named = None
        if named is None:
            config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
            named = getattr(config.get_text_config(), "eos_token_id", None)
        return cls(
            name=name,
            path=path,
            codec=codec,
            end_ids=end_ids(named, codec),
            weights_hash=models.weights_hash(path),
            config_hash=models.config_hash(path),
        )

    def provenance(self) -> dict[str, Any]:
        return {
            "model": self.name,
            "weights": self.weights_hash,
            "tokenizer_and_template": self.codec.hash,
        }
