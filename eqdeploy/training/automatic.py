"""Decide by a short measurement how steps are computed, where the configuration leaves it open.

Precision and memory layout are timed on copies of the network. Compilation is not tried, which would take as long as
many steps: it is decided from the time that quantizers take uncompiled, of which a compiled step has next to nothing.
"""

from __future__ import annotations

import copy
import itertools
import time
from dataclasses import dataclass, replace

import torch

from eqdeploy.progress import SilentProgress
from eqdeploy.subnet import SubnetConfig
from eqdeploy.supernet.inputs import Inputs, map_inputs, parts, probe
from eqdeploy.supernet.shapes import tensors_in
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.training.compiled import compiler_available
from eqdeploy.training.execution import Forward, StepMode, prepare
from eqdeploy.training.settings import ExecutionSettings, Precision

#: Runs that take less than this in the plainest mode stay there: measuring and compiling would take as long.
WORTHWHILE_SECONDS = 60.0
#: Of all candidates together, on the clock.
_BUDGET_SECONDS = 1.5
#: A pass that takes this long is timed well enough; it is timed on as few images as that takes.
_PASS_SECONDS = 0.04
_FEWEST_IMAGES = 2  # BatchNorm needs two
#: A candidate must be faster by these factors to be taken: rounding to bfloat16 has its price, and a tie none.
_PRECISION_GAIN, _LAYOUT_GAIN = 1.1, 1.05
#: What a compiled elastic pass takes of a float pass that is not compiled, and compilation for each layer; both
#: measured for ResNet-20, see docs/training.md.
_COMPILED_RATIO = 1.2
_COMPILATION_SECONDS_PER_LAYER = 1.5
#: How many times its own time compilation must save.
_COMPILATION_RETURN = 2.0


@dataclass(frozen=True)
class Workload:
    """What a run is going to compute.

    Attributes:
        float_passes: Forward and backward passes of the float network.
        elastic_passes: Forward and backward passes of subnets.
        batch_size: Images of a pass in this process.
    """

    float_passes: int
    elastic_passes: int
    batch_size: int


@dataclass(frozen=True)
class Decision:
    """A mode, and why.

    Attributes:
        mode: How steps are computed.
        reason: For people, one clause.
    """

    mode: StepMode
    reason: str


def decide(supernet: Supernet, settings: ExecutionSettings, work: Workload, device: torch.device) -> Decision:
    """Decide what settings leave open; what they say stays.

    Args:
        supernet: On ``device``, in any mode; neither it nor any random state is changed.
        settings: What is wanted.
        work: How much there is to compute.
        device: Where.
    """
    start = time.perf_counter()
    candidates = _candidates(settings, supernet.example)
    plain = candidates[0]
    with torch.random.fork_rng(devices=[]):
        passes = _Passes(supernet, device)
        count, seconds = passes.size(plain, work.batch_size)
        whole = seconds * work.batch_size / count * (work.float_passes + work.elastic_passes)
        if whole < WORTHWHILE_SECONDS:
            return Decision(plain, "the run is short")
        timed = passes.times(candidates, count)
        best = min(candidates, key=lambda mode: timed[mode] * _handicap(mode))
        per_image = timed[best] / count
        reason = f"a pass takes {timed[best] / timed[plain]:.2f} of its time in {plain.precision}"
        if settings.compile == "auto":
            elastic = passes.elastic(best, count) / count
            saved = (elastic - _COMPILED_RATIO * per_image) * work.elastic_passes * work.batch_size
            costs = _COMPILATION_SECONDS_PER_LAYER * len(supernet.network.layers)
            pays = compiler_available() and saved > _COMPILATION_RETURN * costs
            best = replace(best, compile=pays)
            reason += f", quantizers {elastic / per_image - 1:.2f} of a pass"
    return Decision(best, f"{reason}, measured in {time.perf_counter() - start:.1f} s")


