"""What a run needs of the machine that it starts on: packages, a sandbox, a server. Nothing here imports torch."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable, Sequence
from http.client import HTTPException
from importlib.util import find_spec

from mopd.tasks import TaskItem
from mopd.verifiers import VerifierUnavailable
from training.config import ConfigError, RunConfig
from training.rewards import Judge

__all__ = ["check_packages", "lacking"]

PATIENCE = 5
"""Seconds in which a server must say that it is there."""


def check_packages(config: RunConfig) -> None:
    """Refuse what asks for a package that is not installed.

    Raises:
        ConfigError: it names the package.
    """
    wanted = {"tensorboard": ("tensorboard", "tensorboardX")}
    for name in config.run.report_to:
        if not any(find_spec(package) for package in wanted.get(name, (name,))):
            raise ConfigError(f"report_to names {name}, which is not installed: pip install {name}")
    if config.rollouts.engine != "transformers" and find_spec("vllm") is None:
        raise ConfigError(
            f"engine = {config.rollouts.engine!r} needs vLLM, which is not installed: pip install 'mopd[vllm]', or "
            "take engine = 'transformers'"
        )


def lacking(config: RunConfig, judge: Judge, items: Sequence[TaskItem]) -> list[str]:
    """Why the run would not start on this machine, though it may on another, in the words in which it would say so."""
    checks: tuple[Callable[[], None], ...] = (
        lambda: check_packages(config),
        lambda: judge.check(items),
        lambda: _check_server(config.rollouts.vllm_url),
    )
    found = []
    for check in checks:
        try:
            check()
        except (ConfigError, VerifierUnavailable) as error:
            found.append(str(error))
    return found


def _check_server(url: str | None) -> None:
    """A run itself waits some minutes for the server, which may be starting."""
    if url is None:
        return
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=PATIENCE):
            pass
    except (OSError, ValueError, HTTPException) as error:
        raise ConfigError(
            f"no vLLM server answers at vllm_url = {url!r} ({error}): start one there with trl vllm-serve, or take "
            "engine = 'vllm-colocate'"
        ) from error
