"""Sampling with vLLM's offline engine: the backend for real work.

Prompts go in as token ids of our own codec, so that they are the same ids as everywhere else. The random state of the
engine's workers is set before each call rather than a seed given to each request, which vLLM's CPU sampler refuses.
The prefix cache, which spares a group all prompts but one, is emptied before each call: one that is warm from earlier
calls changes the last bits of a logit, and with them what a seed gives.
"""

# vLLM lives in an environment of its own, where the type checker does not look.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mopd.engine import engine_provenance, start_engine, vllm
from mopd.generation.base import Completion, Sampling, complete
from mopd.generation.folder import ModelFolder
from mopd.rollouts import Prompt

__all__ = ["VLLMSampler"]


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
        max_num_seqs: int | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        trust_remote_code: bool = False,
    ) -> VLLMSampler:
        """Start an engine for a preset, a hub id or a local folder (``mopd.models.resolve``).

        Args:
            name: which model.
            dtype: ``float32`` or ``bfloat16``.
            seed: of the engine.
            max_model_len: most tokens of prompt and response; None takes the model's.
            max_num_seqs: most sequences at work at a time; None takes vLLM's.
            template_kwargs: handed through to the chat template.
            trust_remote_code: run code that comes with the model.
        """
        folder = ModelFolder.open(name, template_kwargs=template_kwargs, trust_remote_code=trust_remote_code)
        engine = start_engine(
            folder,
            dtype=dtype,
            seed=seed,
            max_model_len=max_model_len,
            **({} if max_num_seqs is None else {"max_num_seqs": max_num_seqs}),
            enable_prefix_caching=True,
            trust_remote_code=trust_remote_code,
            worker_extension_cls="mopd.generation.vllm_worker.SeedExtension",
        )
        return cls(engine, folder)

    def provenance(self) -> Mapping[str, Any]:
        return {**self.folder.provenance(), **engine_provenance(self.engine), "backend": "vllm"}

    def sample(self, prompts: Sequence[Prompt], n: int, *, sampling: Sampling, seed: int) -> list[list[Completion]]:
        if not self.engine.reset_prefix_cache():
            raise RuntimeError(
                "vLLM could not empty its prefix cache, so a seed would not give the same rollouts twice"
            )
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
