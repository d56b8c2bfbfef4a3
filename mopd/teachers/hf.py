"""A causal language model of transformers as a teacher.

The requests of a group are laid out as a prefix trie (``mopd.teachers.plan``), so that a token is forwarded once for
all responses and contexts that begin alike, and the output head is applied only to the places that predict a
response. There are four ways to read a trie, the fastest first:

* ``packed``: one stream of distinct tokens, attention along the path (``mopd.teachers.packed``);
* ``branches``: depth-first with forked caches, for models with states (``mopd.teachers.branching``);
* ``head``: right-padded batches of whole sequences, head on response rows;
* ``logits``: the model's own forward, one sequence at a time.

At load a short case is compared with the last of them. A family for which a way fails or differs by more than
``TOLERANCE`` goes on to the next, with a warning that names it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from transformers import AutoConfig

from mopd import models
from mopd.pretrained import load_pretrained, load_tokenizer
from mopd.teachers.base import Description, DivergenceRequest, ScoreRequest, TokenDivergences, TokenScores
from mopd.teachers.branching import BranchReader
from mopd.teachers.head import HEAD_ROWS, Hidden, OutputHead, Predictions, divergences, token_scores
from mopd.teachers.memory import automatic_budget, cache_tokens, out_of_memory, release
from mopd.teachers.packed import PackedReader
from mopd.teachers.plan import Pair, Trie, build_trie, readout
from mopd.tokens import HFCodec

__all__ = ["HFTeacher"]

Result = TypeVar("Result")
Mode = Literal["packed", "branches", "head", "logits"]
MODES: tuple[Mode, ...] = ("packed", "branches", "head", "logits")
TOLERANCE = 1e-3  # nats; a wrong path is off by tenths, rounding by less than 1e-4
HALF_TOLERANCE = 0.25  # the same for bfloat16 and float16, whose rounding alone moves a log-prob by hundredths
TEST_WINDOW = 32  # tokens; a wider sliding window is narrowed to this during the test
LENGTH_DEPENDENT_ROPE = {"dynamic", "longrope"}  # positions that turn otherwise in a longer sequence cannot be shared


class HFTeacher:
    """Scores responses with a causal language model.

    Args:
        model: a ``PreTrainedModel`` with a language-model head, in evaluation mode.
        tokenizer: its tokenizer.
        name: how tables name it.
        template_kwargs: handed through to the chat template.
        token_budget: most tokens in one forward, padding included; None finds it from the free memory. It halves
            whenever memory runs out. ``head`` reads a longer sequence whole, by itself; ``logits`` ignores it.
        top_k: also give the log-probs of so many of the likeliest tokens.
        mode: None finds the fastest that agrees with a plain forward; or one of ``MODES``.
        weights_hash: content hash of the weights, for provenance.
        config_hash: of the ``config.json`` with which they were loaded, for provenance.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str,
        template_kwargs: Mapping[str, Any] | None = None,
        token_budget: int | None = None,
        top_k: int = 0,
        mode: Mode | None = None,
        weights_hash: str | None = None,
        config_hash: str | None = None,
    ) -> None:
        if token_budget is not None and token_budget < 1:
            raise ValueError(f"token_budget must be at least 1, got {token_budget}; leave it out to have it found")
        self.model = model
        self.name = name
        self.codec = HFCodec(tokenizer, name=name, template_kwargs=template_kwargs)
        self.weights_hash = weights_hash
        self.config_hash = config_hash
        self.device = next(model.parameters()).device
        self.dtype = next(model.parameters()).dtype
        self._config = model.config.get_text_config()
        self.window: int | None = getattr(self._config, "max_position_embeddings", None)
        self.head = OutputHead(model, top_k=top_k)
        self.token_budget = token_budget or automatic_budget(model)
        self.tokens_forwarded = 0
        self.cache_hits = 0
        self.mode: Mode = mode or self._fastest_mode()
        self._reader = self._make_reader(self.mode)
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
        token_budget: int | None = None,
        top_k: int = 0,
    ) -> HFTeacher:
        """Load a preset, a hub id or a local folder (``mopd.models.resolve``).

        Args:
            name: which model.
            dtype: ``float32``, or a half precision, which rounds log-probs by amounts that matter here.
            device: a torch device; None takes the GPU if there is one.
            template_kwargs: handed through to the chat template.
            trust_remote_code: run code that comes with the model.
            token_budget: most tokens in one forward; None finds it from the free memory.
            top_k: also give the log-probs of so many of the likeliest tokens.
        """
        loaded = load_pretrained(name, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
        return cls(
            loaded.model,
            loaded.tokenizer,
            name=name,
            template_kwargs=template_kwargs,
            token_budget=token_budget,
            top_k=top_k,
            weights_hash=loaded.weights_hash,
            config_hash=loaded.config_hash,
        )

    @staticmethod
    def describe(
        name: str,
        *,
        dtype: str = "float32",
        template_kwargs: Mapping[str, Any] | None = None,
        trust_remote_code: bool = False,
    ) -> Description:
        """What ``load`` would be, without its weights: for a process that plans what others score."""
        codec = HFCodec(
            load_tokenizer(name, trust_remote_code=trust_remote_code), name=name, template_kwargs=template_kwargs
        )
        folder = models.resolve(name, trust_remote_code=trust_remote_code)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code).get_text_config()
        identity = _identity(name, models.weights_hash(folder), models.config_hash(folder), codec, dtype)
        return Description(
            name=name, codec=codec, window=getattr(config, "max_position_embeddings", None), identity=identity
        )

    def provenance(self) -> Mapping[str, Any]:
        dtype = str(self.dtype).removeprefix("torch.")
        identity = _identity(self.name, self.weights_hash, self.config_hash, self.codec, dtype)
        more = {"top_k": self.head.top_k} if self.head.top_k else {}  # kept scores without them would not do
        return {**identity, "mode": self.mode, **more}

    def score(self, requests: Sequence[ScoreRequest]) -> list[TokenScores]:
        trie = build_trie((r.context_ids, r.response_ids) for r in requests)
        scores = self._score_trie(trie)
        return [scores[i] for i in trie.request_of]

    def _score_trie(self, trie: Trie) -> list[TokenScores]:
        """Scores of the distinct requests."""
        return self._within_memory(lambda: self._read(trie))

    def _within_memory(self, read: Callable[[], Result]) -> Result:
        """What ``read`` gives; if memory does not do, it is tried again with half the budget."""
        while True:
            try:
                return read()
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or self.token_budget == 1:
                    raise
            release()  # here, where the error and the tensors that it holds are gone
            self.token_budget = max(1, self.token_budget // 2)
            warnings.warn(f"out of memory: going on with a token budget of {self.token_budget}", stacklevel=2)

    @torch.inference_mode()
    def _read(self, trie: Trie) -> list[TokenScores]:
        if not trie.pairs:
            return []
        if self._reader is None:
            return [self._from_logits(*pair) for pair in trie.pairs]
        predictions = Predictions(self.head, readout(trie, self._reader.layout(trie)))
        for first, hidden in self._reader.read(trie, self.token_budget):
            self.tokens_forwarded += len(hidden)
            predictions.take(first, hidden)
        found = predictions.results()
        ends = np.cumsum([len(response) for _, response in trie.pairs])[:-1]
        columns = {name: np.split(values, ends) for name, values in found.items()}
        return [TokenScores(**{k: v[i] for k, v in columns.items()}) for i in range(len(trie.pairs))]

    @torch.inference_mode()
    def divergences(self, requests: Sequence[DivergenceRequest], *, top_k: int | None = None) -> list[TokenDivergences]:
        """How far the distributions under two contexts are from each other at every token of a response.

        Hidden states of all places asked about are held at once (4 bytes x hidden size for each, in float32), their
        logits ``HEAD_ROWS`` at a time.

        Args:
            requests: of one group, whose contexts share what can be shared.
            top_k: compare the likeliest tokens under the context, and the rest as one; None compares all tokens.
        """
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}; leave it out to compare all tokens")
        reader = self._reader
        if reader is None or not requests:
            return [self._divergences_from_logits(r, top_k) for r in requests]
        asked = [(r.context_ids, r.response_ids) for r in requests]
        trie = build_trie([*asked, *((r.reference_ids, r.response_ids) for r in requests)])
        hidden, rows = self._within_memory(lambda: self._hidden(trie, reader))
        found = []
        for i, j in zip(trie.request_of[: len(asked)], trie.request_of[len(asked) :], strict=True):
            pieces = zip(rows[i].split(HEAD_ROWS), rows[j].split(HEAD_ROWS), strict=True)
            parts = [divergences(self.head.logits(hidden[a]), self.head.logits(hidden[b]), top_k) for a, b in pieces]
            found.append(_token_divergences(parts))
        return found

    def _hidden(self, trie: Trie, reader: PackedReader | BranchReader) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """States [P, H] of the places that predict, and [T] which of them is behind each token, request by request."""
        kept = Hidden(readout(trie, reader.layout(trie)))
        for first, states in reader.read(trie, self.token_budget):
            self.tokens_forwarded += len(states)
            kept.take(first, states)
        states, row = kept.results()
        return states, list(torch.from_numpy(row).to(states.device).split([len(r) for _, r in trie.pairs]))

    def _divergences_from_logits(self, request: DivergenceRequest, top_k: int | None) -> TokenDivergences:
        p, q = (self._logits(ids, request.response_ids) for ids in (request.context_ids, request.reference_ids))
        return _token_divergences([divergences(p, q, top_k)])

    def _make_reader(self, mode: Mode) -> PackedReader | BranchReader | None:
        match mode:
            case "packed":
                return PackedReader(self.model)
            case "branches":
                return BranchReader(self.model, cache_budget=cache_tokens(self.model))
            case "head":
                return BranchReader(self.model, saving=float("inf"))
            case "logits":
                return None
        raise ValueError(f"unknown mode {mode!r}; known are {', '.join(MODES)}")

    def _from_logits(self, context: np.ndarray, response: np.ndarray) -> TokenScores:
        """The model's own forward, one sequence, logits for the response rows."""
        logits = self._logits(context, response)
        rows = torch.arange(len(response), device=self.device)
        target = torch.from_numpy(response.astype(np.int64)).to(self.device)
        scores = token_scores(logits, rows, target, self.head.top_k)
        return TokenScores(**{name: values.cpu().numpy() for name, values in scores.items()})

    def _logits(self, context: np.ndarray, response: np.ndarray) -> torch.Tensor:
        """Logits [T, V] in float32 that predict a response, by the model's own forward."""
        ids = np.concatenate([context, response[:-1]])
        self.tokens_forwarded += len(ids)
        tokens = torch.from_numpy(ids.astype(np.int64))[None].to(self.device)
        return self.model(input_ids=tokens, use_cache=False, logits_to_keep=len(response)).logits[0].float()

    def _fastest_mode(self) -> Mode:
        """The first of ``MODES`` that agrees with the model's own forward on a short case."""
        family = getattr(self._config, "model_type", type(self.model).__name__)
        if _rope_types(self._config) & LENGTH_DEPENDENT_ROPE:
            warnings.warn(
                f"model family {family!r}: its rotary embedding depends on the length of the whole sequence, so that "
                "prefixes cannot be shared; scoring one sequence at a time",
                stacklevel=3,
            )
            return "logits"
        with _narrow_window(self.model, TEST_WINDOW):
            return self._first_that_agrees(family)

    def _first_that_agrees(self, family: str) -> Mode:
        trie = build_trie(self._self_test_case())
        self._reader = None
        want = self._read(trie)
        tolerance = TOLERANCE if self.dtype == torch.float32 else HALF_TOLERANCE
        for mode in MODES[:-1]:
            try:
                self._reader = self._make_reader(mode)
            except NotImplementedError:
                continue  # known not to be for this family, which is no failure
            try:
                got = self._read(trie)
                gap = max(float(np.abs(g.logprob - w.logprob).max()) for g, w in zip(got, want, strict=True))
            except (RuntimeError, ValueError, TypeError, AttributeError, KeyError, NotImplementedError) as error:
                warnings.warn(
                    f"model family {family!r}: scoring by {mode} failed ({error}); falling back", stacklevel=4
                )
                continue
            if gap <= tolerance:
                return mode
            warnings.warn(
                f"model family {family!r}: scoring by {mode} differs from a plain forward by {gap:.2g} nats; "
                "falling back to a slower way",
                stacklevel=4,
            )
        return "logits"

    def _self_test_case(self) -> list[Pair]:
        """Two contexts that part late, with responses of several lengths, several times as long as ``TEST_WINDOW``."""
        rng = np.random.default_rng(0)

        def some(n: int) -> np.ndarray:
            return rng.integers(0, self._config.vocab_size, n).astype(np.int32)

        stem = some(96)
        contexts = [np.concatenate([stem, some(n)]) for n in (7, 2)]
        return [(context, response) for context in contexts for response in (some(9), some(5), some(1))]


