"""``eqdeploy latency``: fill the table of times that a latency budget needs, with ONNX Runtime on this machine."""

from __future__ import annotations

import platform

import onnxruntime

from eqdeploy.calibration.ranges import sample_tensors
from eqdeploy.errors import OutputError
from eqdeploy.files import write_atomically
from eqdeploy.freeze.float_graph import export_float_graph
from eqdeploy.freeze.freeze import freeze
from eqdeploy.freeze.ranges import tensors_to_calibrate
from eqdeploy.pipeline.layer_times import median_milliseconds
from eqdeploy.pipeline.single_layers import single_layers
from eqdeploy.pipeline.sources import load_supernet
from eqdeploy.profile import load_profile
from eqdeploy.progress import Progress
from eqdeploy.requests import LatencyRequest
from eqdeploy.results import LatencyResult
from eqdeploy.search.costs import CostModel
from eqdeploy.search.latency import LatencyTable
from eqdeploy.search.space import search_space
from eqdeploy.supernet.inputs import probe

#: Random images from which ranges are taken that training did not fix; times do not depend on numbers.
_IMAGES = 8


def measure_latency(request: LatencyRequest, progress: Progress) -> LatencyResult:
    """Measure every layer of a network and write the table.

    ONNX Runtime computes all widths up to 8 bits in 8-bit containers, so that a layer is measured once, with the
    widest forms, and has one row with the same time for each pair of widths.

    Raises:
        ProfileError: If the profile is invalid, or the supernet cannot serve it.
        CheckpointError: If the supernet cannot be loaded.
        OutputError: If the file exists already or cannot be written.
        RuntimeRefusedError: If ONNX Runtime refuses a layer.
        UnsupportedOperationError: If the network cannot be exported.
    """
    if request.output.is_dir():
        raise OutputError("is a folder, not a file", where=str(request.output))
    if request.output.exists() and not request.force:
        raise OutputError("exists already", where=str(request.output), hint="replace it with --force")
    profile = load_profile(request.profile)
    with progress.stage(f"loading {request.supernet}"):
        loaded = load_supernet(request.supernet, request.model, progress)
    supernet = loaded.checkpoint.supernet.eval()
    space = search_space(profile, supernet.network)
    plan = space.plan(space.sizes - 1)
    with progress.stage("exporting the network's structure"):
        graph = export_float_graph(supernet)
        supernet.activate(plan.subnet)
        images = probe(supernet.example, _IMAGES)
        model = freeze(supernet, plan, graph, sample_tensors(supernet, [images], tensors_to_calibrate(plan)))
        layers = dict(single_layers(model, supernet.network, profile.runtime.opset))
    times = median_milliseconds(layers, runs=request.runs, threads=request.threads, progress=progress)
    milliseconds = {
        (layer, weight_bits, activation_bits): times[layer]
        for layer, (weights, activations) in CostModel(space).widths.items()
        for weight_bits in weights
        for activation_bits in activations
    }
    write_atomically(request.output, LatencyTable(milliseconds, str(request.output)).to_csv().encode())
    return LatencyResult(
        table=request.output,
        profile=profile.name,
        supernet=loaded.name,
        rows=len(milliseconds),
        milliseconds=times,
        runs=request.runs,
        threads=request.threads,
        machine=platform.machine(),
        runtime=f"onnxruntime {onnxruntime.__version__}",
    )
