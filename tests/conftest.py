"""Settings of all tests."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# Before anything imports torch or onnxruntime: sums must not depend on the number of cores, and several test
# processes must not fight for them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

# How fast a machine draws examples says nothing about the code under test.
settings.register_profile("eqdeploy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("eqdeploy")
