"""Sampling rollouts: samplers (a model behind transformers or vLLM) and the job that runs them over task items.

Importing this package is light: ``mopd.generation.hf`` and ``mopd.generation.vllm`` load their engines.
"""

from __future__ import annotations

from mopd.generation.base import Completion, Sampler, Sampling
from mopd.generation.job import GenerationError, GenerationJob, generate

__all__ = ["Completion", "GenerationError", "GenerationJob", "Sampler", "Sampling", "generate"]