def _identity(name: str, weights: str | None, config: str | None, codec: HFCodec, dtype: str) -> dict[str, Any]:
    """What of a teacher's provenance is known without loading it."""
    return {
        "teacher": "hf",
        "model": name,
        "weights": weights,
        "config": config,
        "tokenizer_and_template": codec.hash,
        "dtype": dtype,
    }


def _token_divergences(parts: Sequence[Mapping[str, torch.Tensor]]) -> TokenDivergences:
    return TokenDivergences(**{name: torch.cat([part[name] for part in parts]).cpu().numpy() for name in parts[0]})


@contextmanager
def _narrow_window(model: Any, tokens: int) -> Iterator[None]:
    """Let every sliding window that is wider see so many tokens, in the configuration and in the layers that have it.

    A short case then reaches beyond the window, which may be thousands of tokens, at no cost.
    """
    holders = [model.config.get_text_config(), *model.modules()]
    wide = [(h, h.sliding_window) for h in holders if isinstance(getattr(h, "sliding_window", None), int)]
    wide = [(holder, window) for holder, window in wide if window > tokens]
    for holder, _ in wide:
        holder.sliding_window = tokens
    try:
        yield
    finally:
        for holder, window in wide:
            holder.sliding_window = window


def _rope_types(config: Any) -> set[str]:
    """Kinds of rotary embedding of a model, of all layer types."""
    parameters = getattr(config, "rope_parameters", None) or {}
    each = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    return {str(p.get("rope_type")) for p in each}
