"""Starting vLLM's offline engine, for sampling and for scoring.

``vllm`` is imported from here, since it reads its environment when it is imported, and that is set here.
"""

# vLLM lives in an environment of its own, where the type checker does not look.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

import os
from typing import Any

# With the scheduler in another process, how requests fall into batches is a race, and a seed gives no fixed result.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # standard output is for results

import vllm
from vllm.platforms import current_platform

from mopd.generation.folder import ModelFolder

__all__ = ["engine_provenance", "on_cpu", "start_engine", "vllm"]

CPU_CACHE_GIB = 4  # of the KV cache, where VLLM_CPU_KVCACHE_SPACE does not say


def on_cpu() -> bool:
    """Whether this vLLM runs on the CPU."""
    return current_platform.is_cpu()


def start_engine(folder: ModelFolder, **options: Any) -> Any:
    """A ``vllm.LLM`` for a model on disk; ``options`` are its own and win over what is set here."""
    if on_cpu():
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(CPU_CACHE_GIB))
        os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")  # it would leave a core to its scheduler
    settings: dict[str, Any] = {
        # A worker process of its own, for OpenMP's sake: its threads are bound at the start of a process.
        "distributed_executor_backend": "mp" if on_cpu() else None,
        "enforce_eager": on_cpu(),  # compilation takes minutes there
        "generation_config": "vllm",  # the engine's neutral defaults, not those that come with the model
    }
    return vllm.LLM(model=str(folder.path), **settings | options)


def engine_provenance(engine: Any) -> dict[str, Any]:
    return {
        "dtype": str(engine.llm_engine.model_config.dtype).removeprefix("torch."),
        "engine": f"vllm {vllm.__version__}",
    }
