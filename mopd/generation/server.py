"""Sampling from a running vLLM server, through its OpenAI-compatible completions endpoint.

Prompts go as token ids and responses come back as token ids (``return_token_ids``), so nothing is tokenised twice. The
server keeps its own randomness (``vllm serve --seed``): rollouts from it are not reproducible from here, and their seed
is recorded as null.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mopd.generation.base import Completion, Sampling, complete
from mopd.generation.folder import ModelFolder
from mopd.rollouts import Prompt

__all__ = ["ServerError", "ServerSampler"]

TIMEOUT_S = 3600.0  # of one prompt's whole group; a busy server queues it
WORKERS = 64  # prompts in flight


class ServerError(ValueError):
    """The server cannot be used; the message says what it answered and what to do."""


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
        if not url.startswith(("http://", "https://")):
            raise ServerError(f"a server's address begins with http:// or https://, got {url!r}")
        self.url = url.rstrip("/").removesuffix("/v1")
        self.folder = folder
        self.codec = folder.codec
        model = self._served(served)
        self.served: str = model["id"]
        self.window: int | None = model.get("max_model_len")

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

    def _served(self, served: str | None) -> Mapping[str, Any]:
        known = {served} if served else {self.folder.name, str(self.folder.path)}
        models = self._call("/v1/models")["data"]
        for model in models:
            if model["id"] in known or (not served and model.get("root") in known):
                return model
        names = ", ".join(repr(model["id"]) for model in models) or "nothing"
        raise ServerError(
            f"the server at {self.url} serves {names}, not {served or self.folder.name!r}; "
            "say which of its models is meant with --served-model, or start it with another model"
        )

    def provenance(self) -> Mapping[str, Any]:
        version = self._call("/version").get("version", "of unknown version")
        return {**self.folder.provenance(), "backend": "vllm-server", "dtype": None, "engine": f"vllm {version}"}

    def sample(self, prompts: Sequence[Prompt], n: int, *, sampling: Sampling, seed: int) -> list[list[Completion]]:
        def ask(prompt: Prompt) -> list[Completion]:
            reply = self._call("/v1/completions", self._request(prompt, n, sampling))
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
                f"the server at {self.url} returns no token ids; it must know `return_token_ids` (vLLM 0.11 or later)"
            )
        done = complete(choice["token_ids"], self.folder.end_ids, self.codec)
        if done.finished != (choice["finish_reason"] == "stop"):
            raise ServerError(
                f"the server at {self.url} gives finish_reason {choice['finish_reason']!r} for a response that "
                f"{'has an' if done.finished else 'has no'} end token of {sorted(self.folder.end_ids)}"
            )
        return done

    def _call(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers={"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            raise ServerError(
                f"the server at {self.url} refused {path} ({error.code}): {error.read(500).decode('utf-8', 'replace')}"
            ) from error
        except (urllib.error.URLError, OSError, ValueError) as error:
            raise ServerError(
                f"no answer from a vLLM server at {self.url}{path} ({error}); start one with `vllm serve FOLDER`"
            ) from error
