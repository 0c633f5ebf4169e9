"""One and two threads beside other processes that keep the cores busy: which pool of threads waits actively?

Forward and backward passes of eight small convolutions with BatchNorm, and inference of the same in ONNX Runtime, each
in a fresh process, because both pools read their settings once.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from common import markdown_table, write_results

from eqdeploy.cli.spinning import bound_spinning

BATCH, WIDTH, LAYERS, STEPS, SEED = 32, 16, 8, 3, 0
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def bounded() -> dict[str, str]:
    """What the command line sets."""
    environment: dict[str, str] = {}
    bound_spinning(environment)
    return environment


#: Name, what computes, threads, environment, whether ONNX Runtime's own pool may spin.
VARIANTS: tuple[tuple[str, str, int, dict[str, str], bool], ...] = (
    ("torch, one thread", "torch", 1, {}, True),
    ("torch, two threads, as it comes", "torch", 2, {}, True),
    ("torch, two threads, OMP_WAIT_POLICY=PASSIVE", "torch", 2, {"OMP_WAIT_POLICY": "PASSIVE"}, True),
    ("torch, two threads, as the command line sets it", "torch", 2, bounded(), True),
    ("ONNX Runtime, one thread", "onnxruntime", 1, {}, True),
    ("ONNX Runtime, two threads, as it comes", "onnxruntime", 2, {}, True),
    ("ONNX Runtime, two threads, allow_spinning=0", "onnxruntime", 2, {}, False),
)


def measure(kind: str, threads: int, *, spins: bool) -> dict[str, float]:
    """Seconds of a step on the clock, the median, and of the processor, the mean."""
    step = _torch_step(threads) if kind == "torch" else _onnxruntime_step(threads, spins=spins)
    step()
    clock: list[float] = []
    processor = time.process_time()
    for _ in range(STEPS):
        start = time.perf_counter()
        step()
        clock.append(time.perf_counter() - start)
    return {"clock": median(clock), "processor": (time.process_time() - processor) / STEPS}


def _network() -> Any:
    import torch
    from torch import nn

    torch.manual_seed(SEED)
    layers: list[nn.Module] = []
    for index in range(LAYERS):
        layers += [nn.Conv2d(WIDTH if index else 3, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU()]
    return nn.Sequential(*layers)


def _torch_step(threads: int) -> Callable[[], None]:
    """Forward and backward."""
    import torch

    torch.set_num_threads(threads)
    network, images = _network(), torch.randn(BATCH, 3, 32, 32)

    def step() -> None:
        network.zero_grad()
        torch.autograd.backward(network(images).square().mean())

    return step


def _onnxruntime_step(threads: int, *, spins: bool) -> Callable[[], None]:
    """Inference of the network, ten times."""
    import onnxruntime
    import torch

    torch.set_num_threads(1)
    images, stream = torch.randn(BATCH, 3, 32, 32), io.BytesIO()
    torch.onnx.export(_network().eval(), (images,), stream, dynamo=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spins else "0")
    session = onnxruntime.InferenceSession(stream.getvalue(), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: images.numpy()}

    def step() -> None:
        for _ in range(10):
            session.run(None, feed)

    return step


def fresh(variant: tuple[str, str, int, dict[str, str], bool]) -> dict[str, float]:
    """Measure a variant in a process of its own."""
    _, kind, threads, extra, spins = variant
    environment = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    command = [sys.executable, __file__, "--only", kind, str(threads), str(int(spins))]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**environment, **extra})
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(variant[0], found, file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Measure all variants beside busy processes and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--busy", type=int, default=2, help="processes that keep the cores busy")
    options = parser.parse_args()
    if options.only:
        kind, threads, spins = options.only
        print(json.dumps(measure(kind, int(threads), spins=spins == "1")))
        return
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(options.busy)]
    try:
        load = os.getloadavg()[0]
        found = {variant[0]: fresh(variant) for variant in VARIANTS}
    finally:
        for process in busy:
            process.kill()
    rows = []
    for name, kind, *_ in VARIANTS:
        single = found[next(other[0] for other in VARIANTS if other[1] == kind)]
        row = [f"{found[name][key]:.3f} ({found[name][key] / single[key]:.1f})" for key in ("clock", "processor")]
        rows.append([name, *row])
    write_results(
        "threads_beside_work",
        f"python benchmarks/threads_beside_work.py --busy {options.busy}",
        {"busy": options.busy, "load_before": load, "steps": STEPS, "seed": SEED, "seconds": found},
        [
            f"Seconds of a step, and their ratio to one thread, beside {options.busy} busy processes (load average "
            f"of the machine before: {load:.1f}).",
            markdown_table(["", "on the clock", "of the processor"], rows),
        ],
    )


if __name__ == "__main__":
    main()
