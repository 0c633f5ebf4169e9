"""How a supernet is run during training: number format, memory layout, eager or compiled, threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eqdeploy.progress import Progress
from eqdeploy.supernet.inputs import Inputs, call, map_inputs, parts
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.training.compiled import CompiledSupernet, compiler_available
from eqdeploy.training.objective import map_outputs
from eqdeploy.training.settings import ExecutionSettings, Precision

#: Computes logits, (N, classes) float32, or other outputs of the active subnet for images, (N, C, H, W) float32, or
#: other inputs.
Forward = Callable[..., Any]


@dataclass(frozen=True)
class StepMode:
    """How steps are computed, with nothing left open.

    Attributes:
        precision: Number format of layers and activations.
        channels_last: Whether images and weights have the channels innermost.
        compile: Whether the network is compiled.
    """

    precision: Precision
    channels_last: bool
    compile: bool

    @staticmethod
    def of(settings: ExecutionSettings) -> StepMode:
        """The mode that settings name.

        Raises:
            ValueError: If they leave anything open.
        """
        precision, channels_last, compiled = settings.precision, settings.channels_last, settings.compile
        if precision == "auto" or channels_last == "auto" or compiled == "auto":
            raise ValueError("the settings leave the mode open")
        return StepMode(precision, channels_last, compiled)

    def __str__(self) -> str:
        """``bfloat16, channels last, compiled``."""
        layout = ["channels last"] if self.channels_last else []
        return ", ".join([self.precision, *layout, "compiled" if self.compile else "not compiled"])


@dataclass(frozen=True)
class Execution:
    """How a supernet is run.

    Attributes:
        train: In the precision of training.
        evaluate: In float32, as devices are simulated, compiled; in evaluation mode only. None where nothing is
            compiled: an inference network evaluates subnets faster than the supernet itself then.
    """

    train: Forward
    evaluate: Forward | None


def prepare(supernet: Supernet, mode: StepMode, progress: Progress) -> Execution:
    """Prepare a supernet for training in a mode.

    Args:
        supernet: Its memory layout is changed in place; the values stay as they are.
        mode: How steps are computed.
        progress: Is told when nothing can be compiled here.

    Returns:
        The functions to call in place of the supernet.
    """
    if mode.channels_last:
        # torch's stubs do not know that a module takes a memory format.
        supernet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    run: Forward = supernet
    if mode.compile:
        if compiler_available():
            run = CompiledSupernet(supernet)
        else:
            progress.note("no C++ compiler is installed: training runs without compilation, two to three times slower")
    lower = mode.precision is Precision.BFLOAT16
    layout = torch.channels_last if mode.channels_last else torch.contiguous_format

    def laid_out(images: Inputs) -> Any:
        laid = map_inputs(lambda part: part.contiguous(memory_format=layout) if part.ndim == 4 else part, images)
        return call(run, laid) if run is supernet else run(laid)

    def train(images: Inputs) -> Any:
        with torch.autocast(parts(images)[0].device.type, torch.bfloat16, enabled=lower):
            return map_outputs(_as_float32, laid_out(images))

    return Execution(train=train, evaluate=None if run is supernet else laid_out)


def _as_float32(output: Tensor) -> Tensor:
    """What came out in lower precision as float32; integers as they are."""
    return output.float() if output.is_floating_point() else output


@contextmanager
def computing(*, threads: int, seed: int) -> Iterator[None]:
    """Set torch's threads and global random state, and put both back (on GPUs the random state stays).

    Args:
        threads: Threads of this process.
        seed: 64 bits.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng(devices=[]):
            # torch takes seeds up to 2^63 - 1 without reading them as negative numbers.
            torch.manual_seed(seed >> 1)
            yield
    finally:
        torch.set_num_threads(before)
