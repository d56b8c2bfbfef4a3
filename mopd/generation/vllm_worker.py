"""The one thing that is done inside a vLLM worker: setting its random state.

A module of its own, since vLLM imports it by name in the worker's process (``worker_extension_cls``).
"""

from __future__ import annotations

__all__ = ["SeedExtension"]


class SeedExtension:
    """Mixed into vLLM's worker class."""

    def mopd_set_seed(self, seed: int) -> None:
        """Set the state that the sampler draws from."""
        import torch

        torch.manual_seed(seed)
