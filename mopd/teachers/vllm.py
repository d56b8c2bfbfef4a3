"""vLLM's offline engine as a teacher, for a model that only fits there.

Context and response go in as token ids and ``prompt_logprobs`` come back. Two things differ from ``HFTeacher``:

* There is no entropy, since vLLM gives the log-probs of single tokens only.
* vLLM applies the output head to the context as well, and a prompt with ``prompt_logprobs`` does not read the prefix
  cache, because the log-probs of cached tokens would be missing. Ours are asked to read it nevertheless
  (``skip_reading_prefix_cache``): of the context none is needed. Where the cache reaches into a response, what is
  missing is taken from the prompt that filled it, or else asked again without the cache.
"""

# vLLM lives in an environment of its own, where the type checker does not look.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mopd.engine import engine_provenance, on_cpu, start_engine, vllm
from mopd.generation.folder import ModelFolder
from mopd.teachers.base import ScoreRequest, TokenScores
from mopd.teachers.echo import (
    LogProbs,
    check_window,
    fill_shared,
    first_needed,
    log_probs_of,
    prompts,
    token_scores,
)

__all__ = ["VLLMTeacher"]

LOGITS_BYTES = 2 << 30  # for the logits of a step, for which vLLM sets no memory aside
LOGIT_BYTES = 12  # of one of them: in the model's dtype, in float32, and its log-prob
FEWEST_TOKENS, MOST_TOKENS = 256, 8192  # of a step
MOST_PROMPTS = 256  # of a step
CPU_BLOCK = 32  # tokens of a block of the prefix cache; the default of 128 there would share little


class VLLMTeacher:
    """Scores responses with ``vllm.LLM``.

    Args:
        engine: a ``vllm.LLM``.
        folder: the model that it runs.
        read_cache: read shared beginnings from the prefix cache, which vLLM by itself does not.
    """

    def __init__(self, engine: Any, folder: ModelFolder, *, read_cache: bool = True) -> None:
        self.engine = engine
        self.folder = folder
        self.name = folder.name
        self.codec = folder.codec
        self.read_cache = read_cache
        self.window: int | None = engine.llm_engine.model_config.max_model_len - 1  # vLLM always samples one more
        self.tokens_forwarded = 0
        self.cache_hits = 0

    @classmethod
    def load(
        cls,
        name: str,
        *,
        dtype: str = "float32",
        template_kwargs: Mapping[str, Any] | None = None,
        trust_remote_code: bool = False,
        token_budget: int | None = None,
        max_model_len: int | None = None,
        **options: Any,
    ) -> VLLMTeacher:
        """Start an engine for a preset, a hub id or a local folder (``mopd.models.resolve``).

        Args:
            name: which model.
            dtype: ``float32``, or a half precision, which rounds log-probs by amounts that matter here.
            template_kwargs: handed through to the chat template.
            trust_remote_code: run code that comes with the model.
            token_budget: most tokens in one forward; None has their logits take at most 2 GiB.
            max_model_len: most tokens of context and response and one more; None takes the model's.
            options: further ones of ``vllm.LLM``, such as ``tensor_parallel_size``.
        """
        folder = ModelFolder.open(name, template_kwargs=template_kwargs, trust_remote_code=trust_remote_code)
        budget = token_budget or step_tokens(len(folder.codec.tokenizer))
        settings: dict[str, Any] = {
            "dtype": dtype,
            "trust_remote_code": trust_remote_code,
            "max_model_len": max_model_len,
            "max_num_batched_tokens": budget,
            "max_num_seqs": min(MOST_PROMPTS, budget),
        }
        if on_cpu():
            settings["block_size"] = CPU_BLOCK
        return cls(start_engine(folder, **settings | options), folder)

    def provenance(self) -> Mapping[str, Any]:
        known = {**self.folder.provenance(), "config": self.folder.config_hash}
        return {**known, **engine_provenance(self.engine), "teacher": "vllm"}

    def score(self, requests: Sequence[ScoreRequest]) -> list[TokenScores]:
        check_window(requests, self.window, self.name)
        trie = prompts(requests)
        needed = first_needed(trie)
        found = self._ask(trie.sequences, needed, read_cache=self.read_cache)
        fill_shared(found, trie.shared)
        missing = [i for i, log_probs in enumerate(found) if np.isnan(log_probs[needed[i] :]).any()]
        if missing and self.read_cache:
            again = self._ask([trie.sequences[i] for i in missing], needed[missing], read_cache=False)
            for i, log_probs in zip(missing, again, strict=True):
                found[i] = log_probs
        return token_scores(trie, found)

    def _ask(self, sequences: Sequence[np.ndarray], needed: np.ndarray, *, read_cache: bool) -> list[LogProbs]:
        """Log-probs of each sequence from ``needed`` on; NaN where the cache was read."""
        params = vllm.SamplingParams(
            max_tokens=1,
            temperature=0.0,
            prompt_logprobs=0,  # the prompt's own tokens and no others
            detokenize=False,
            flat_logprobs=True,
            skip_reading_prefix_cache=not read_cache,
        )
        found: list[LogProbs] = []
        for batch in self._batches(sequences):
            asked = [{"prompt_token_ids": ids.tolist()} for ids in batch]
            for ids, output in zip(batch, self.engine.generate(asked, params, use_tqdm=False), strict=True):
                # The token after the cached ones is predicted by the last of them, and nobody looked at that.
                first = max(int(needed[len(found)]), (output.num_cached_tokens or 0) + 1)
                self.tokens_forwarded += len(ids) - (output.num_cached_tokens or 0)
                found.append(
                    log_probs_of(ids, output.prompt_logprobs or (), first, lambda said, token: said[token].logprob)
                )
        return found

    def _batches(self, sequences: Sequence[np.ndarray]) -> Iterator[Sequence[np.ndarray]]:
        """Sequences in their order, as many at a time as the KV cache holds.

        A prompt that had to make room for others would start again, and then the number of cached tokens, by which the
        known log-probs are told from the unknown, would no longer be that of its first start.
        """
        config = self.engine.llm_engine.vllm_config.cache_config
        room = getattr(config, "kv_cache_size_tokens", None) or config.num_gpu_blocks * config.block_size
        start, held = 0, 0
        for i, ids in enumerate(sequences):
            blocks = (len(ids) // config.block_size + 1) * config.block_size  # with the token sampled after it
            if i > start and held + blocks > room:
                yield sequences[start:i]
                start, held = i, 0
            held += blocks
        if start < len(sequences):
            yield sequences[start:]


def step_tokens(vocabulary: int) -> int:
    """Most tokens of a step whose logits take no more than ``LOGITS_BYTES``."""
    return min(MOST_TOKENS, max(FEWEST_TOKENS, LOGITS_BYTES // (LOGIT_BYTES * vocabulary)))
