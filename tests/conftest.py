"""Settings of all tests."""

from __future__ import annotations

import os

# Before anything imports torch or onnxruntime: sums must not depend on the number of cores, and several test
# processes must not fight for them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
