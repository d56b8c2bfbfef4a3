"""What a sampler is: prompts in, exact token ids out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mopd.rollouts import Prompt
from mopd.tokens import Codec, HFCodec

__all__ = ["Completion", "Sampler", "Sampling", "complete", "end_ids"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How tokens are drawn. Nothing else reshapes the distribution: no top-k, no penalties, whatever the model's own
    generation configuration says.

    Attributes:
        temperature: what logits are divided by, above 0.
        top_p: probability mass that is kept, in (0, 1]; 1.0 keeps all.
        max_tokens: most response tokens, the end token included.
        seed: of the draws.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise ValueError(
                f"temperature must be above 0, got {self.temperature}: without chance the rollouts of a group are equal"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """One response.

    Attributes:
        text: the ids decoded without control tokens.
        ids: as they were sampled, with the end token where it ended by itself.
        finished: true if it ended by an end token, false if the length limit cut it.
    """

    text: str
    ids: tuple[int, ...]
    finished: bool


class Sampler(Protocol):
    """A model that answers prompts."""

    @property
    def codec(self) -> Codec:
        """The model's tokenizer."""
        ...

    @property
    def window(self) -> int | None:
        """Most tokens of prompt and response together; None if there is no limit that is known."""
        ...

    @property
    def seeded(self) -> bool:
        """Whether equal seeds give equal rollouts. A server keeps its own randomness."""
        ...

    def provenance(self) -> Mapping[str, Any]:
        """What samples: backend, model, hashes, library versions, as JSON values."""
        ...

    def sample(self, prompts: Sequence[Prompt], n: int, *, sampling: Sampling, seed: int) -> list[list[Completion]]:
        """``n`` completions for each prompt, prompts in the order given.

        Args:
            prompts: chat messages or plain text.
            n: completions for each.
            sampling: how; its ``seed`` is that of the whole job and not used here.
            seed: of this call. Equal prompts and seeds give equal completions where ``seeded`` is true.
        """
        ...


def complete(ids: Sequence[int], ends: frozenset[int], codec: HFCodec) -> Completion:
    """A completion from ids as an engine gives them, padding after the end included.

    Ids beyond the tokenizer's vocabulary (embeddings are often padded, and a padded row can be drawn) stay in ``ids``
    and are left out of the text, which the ids then do not decode to.

    Args:
        ids: response tokens; what follows the first end token is dropped.
        ends: end tokens.
        codec: the model's tokenizer.
    """
    length = next((place + 1 for place, token in enumerate(ids) if token in ends), None)
    kept = tuple(ids[:length])
    size = len(codec.tokenizer)
    text = codec.decode([token for token in kept if token < size], skip_special=True)
    return Completion(text=text, ids=kept, finished=length is not None)


def end_ids(named: int | Sequence[int] | None, codec: HFCodec) -> frozenset[int]:
    """Tokens that end an answer: those that the model names, the tokenizer's EOS, and the end of a turn.

    Args:
        named: ``eos_token_id`` of the model's generation configuration, or of its configuration.
        codec: the model's tokenizer.

    Raises:
        ValueError: there is none.
    """
    ends = {*([named] if isinstance(named, int) or named is None else named)}
    found = frozenset(int(i) for i in (*ends, codec.end_id, codec.tokenizer.eos_token_id) if i is not None)
    if not found:
        raise ValueError(
            f"model {codec.name!r} names no end token, neither in its configuration nor in its tokenizer; "
            "set eos_token_id in its generation_config.json"
        )
    return found
