"""Test-wide settings."""

import os

# Tiny tensors lose to thread hand-over, all the more with several test processes on few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
