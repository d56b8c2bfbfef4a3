"""Training: the peer contexts of a study, turned into a better model.

TRL says at import that its experimental parts may change, and reports each run to its makers; we pin the version, and
report nothing unless the user asked for it.
"""

import os

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
