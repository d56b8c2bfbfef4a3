"""A causal language model of transformers as a teacher.

Each distinct context is forwarded once and its KV cache shared by all responses read under it; the output head is
applied to response rows only, a chunk of rows at a time, so that peak memory does not grow with context length times
vocabulary. Responses are right-padded: under causal attention a pad after the response cannot reach it.

At load a short case is compared with the model's own forward. A family for which cache reuse or the head on hidden
states does not give the same numbers falls back to slower ways, with a warning that names it.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from mopd import models
from mopd.teachers.base import ScoreRequest, TokenScores
from mopd.tokens import HFCodec

__all__ = ["HFTeacher"]

Mode = Literal["reuse", "head", "logits"]
TOLERANCE = 1e-3  # nats; a wrong path is off by tenths, rounding by less than 1e-4
HEAD_ROWS = 256
BATCH_TOKENS = 2048


class HFTeacher:
    """Scores responses with a causal language model.

    Args:
        model: a ``PreTrainedModel`` with a language-model head, in evaluation mode.
        tokenizer: its tokenizer.
        name: how tables name it.
        template_kwargs: handed through to the chat template.
        batch_tokens: most response tokens, padding included, in one forward.
        mode: None finds the fastest that agrees with a plain forward; or ``reuse``, ``head``, ``logits``.
        weights_hash: content hash of the weights, for provenance.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str,
        template_kwargs: Mapping[str, Any] | None = None,
        batch_tokens: int = BATCH_TOKENS,
        mode: Mode | None = None,
        weights_hash: str | None = None,
    ) -> None:
        self.model = model
        self.name = name
        self.codec = HFCodec(tokenizer, name=name, template_kwargs=template_kwargs)
        self.batch_tokens = batch_tokens
        self.tokens_forwarded = 0
        self.weights_hash = weights_hash
        self.device = next(model.parameters()).device
        self.dtype = next(model.parameters()).dtype
        self._config = model.config.get_text_config()
        self.window: int | None = getattr(self._config, "max_position_embeddings", None)
        self.mode: Mode = mode or self._fastest_mode()
        self.tokens_forwarded = 0  # those of the self-test do not count

    @classmethod
    def load(
        cls,
        name: str,
        *,
        dtype: str = "float32",
        device: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        trust_remote_code: bool = False,
        batch_tokens: int = BATCH_TOKENS,
    ) -> HFTeacher:
        """Load a preset, a hub id or a local folder (``mopd.models.resolve``).

        Args:
            name: which model.
            dtype: ``float32`` or ``bfloat16``; bfloat16 moves a mean log-prob by up to 0.07 nats.
            device: a torch device; None takes the GPU if there is one.
            template_kwargs: handed through to the chat template.
            trust_remote_code: run code that comes with the model.
            batch_tokens: most response tokens in one forward.
        """
        folder = models.resolve(name)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), trust_remote_code=trust_remote_code
        )
        where = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(
            model.to(where).eval(),
            tokenizer,
            name=name,
            template_kwargs=template_kwargs,
            batch_tokens=batch_tokens,
            weights_hash=models.weights_hash(Path(folder)),
        )

    def provenance(self) -> Mapping[str, Any]:
        return {
            "teacher": "hf",
            "model": self.name,
            "weights": self.weights_hash,
            "tokenizer_and_template": self.codec.hash,
            "dtype": str(self.dtype).removeprefix("torch."),
            "mode": self.mode,
            "batch_tokens": self.batch_tokens,
        }

    def score(self, requests: Sequence[ScoreRequest]) -> list[TokenScores]:
        by_context: dict[bytes, dict[bytes, None]] = {}
        for request in requests:
            by_context.setdefault(request.context_ids.tobytes(), {})[request.response_ids.tobytes()] = None
        done: dict[tuple[bytes, bytes], TokenScores] = {}
        for context, responses in by_context.items():
            context_ids = np.frombuffer(context, dtype=np.int32)
            response_ids = [np.frombuffer(r, dtype=np.int32) for r in responses]
            scores = self._score_context(context_ids, response_ids)
            done.update({(context, key): s for key, s in zip(responses, scores, strict=True)})
        return [done[r.context_ids.tobytes(), r.response_ids.tobytes()] for r in requests]

    @torch.inference_mode()
    def _score_context(self, context: np.ndarray, responses: Sequence[np.ndarray]) -> list[TokenScores]:
        """Scores of several responses [T_i] under one context [S]."""
        if self.mode == "logits":
            return [self._from_logits(context, response) for response in responses]
        # The last context token goes with the responses: its hidden state predicts their first token.
        head, boundary = (context[:-1], context[-1:]) if self.mode == "reuse" else (context[:0], context)
        cache = self._prefill(head) if len(head) else None
        scores: list[TokenScores | None] = [None] * len(responses)
        for batch in self._batches([len(boundary) + len(r) for r in responses]):
            rows = [np.concatenate([boundary, responses[i][:-1]]) for i in batch]
            hidden = self._hidden(rows, cache)
            for row, i in enumerate(batch):
                first = len(boundary) - 1
                wanted = hidden[row, first : first + len(responses[i])]
                scores[i] = self._head(wanted, torch.from_numpy(responses[i].astype(np.int64)).to(self.device))
        return [s for s in scores if s is not None]

    def _prefill(self, ids: np.ndarray) -> DynamicCache:
        cache = DynamicCache(config=self.model.config)
        tokens = torch.from_numpy(ids.astype(np.int64))[None].to(self.device)
        self.model.get_decoder()(input_ids=tokens, past_key_values=cache, use_cache=True)
        self.tokens_forwarded += len(ids)
        return cache

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Indices in batches of similar length, the longest first, within ``batch_tokens`` with padding."""
        batch: list[int] = []
        for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
            if batch and (len(batch) + 1) * lengths[batch[0]] > self.batch_tokens:
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def _hidden(self, rows: Sequence[np.ndarray], cache: DynamicCache | None) -> torch.Tensor:
        """Last hidden states [B, T, H] of right-padded rows, after the cache's context."""
        longest = max(map(len, rows))
        tokens = torch.zeros((len(rows), longest), dtype=torch.int64)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = torch.from_numpy(row.astype(np.int64))
        self.tokens_forwarded += sum(map(len, rows))
        past = None
        if cache is not None:
            past = copy.deepcopy(cache)  # forwards write into a cache, and some families update states in place
            past.batch_repeat_interleave(len(rows))
        out = self.model.get_decoder()(
            input_ids=tokens.to(self.device), past_key_values=past, use_cache=past is not None
        )
        return out.last_hidden_state

    def _head(self, hidden: torch.Tensor, targets: torch.Tensor) -> TokenScores:
        """Log-probs and entropies [T] from hidden states [T, H], ``HEAD_ROWS`` rows of logits at a time."""
        parts = [
            self._log_probs(self._logits(hidden[i : i + HEAD_ROWS]), targets[i : i + HEAD_ROWS])
            for i in range(0, len(targets), HEAD_ROWS)
        ]
        logprob, entropy = (torch.cat(p).cpu().numpy() for p in zip(*parts, strict=True))
        return TokenScores(logprob=logprob, entropy=entropy)

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [rows, V] in float32, with the scaling that some families put after the head."""
        logits = self.model.get_output_embeddings()(hidden).float()
        scale = getattr(self._config, "logit_scale", None)  # Cohere
        if scale is not None:
            logits = logits * scale
        scaling = getattr(self._config, "logits_scaling", None)  # Granite
        if scaling is not None:
            logits = logits / scaling
        cap = getattr(self._config, "final_logit_softcapping", None)  # Gemma
        if cap is not None:
            logits = cap * torch.tanh(logits / cap)
        return logits

    @staticmethod
    def _log_probs(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        log_p = torch.log_softmax(logits, dim=-1)
        entropy = -(log_p.exp() * log_p.clamp_min(torch.finfo(log_p.dtype).min)).sum(-1)
        return log_p.gather(-1, targets[:, None])[:, 0], entropy

    def _from_logits(self, context: np.ndarray, response: np.ndarray) -> TokenScores:
        """The model's own forward, one sequence, logits for the response rows."""
        ids = np.concatenate([context, response[:-1]])
        self.tokens_forwarded += len(ids)
        tokens = torch.from_numpy(ids.astype(np.int64))[None].to(self.device)
        logits = self.model(input_ids=tokens, use_cache=False, logits_to_keep=len(response)).logits[0]
        targets = torch.from_numpy(response.astype(np.int64)).to(self.device)
        logprob, entropy = self._log_probs(logits.float(), targets)
        return TokenScores(logprob=logprob.cpu().numpy(), entropy=entropy.cpu().numpy())

    def _fastest_mode(self) -> Mode:
        """The first of reuse, head, logits that agrees with the model's own forward on a short case."""
        context, responses = self._self_test_case()
        self.mode = "logits"
        want = self._score_context(context, responses)
        family = getattr(self._config, "model_type", type(self.model).__name__)
        tolerance = TOLERANCE if self.dtype == torch.float32 else 0.25
        modes: tuple[Mode, ...] = ("reuse", "head")
        for mode in modes:
            self.mode = mode
            try:
                got = self._score_context(context, responses)
                gap = max(float(np.abs(g.logprob - w.logprob).max()) for g, w in zip(got, want, strict=True))
            except (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
                warnings.warn(
                    f"model family {family!r}: scoring by {mode} failed ({error}); falling back", stacklevel=3
                )
                continue
            if gap <= tolerance:
                return mode
            warnings.warn(
                f"model family {family!r}: scoring by {mode} differs from a plain forward by {gap:.2g} nats; "
                "falling back to a slower way",
                stacklevel=3,
            )
        return "logits"

    def _self_test_case(self) -> tuple[np.ndarray, list[np.ndarray]]:
        """A context and two responses of different lengths, longer than a short sliding window."""
        window = getattr(self._config, "sliding_window", None) or 0
        length = 24 + (window if window <= 128 else 0)
        rng = np.random.default_rng(0)
        vocabulary = self._config.vocab_size
        return (
            rng.integers(0, vocabulary, length).astype(np.int32),
            [rng.integers(0, vocabulary, n).astype(np.int32) for n in (9, 5)],
        )
