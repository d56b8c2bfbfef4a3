"""Sampling with vLLM's offline engine: the backend for real work.

Prompts go in as token ids of our own codec, so that they are the same ids as everywhere else. The random state of the
engine's workers is set before each call rather than a seed given to each request, which vLLM's CPU sampler refuses.
The prefix cache, which spares a group all prompts but one, is emptied before each call: one that is warm from earlier
calls changes the last bits of a logit, and with them what a seed gives.
"""

# vLLM lives in an environment of its own, where the type checker does not look.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

# With the scheduler in another process, how requests fall into batches is a race, and a seed gives no fixed result.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

import vllm
from vllm.platforms import current_platform

from mopd.generation.base import Completion, Sampling, complete
from mopd.generation.folder import ModelFolder
from mopd.rollouts import Prompt

__all__ = ["VLLMSampler"]

CPU_CACHE_GIB = 4  # of the KV cache, where VLLM_CPU_KVCACHE_SPACE does not say


class VLLMSampler:
    """Samples from ``vllm.LLM``.

    Args:
        engine: a ``vllm.LLM`` whose workers carry ``mopd.generation.vllm_worker.SeedExtension``.
        folder: the model that it runs.
    """

    seeded = True

    def __init__(self, engine: Any, folder: ModelFolder) -> None:
        self.engine = engine
        self.folder = folder
        self.codec = folder.codec
        self.window: int | None = engine.llm_engine.model_config.max_model_len

    @classmethod
    def load(
        cls,
        name: str,
        *,
        dtype: str = "bfloat16",
        seed: int = 0,
        max_model_len: int | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        trust_remote_code: bool = False,
    ) -> VLLMSampler:
        """Start an engine for a preset, a hub id or a local folder (``mopd.models.resolve``).

        Args:
            name: which model.
            dtype: ``float32`` or ``bfloat16``.
            seed: of the engine.
            max_model_len: most tokens of prompt and response; None takes the model's.
            template_kwargs: handed through to the chat template.
            trust_remote_code: run code that comes with the model.
        """
        folder = ModelFolder.open(name, template_kwargs=template_kwargs, trust_remote_code=trust_remote_code)
        on_cpu = current_platform.is_cpu()
        if on_cpu:
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(CPU_CACHE_GIB))
        engine = vllm.LLM(
            model=str(folder.path),
            dtype=dtype,
            seed=seed,
            max_model_len=max_model_len,
            # A worker process of its own, for OpenMP's sake: its threads are bound at the start of a process.
            distributed_executor_backend="mp" if on_cpu else None,
            enforce_eager=on_cpu,  # compilation takes minutes there
            enable_prefix_caching=True,
            generation_config="vllm",  # the engine's neutral defaults, not those that come with the model
            trust_remote_code=trust_remote_code,
            worker_extension_cls="mopd.generation.vllm_worker.SeedExtension",
        )
        return cls(engine, folder)

    def provenance(self) -> Mapping[str, Any]:
        return {
            **self.folder.provenance(),
            "backend": "vllm",
            "dtype": str(self.engine.llm_engine.model_config.dtype).removeprefix("torch."),
            "engine": f"vllm {vllm.__version__}",
        }

    def sample(self, prompts: Sequence[Prompt], n: int, *, sampling: Sampling, seed: int) -> list[list[Completion]]:
        if not self.engine.reset_prefix_cache():
            raise RuntimeError("vLLM could not empty its prefix cache, so a seed would not give the same rollouts twice")
        self.engine.collective_rpc("mopd_set_seed", args=(seed,))
        requests = [{"prompt_token_ids": self.codec.encode_prompt(p)} for p in prompts]
        params = vllm.SamplingParams(
            n=n,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=0,
            max_tokens=sampling.max_tokens,
            stop_token_ids=sorted(self.folder.end_ids),
            detokenize=False,
        )
        outputs = self.engine.generate(requests, params, use_tqdm=False)
        return [[self._completion(o) for o in sorted(out.outputs, key=lambda o: o.index)] for out in outputs]

    def _completion(self, output: Any) -> Completion:
        done = complete(output.token_ids, self.folder.end_ids, self.codec)
        if done.finished != (output.finish_reason == "stop"):
            raise RuntimeError(
                f"vLLM says {output.finish_reason!r} of a response that "
                f"{'has an' if done.finished else 'has no'} end token of {sorted(self.folder.end_ids)}"
            )
        return done
