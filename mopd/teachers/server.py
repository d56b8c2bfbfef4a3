"""A running vLLM server as a teacher, through its OpenAI-compatible completions endpoint.

Context and response go as token ids in one prompt, with ``prompt_logprobs``. The endpoint has no way to have such a
prompt read the prefix cache, so that every prompt is forwarded in full: where speed matters, let mopd start the engine
itself (``mopd.teachers.vllm``). There is no entropy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from mopd.generation.folder import ModelFolder
from mopd.server import Server, ServerError
from mopd.teachers.base import ScoreRequest, TokenScores
from mopd.teachers.echo import LogProbs, check_window, first_needed, log_probs_of, prompts, token_scores

__all__ = ["ServerTeacher"]

WORKERS = 32  # prompts in flight: enough to fill a server's steps
NEVER = -9999.0  # how a server writes a log-prob of minus infinity, which JSON does not have
ROUNDING = 1e-3  # nats


class ServerTeacher:
    """Scores responses with a server.

    Args:
        server: what runs the model.
        workers: prompts in flight at a time.
    """

    def __init__(self, server: Server, *, workers: int = WORKERS) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        self.server = server
        self.workers = workers
        self.name = server.folder.name
        self.codec = server.folder.codec
        self.window: int | None = server.max_model_len and server.max_model_len - 1  # it always samples one more
        self.tokens_forwarded = 0
        self.cache_hits = 0
        known = {**server.provenance(), "config": server.folder.config_hash, "teacher": "vllm-server"}
        # It does not tell its dtype: scores of two servers, which may differ in it, must not be mixed.
        self._provenance = {**known, "server": server.url, "root": server.root}

    @classmethod
    def connect(
        cls,
        url: str,
        name: str,
        *,
        served: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        trust_remote_code: bool = False,
    ) -> ServerTeacher:
        """Find the model's folder (``mopd.models.resolve``) and the server that runs it.

        Args:
            url: of the server, with or without ``/v1``.
            name: which model.
            served: the server's name for it, if it differs.
            template_kwargs: handed through to the chat template.
            trust_remote_code: run code that comes with the model.

        Raises:
            ServerError: there is no server, or it does not serve the model.
        """
        folder = ModelFolder.open(name, template_kwargs=template_kwargs, trust_remote_code=trust_remote_code)
        return cls(Server(url, folder, served=served))

    def provenance(self) -> Mapping[str, Any]:
        """The dtype is None: a server does not tell it. Its address and the path that it loaded stand for it."""
        return self._provenance

    def score(self, requests: Sequence[ScoreRequest]) -> list[TokenScores]:
        """Scores in the order of the requests.

        Raises:
            ServerError: the server refuses a request, or does not answer as vLLM does.
            ValueError: a request is longer than the window.
        """
        check_window(requests, self.window, self.name)
        trie = prompts(requests)
        with ThreadPoolExecutor(max(1, min(self.workers, len(trie.sequences)))) as pool:
            found = list(pool.map(self._ask, trie.sequences, first_needed(trie).tolist()))
        self.tokens_forwarded += int(trie.lengths.sum())
        return token_scores(trie, found)

    def _ask(self, ids: np.ndarray, first: int) -> LogProbs:
        body = {
            "model": self.server.served,
            "prompt": ids.tolist(),
            "max_tokens": 1,
            "temperature": 0.0,
            "prompt_logprobs": 0,  # the prompt's own tokens and no others
        }
        reply = self.server.call("/v1/completions", body)
        try:
            positions = reply["choices"][0]["prompt_logprobs"]
            if len(positions) != len(ids):
                raise ValueError(f"it read {len(positions)} of {len(ids)} tokens")
            found = log_probs_of(ids, positions, first, lambda said, token: said[str(token)]["logprob"])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ServerError(
                f"the server at {self.server.url} does not give `prompt_logprobs` of a prompt of token ids as vLLM "
                f"does ({error or type(error).__name__}); serve the model with vLLM"
            ) from error
        if found[first:].max() > ROUNDING:
            raise ServerError(
                f"the server at {self.server.url} gives a log-prob of {found[first:].max():.3g}, which is above 0; "
                "start it with --logprobs-mode raw_logprobs"
            )
        found[found <= NEVER] = -np.inf
        return found
