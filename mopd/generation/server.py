"""Sampling from a running vLLM server, through its OpenAI-compatible completions endpoint.

Prompts go as token ids and responses come back as token ids (``return_token_ids``), so nothing is tokenised twice. The
server keeps its own randomness (``vllm serve --seed``): rollouts from it are not reproducible from here, and their seed
is recorded as null.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mopd.generation.base import Completion, Sampling, complete
from mopd.generation.folder import ModelFolder
from mopd.rollouts import Prompt
from mopd.server import Server, ServerError

__all__ = ["ServerError", "ServerSampler"]

WORKERS = 64  # prompts in flight


class ServerSampler:
    """Samples from a server that runs the model of a local folder.

    Args:
        url: of the server, with or without ``/v1``.
        folder: the model; its tokenizer is used here, its weights are not.
        served: the server's name for it; None takes the one whose name or path is the folder's.

    Raises:
        ServerError: there is no server, or it does not serve the model.
    """

    seeded = False

    def __init__(self, url: str, folder: ModelFolder, *, served: str | None = None) -> None:
        self.server = Server(url, folder, served=served)
        self.folder = folder
        self.codec = folder.codec
        self.served = self.server.served
        self.window: int | None = self.server.max_model_len

    @classmethod
    def connect(
        cls,
        url: str,
        name: str,
        *,
        served: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        trust_remote_code: bool = False,
    ) -> ServerSampler:
        """Find the model's folder (``mopd.models.resolve``) and the server that runs it."""
        folder = ModelFolder.open(name, template_kwargs=template_kwargs, trust_remote_code=trust_remote_code)
        return cls(url, folder, served=served)

    def provenance(self) -> Mapping[str, Any]:
        return {**self.server.provenance(), "backend": "vllm-server"}

    def sample(self, prompts: Sequence[Prompt], n: int, *, sampling: Sampling, seed: int) -> list[list[Completion]]:
        def ask(prompt: Prompt) -> list[Completion]:
            reply = self.server.call("/v1/completions", self._request(prompt, n, sampling))
            choices = sorted(reply["choices"], key=lambda choice: choice["index"])
            return [self._completion(choice) for choice in choices]

        with ThreadPoolExecutor(max(1, min(WORKERS, len(prompts)))) as pool:
            return list(pool.map(ask, prompts))

    def _request(self, prompt: Prompt, n: int, sampling: Sampling) -> dict[str, Any]:
        return {
            "model": self.served,
            "prompt": self.codec.encode_prompt(prompt),
            "n": n,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "stop_token_ids": sorted(self.folder.end_ids),
            "return_token_ids": True,
            # What a server would otherwise fill in from the model's own generation configuration.
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
        }

    def _completion(self, choice: Mapping[str, Any]) -> Completion:
        if choice.get("token_ids") is None:
            raise ServerError(
                f"the server at {self.server.url} returns no token ids; it must know `return_token_ids` "
                "(vLLM 0.11 or later)"
            )
        done = complete(choice["token_ids"], self.folder.end_ids, self.codec)
        if done.finished != (choice["finish_reason"] == "stop"):
            raise ServerError(
                f"the server at {self.server.url} gives finish_reason {choice['finish_reason']!r} for a response that "
                f"{'has an' if done.finished else 'has no'} end token of {sorted(self.folder.end_ids)}"
            )
        return done
