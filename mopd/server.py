"""A running vLLM server, through its OpenAI-compatible endpoints."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from mopd.generation.folder import ModelFolder

__all__ = ["Server", "ServerError"]

TIMEOUT_S = 3600.0  # of one request; a busy server queues it
ATTEMPTS = 6
BACKOFF_S = 0.5  # before the second attempt, doubled before each further one: 15.5 s in all
WORTH_ANOTHER_ATTEMPT = (429, 502, 503, 504)  # busy, or a proxy whose server is starting


class ServerError(ValueError):
    """The server cannot be used; the message says what it answered and what to do."""


class Server:
    """A server that runs the model of a local folder.

    Args:
        url: of the server, with or without ``/v1``.
        folder: the model; its tokenizer is used here, its weights are not.
        served: the server's name for it; None takes the one whose name or path is the folder's.
        backoff: seconds before a request that found no connection is sent again, doubled each time.

    Attributes:
        served: the server's name for the model.
        root: the path or hub id that it loaded; None if it does not say.
        max_model_len: most tokens of a sequence, the one it generates included; None if it does not say.

    Raises:
        ServerError: there is no server, or it does not serve the model.
    """

    def __init__(self, url: str, folder: ModelFolder, *, served: str | None = None, backoff: float = BACKOFF_S) -> None:
        if not url.startswith(("http://", "https://")):
            raise ServerError(f"a server's address begins with http:// or https://, got {url!r}")
        self.url = url.rstrip("/").removesuffix("/v1")
        self.folder = folder
        self.backoff = backoff
        model = self._find(served)
        self.served: str = model["id"]
        self.root: str | None = model.get("root")
        self.max_model_len: int | None = model.get("max_model_len")

    def _find(self, served: str | None) -> Mapping[str, Any]:
        known = {served} if served else {self.folder.name, str(self.folder.path)}
        models = self.call("/v1/models", attempts=1)["data"]
        for model in models:
            if model["id"] in known or (not served and model.get("root") in known):
                return model
        names = ", ".join(repr(model["id"]) for model in models) or "nothing"
        raise ServerError(
            f"the server at {self.url} serves {names}, not {served or self.folder.name!r}; "
            "say which of its models is meant with --served-model, or start it with another model"
        )

    def provenance(self) -> dict[str, Any]:
        """What is known of the model and of what runs it; the server does not tell its dtype."""
        version = self.call("/version").get("version", "of unknown version")
        return {**self.folder.provenance(), "dtype": None, "engine": f"vllm {version}"}

    def call(self, path: str, body: Mapping[str, Any] | None = None, *, attempts: int = ATTEMPTS) -> dict[str, Any]:
        """The answer to a GET, or to a POST of ``body``; without a connection it is tried again.

        Raises:
            ServerError: the server refuses the request, or there is none after the last attempt.
        """
        for attempt in range(attempts):
            last = attempt == attempts - 1
            try:
                return self._ask(path, body)
            except urllib.error.HTTPError as error:
                if last or error.code not in WORTH_ANOTHER_ATTEMPT:
                    raise ServerError(
                        f"the server at {self.url} refused {path} ({error.code}): {_reason(error)}"
                    ) from error
                error.close()
            except (OSError, http.client.HTTPException, ValueError) as error:
                # No second hour for a request that took one, nor for something that does not speak JSON.
                if last or isinstance(error, TimeoutError | ValueError):
                    raise ServerError(
                        f"no answer from a vLLM server at {self.url}{path} ({error}); "
                        "start one with `vllm serve FOLDER`"
                    ) from error
            time.sleep(self.backoff * 2**attempt)
        raise ValueError(f"attempts must be at least 1, got {attempts}")

    def _ask(self, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers={"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
            return json.load(reply)


def _reason(error: urllib.error.HTTPError) -> str:
    """What the server says of a refusal: the message of its JSON, or the beginning of what it sent."""
    with error:
        text = error.read(4000).decode("utf-8", "replace")
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return text[:500]
