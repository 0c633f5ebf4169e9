"""How long ONNX Runtime takes for small models on the CPU of this machine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper

from eqdeploy.errors import RuntimeRefusedError
from eqdeploy.progress import Progress
from eqdeploy.validation.runtime import RUNTIME_ERRORS

#: A run is repeated until it takes this long, so that the clock's resolution does not matter.
_SHORTEST_SECONDS = 0.002

_FATAL = 4  # severity above which ONNX Runtime logs


@dataclass(frozen=True)
class _Timed:
    """A session with its input and the clock to measure it with."""

    session: onnxruntime.InferenceSession
    feed: dict[str, NDArray[np.generic]]
    clock: Callable[[], float]

    def seconds(self, repeats: int) -> float:
        """Seconds of one run, averaged over some in a row."""
        start = self.clock()
        for _ in range(repeats):
            self.session.run(None, self.feed)
        return (self.clock() - start) / repeats


def median_milliseconds(
    models: Mapping[str, bytes], *, runs: int, threads: int, progress: Progress
) -> dict[str, float]:
    """Median time of one image.

    All models take turns, so that a busy moment of the machine hits all alike. What a session costs without any work,
    measured on a model that passes its input on, is subtracted: a network pays it once, not for every layer.

    Args:
        models: ONNX models by name, with a symbolic batch.
        runs: Measurements of each.
        threads: Threads inside an operator.
        progress: Who listens.

    Raises:
        RuntimeRefusedError: If ONNX Runtime refuses a model.
    """
    timed = {name: _prepare(name, model, threads) for name, model in models.items()}
    empty = _prepare("empty model", _empty_model(), threads)
    entries = [*timed.values(), empty]
    repeats = [_repeats(entry) for entry in entries]
    times = np.zeros((runs, len(entries)))
    with progress.stage("measuring layers", total=runs * len(entries)) as advance:
        for run in range(runs):
            for index, entry in enumerate(entries):
                times[run, index] = entry.seconds(repeats[index])
                advance(1)
    medians = 1000 * np.median(times, axis=0)
    return {name: max(0.0, float(median - medians[-1])) for name, median in zip(timed, medians, strict=False)}


def _prepare(name: str, model: bytes, threads: int) -> _Timed:
    """Load a model and make an input for one image."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        feed = {entry.name: _random(entry) for entry in session.get_inputs()}
        session.run(None, feed)
    except RUNTIME_ERRORS as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RuntimeRefusedError(f"ONNX Runtime refuses the layer: {reason}", where=name) from error
    # A single thread's own time does not run while other programs have the processor.
    return _Timed(session, feed, time.thread_time if threads == 1 else time.perf_counter)


def _random(entry: onnxruntime.NodeArg) -> NDArray[np.generic]:
    """An input for one image."""
    shape = [size if isinstance(size, int) else 1 for size in entry.shape]
    random = np.random.default_rng(0)
    if entry.type == "tensor(float)":
        return random.standard_normal(shape).astype(np.float32)
    dtype = np.dtype(np.int8 if entry.type == "tensor(int8)" else np.uint8)
    limits = np.iinfo(dtype)
    return random.integers(limits.min, limits.max, shape, dtype, endpoint=True)


def _repeats(entry: _Timed) -> int:
    """Runs that take long enough together; the first ones warm up."""
    seconds = min(entry.seconds(3) for _ in range(3))
    return max(1, math.ceil(_SHORTEST_SECONDS / max(seconds, 1e-9)))


def _empty_model() -> bytes:
    """A model that computes nothing."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "empty", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
