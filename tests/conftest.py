"""Test-wide settings."""

import os

from hypothesis import HealthCheck, settings

# Tiny tensors lose to thread hand-over, all the more with several test processes on few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A loaded machine is no failure of the code.
settings.register_profile("mopd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# Continuous integration says the same twice; a developer's run looks at new examples.
settings.register_profile("ci", settings.get_profile("mopd"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "mopd")
