"""Settings of all tests."""

from __future__ import annotations

import os
import signal

from hypothesis import HealthCheck, settings

# Before anything imports torch or onnxruntime: sums must not depend on the number of cores, and several test
# processes must not fight for them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

# How fast a machine draws examples says nothing about the code under test.
settings.register_profile("eqdeploy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("eqdeploy")

# A shell starts jobs in the background with Ctrl-C ignored, nohup has the end of the terminal ignored, and every
# process that a test starts would inherit that. A handler is not inherited.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