def _candidates(settings: ExecutionSettings, example: Inputs) -> list[StepMode]:
    """All modes that settings allow, the plainest first; none is compiled unless they say so."""
    precisions = list(Precision) if settings.precision == "auto" else [settings.precision]
    layouts = [False, True] if any(part.ndim == 4 for part in parts(example)) else [False]
    if settings.channels_last != "auto":
        layouts = [settings.channels_last]
    compiled = settings.compile is True
    return [StepMode(*mode, compile=compiled) for mode in itertools.product(precisions, layouts)]


def _handicap(mode: StepMode) -> float:
    """By how much a mode must be faster than the plainest one."""
    lower = _PRECISION_GAIN if mode.precision is Precision.BFLOAT16 else 1.0
    return lower * (_LAYOUT_GAIN if mode.channels_last else 1.0)


class _Passes:
    """Times forward and backward passes of copies of a network.

    Args:
        supernet: Is copied.
        device: Where it is.
    """

    def __init__(self, supernet: Supernet, device: torch.device) -> None:
        self._supernet = supernet
        self._device = device

    def size(self, mode: StepMode, largest: int) -> tuple[int, float]:
        """As few images as can be timed, and the seconds of a pass."""
        network, forward = self._copy(mode)
        count = min(_FEWEST_IMAGES, largest)
        while True:
            self._pass(network, forward, self._inputs(count))  # the first pass of a size is slower
            seconds = self._pass(network, forward, self._inputs(count))
            if seconds >= _PASS_SECONDS or count >= largest:
                return count, seconds
            count = min(2 * count, largest)

    def times(self, modes: list[StepMode], count: int) -> dict[StepMode, float]:
        """Shortest time of a pass in each mode; modes take turns, as other work on the machine comes and goes."""
        copies = {mode: self._copy(mode) for mode in modes}
        inputs = self._inputs(count)
        first = [self._pass(*copies[mode], inputs) for mode in modes]
        rounds = max(2, min(5, int(_BUDGET_SECONDS / sum(first))))
        found = [{mode: self._pass(*copies[mode], inputs) for mode in modes} for _ in range(rounds)]
        return {mode: min(times[mode] for times in found) for mode in modes}

    def elastic(self, mode: StepMode, count: int) -> float:
        """Shortest time of a pass with every quantizer active."""
        network, forward = self._copy(mode)
        space = network.network.space
        symmetry = space.symmetries[-1]
        subnet = SubnetConfig.uniform(
            network.network,
            weight_bits=min(space.bits),
            activation_bits=min(space.bits),
            granularity=space.granularities[-1],
            weight_symmetry=symmetry,
            activation_symmetry=symmetry,
        )
        network.activate(subnet)
        inputs = self._inputs(count)
        return min(self._pass(network, forward, inputs) for _ in range(3))

    def _copy(self, mode: StepMode) -> tuple[Supernet, Forward]:
        """A copy of the network, ready for passes that are not compiled."""
        network = copy.deepcopy(self._supernet)
        network.deactivate()
        network.train()
        return network, prepare(network, replace(mode, compile=False), SilentProgress()).train

    def _inputs(self, count: int) -> Inputs:
        """Some input: speed does not depend on what it shows."""
        return map_inputs(lambda part: part.to(self._device), probe(self._supernet.example, count))

    @staticmethod
    def _pass(network: Supernet, forward: Forward, inputs: Inputs) -> float:
        """Seconds of a forward and a backward pass."""
        network.zero_grad(set_to_none=True)
        start = time.perf_counter()
        outputs = [output for output in tensors_in(forward(inputs)) if output.requires_grad]
        torch.autograd.backward(torch.stack([output.square().mean() for output in outputs]).sum())
        # The value of a gradient, too, for a GPU goes on computing after the call.
        next(parameter.grad for parameter in network.parameters() if parameter.grad is not None).sum().item()
        return time.perf_counter() - start
