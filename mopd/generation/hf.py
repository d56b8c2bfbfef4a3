"""Sampling with transformers: any causal language model, no other engine needed. vLLM is the one for real work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers
from transformers import GenerationConfig

from mopd.generation.base import Completion, Sampling, complete, end_ids
from mopd.pretrained import load_pretrained
from mopd.rollouts import Prompt
from mopd.tokens import HFCodec

__all__ = ["HFSampler"]


class HFSampler:
    """Samples from a causal language model, one padded batch a call.

    Args:
        model: a ``PreTrainedModel`` with a language-model head, in evaluation mode.
        tokenizer: its tokenizer.
        name: how tables name it.
        template_kwargs: handed through to the chat template.
        weights_hash: content hash of the weights, for provenance.
    """

    seeded = True

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str,
        template_kwargs: Mapping[str, Any] | None = None,
        weights_hash: str | None = None,
    ) -> None:
        self.model = model
        self.name = name
        self.codec = HFCodec(tokenizer, name=name, template_kwargs=template_kwargs)
        self.weights_hash = weights_hash
        self.end_ids = end_ids(_named_end(model), self.codec)
        self.window: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        # What the model's own configuration says (top-k 50, penalties) would be filled in where ours is silent.
        model.generation_config = GenerationConfig()

    @classmethod
    def load(
        cls,
        name: str,
        *,
        dtype: str = "float32",
        device: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        trust_remote_code: bool = False,
    ) -> HFSampler:
        """Load a preset, a hub id or a local folder (``mopd.models.resolve``).

        Args:
            name: which model.
            dtype: ``float32`` or ``bfloat16``.
            device: a torch device; None takes the GPU if there is one.
            template_kwargs: handed through to the chat template.
            trust_remote_code: run code that comes with the model.
        """
        loaded = load_pretrained(name, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
        return cls(
            loaded.model,
            loaded.tokenizer,
            name=name,
            template_kwargs=template_kwargs,
            weights_hash=loaded.weights_hash,
        )

    def provenance(self) -> Mapping[str, Any]:
        return {
            "backend": "hf",
            "model": self.name,
            "weights": self.weights_hash,
            "tokenizer_and_template": self.codec.hash,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "engine": f"transformers {transformers.__version__}",
        }

    @torch.inference_mode()
    def sample(self, prompts: Sequence[Prompt], n: int, *, sampling: Sampling, seed: int) -> list[list[Completion]]:
        rows = [self.codec.encode_prompt(p) for p in prompts]
        ids, mask = _pad_left(rows, self.model.device)
        with torch.random.fork_rng(devices=[self.model.device] if self.model.device.type == "cuda" else []):
            torch.manual_seed(seed)
            out = self.model.generate(input_ids=ids, attention_mask=mask, generation_config=self._config(sampling, n))
        completions = [complete(row, self.end_ids, self.codec) for row in out[:, ids.shape[1] :].tolist()]
        return [completions[i * n : (i + 1) * n] for i in range(len(prompts))]

    def _config(self, sampling: Sampling, n: int) -> GenerationConfig:
        return GenerationConfig(
            do_sample=True,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=0,
            repetition_penalty=1.0,
            max_new_tokens=sampling.max_tokens,
            num_return_sequences=n,
            eos_token_id=sorted(self.end_ids),
            pad_token_id=min(self.end_ids),  # never read: masked in the prompt, cut off after the end
        )


def _named_end(model: Any) -> int | list[int] | None:
    named = getattr(model.generation_config, "eos_token_id", None)
    return getattr(model.config.get_text_config(), "eos_token_id", None) if named is None else named


def _pad_left(rows: Sequence[Sequence[int]], device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [P, T] and mask [P, T], the prompts flush right."""
    width = max(map(len, rows))
    ids = torch.zeros((len(rows), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = torch.tensor(row)
        mask[i, width - len(row) :] = 1
    return ids.to(device), mask.to(device)
