"""``eqdeploy export``: from a supernet and device profiles to proven artifacts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from eqdeploy.artifact import artifact_directory, check_destination, write_artifact
from eqdeploy.calibration.record import write_record
from eqdeploy.errors import UsageError
from eqdeploy.exporters.qdq_reader import read_model
from eqdeploy.float_share import float_share
from eqdeploy.freeze.float_graph import FloatGraph, export_float_graph
from eqdeploy.freeze.free_size import free_size
from eqdeploy.manifest import Provenance, write_manifest
from eqdeploy.network import NetworkDescription
from eqdeploy.pipeline.answers import FLOAT, SIMULATED, answer
from eqdeploy.pipeline.baseline import FloatNetwork, float_network
from eqdeploy.pipeline.calibration import calibration_summary, examine_calibration
from eqdeploy.pipeline.configuration import write_configuration
from eqdeploy.pipeline.evidence import Evidence, EvidenceSource
from eqdeploy.pipeline.exporter_rules import require_exporter, require_plan
from eqdeploy.pipeline.file_checks import check_files, write_model_files
from eqdeploy.pipeline.origin import prove_frozen
from eqdeploy.pipeline.proof import MODEL_FILE, Subject, Yardstick, prove
from eqdeploy.pipeline.remarks import remarks_on
from eqdeploy.pipeline.search import Finding, check_options, check_problem, find_subnet
from eqdeploy.pipeline.search_files import SEARCH_FOLDER
from eqdeploy.pipeline.sources import (
    ImageSets,
    LoadedSupernet,
    load_float_model,
    load_image_sets,
    load_subnet,
    load_supernet,
)
from eqdeploy.pipeline.subnets import activate_calibrated, calibrated_classifier, freeze_active
from eqdeploy.plan import DevicePlan
from eqdeploy.profile import DeviceProfile, load_profile
from eqdeploy.progress import Progress
from eqdeploy.report import ArtifactReport, CoverageSummary, PlanSummary, write_report
from eqdeploy.requests import ExportRequest, SearchOptions
from eqdeploy.resolve import resolve
from eqdeploy.results import ExportResult
from eqdeploy.search.problem import make_problem
from eqdeploy.subnet import SubnetConfig
from eqdeploy.supernet.costs import NetworkCosts, count_costs
from eqdeploy.validation.agreement import Answers


@dataclass(frozen=True)
class _Target:
    """One profile of a request, resolved."""

    profile: DeviceProfile
    plan: DevicePlan
    directory: Path
    finding: Finding | None


@dataclass(frozen=True)
class _Source:
    """What all profiles of a request share."""

    request: ExportRequest
    loaded: LoadedSupernet
    images: ImageSets
    graph: FloatGraph
    costs: NetworkCosts
    float_network: FloatNetwork
    float_answers: Answers
    findings: tuple[str, ...]
    remarks: tuple[str, ...]


def export_profiles(request: ExportRequest, progress: Progress) -> tuple[ExportResult, ...]:
    """Export a supernet for every profile of a request.

    Everything that can be refused is refused before any work: profiles, plans, exporters and destinations. An
    artifact whose proof fails is written too, its report says why; see ``ArtifactReport.failure``.

    Raises:
        ProfileError: If a profile or subnet is invalid, or the supernet cannot serve it.
        CheckpointError: If the supernet cannot be loaded.
        DataError: If the images cannot be loaded or do not fit, or, if the request is strict, do not look like those
            that the supernet was trained on.
        OutputError: If an output folder exists or cannot be written.
        UsageError: If two profiles have the same name, a subnet is given and searched for, or a search is asked for
            what cannot be; see :func:`eqdeploy.pipeline.search.search`.
    """
    profiles = [load_profile(reference) for reference in request.profiles]
    _refuse_equal_names(profiles)
    for profile in profiles:
        require_exporter(profile)
    directories = [artifact_directory(request.output, profile.name) for profile in profiles]
    for directory in directories:
        check_destination(directory, force=request.force)
    if request.search is not None:
        if request.subnet is not None:
            raise UsageError("cannot be given together with --subnet", where="--search", hint="leave one of them out")
        check_options(request.search)
    subnet = load_subnet(request.subnet)
    with progress.stage(f"loading {request.supernet} and {request.data}"):
        loaded = load_supernet(request.supernet, request.model, progress)
        network = loaded.checkpoint.supernet.network
        plans = [] if request.search else [_planned(profile, network, subnet) for profile in profiles]
        images = load_image_sets(
            request.data,
            loaded.checkpoint.preprocessing,
            tuple(loaded.checkpoint.metadata.classes),
            calibration=request.calibration_images,
            run_code=request.run_code,
        )
    unlike = examine_calibration(loaded, images, strict=request.strict, progress=progress)
    findings: list[Finding | None] = [None] * len(profiles)
    if request.search is not None:
        findings = [*_search(request, request.search, loaded, profiles, progress)]
        plans = [finding.plan for finding in findings if finding is not None]
        for profile, plan in zip(profiles, plans, strict=True):
            require_plan(profile, plan)
    targets = [_Target(*parts) for parts in zip(profiles, plans, directories, findings, strict=True)]
    with progress.stage("exporting the network's structure"):
        graph = export_float_graph(loaded.checkpoint.supernet)
        if request.dynamic_size:
            graph = free_size(loaded.checkpoint.supernet, graph, load_float_model(loaded, request.model))
    source = _source(request, loaded, images, graph, unlike, progress)
    return tuple(_export(source, target, progress) for target in targets)


def _planned(profile: DeviceProfile, network: NetworkDescription, subnet: SubnetConfig | None) -> DevicePlan:
    """Resolve a profile, and refuse what its exporter cannot write."""
    plan = resolve(profile, network, subnet)
    require_plan(profile, plan)
    return plan


def _search(
    request: ExportRequest,
    options: SearchOptions,
    loaded: LoadedSupernet,
    profiles: Sequence[DeviceProfile],
    progress: Progress,
) -> list[Finding]:
    """Search for a subnet for each profile; what can be refused of any is refused before the first."""
    source = EvidenceSource(request.supernet, request.model, request.data, request.run_code, request.output, options)
    evidence = Evidence(source, loaded, progress)
    network = loaded.checkpoint.supernet.network
    problems = [make_problem(profile, network, options) for profile in profiles]
    for problem in problems:
        check_problem(problem, evidence)
    return [find_subnet(problem, evidence, loaded, options, request.seed, progress) for problem in problems]


def _refuse_equal_names(profiles: Sequence[DeviceProfile]) -> None:
    """Refuse two profiles that would be written to one folder."""
    names = [profile.name for profile in profiles]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two profiles are called {name!r}", where="--profile", hint="export them one at a time")


def _source(
    request: ExportRequest,
    loaded: LoadedSupernet,
    images: ImageSets,
    graph: FloatGraph,
    findings: tuple[str, ...],
    progress: Progress,
) -> _Source:
    """Everything that no profile changes: the float network, what it decides, and what the network costs."""
    checkpoint = loaded.checkpoint
    network = float_network(checkpoint, images.calibration, request.seed, progress)
    answers = answer(FLOAT, network.classifier, images.held_out, checkpoint.preprocessing, progress)
    remarks = remarks_on(images, answers, checkpoint.metadata, progress)
    costs = count_costs(checkpoint.supernet)
    return _Source(request, loaded, images, graph, costs, network, answers, findings, remarks)


def _export(source: _Source, target: _Target, progress: Progress) -> ExportResult:
    """Calibrate, freeze, write and prove one profile's model."""
    request, loaded, images = source.request, source.loaded, source.images
    checkpoint = loaded.checkpoint
    progress.detail(f"{target.profile.name}: subnet {target.plan.subnet.digest[:12]}")
    choice, calibration = activate_calibrated(
        checkpoint, target.plan.subnet, images.calibration, request.seed, progress
    )
    frozen = freeze_active(checkpoint, target.plan, source.graph, images.calibration, progress)
    model = frozen.model
    origin = prove_frozen(checkpoint, target.plan, frozen, images, calibration, choice.chosen, request.seed, progress)
    classifier = calibrated_classifier(checkpoint, target.plan.subnet)
    simulated = answer(SIMULATED, classifier, images.held_out, checkpoint.preprocessing, progress)
    costs = source.costs
    share = float_share(target.plan, checkpoint.supernet.network, costs.macs, costs.parameters)
    if share.is_notable:
        progress.note(f"{target.profile.name}: {share.summary}")
    provenance = _provenance(source, target)
    with write_artifact(target.directory, force=request.force) as folder:
        with progress.stage(f"writing {target.profile.export.format} files"):
            write_model_files(target.profile, model, folder)
            write_record(folder, frozen.record)
            if target.finding is not None:
                target.finding.write(folder / SEARCH_FOLDER)
            write_configuration(
                folder,
                request,
                target.profile,
                target.plan,
                supernet=loaded.name,
                data=images.name,
                preprocessing=checkpoint.preprocessing,
                classes=tuple(checkpoint.metadata.classes),
            )
        subject = Subject(
            model=model,
            directory=folder,
            preprocessing=checkpoint.preprocessing,
            power_of_two_scales=target.plan.power_of_two_scales,
        )
        proof = prove(
            subject,
            images.held_out,
            Yardstick(source.float_network, source.float_answers, simulated, share, origin),
            request.gates.or_else(target.profile.gates.as_gates()),
            parity_images=request.parity_images,
            progress=progress,
        )
        with progress.stage("writing all files again"):
            checked = check_files(folder, target.profile, read_model(folder / MODEL_FILE), target.plan.subnet)
        report = ArtifactReport(
            provenance=provenance,
            plan=PlanSummary.of(target.plan),
            folding=model.folded,
            coverage=CoverageSummary.of(model.coverage, model.reasons),
            static=proof.static,
            origin=proof.origin,
            parity=proof.parity,
            distance=proof.distance,
            agreement=proof.agreement,
            accuracy=proof.accuracy,
            float_share=proof.float_share,
            operators=proof.operators,
            files=checked,
            calibration=calibration_summary(choice, images, loaded.probes, source.findings),
            notes=(*model.notes, *source.remarks),
        )
        write_report(folder, report)
        write_manifest(folder, provenance)
    search = (
        None if target.finding is None else replace(target.finding.result, directory=target.directory / SEARCH_FOLDER)
    )
    return ExportResult(directory=target.directory, report=report, search=search)


def _provenance(source: _Source, target: _Target) -> Provenance:
    """What an artifact was made from."""
    return Provenance(
        profile=target.profile.name,
        profile_digest=target.profile.digest,
        supernet=source.loaded.name,
        supernet_digest=source.loaded.digest,
        subnet_digest=target.plan.subnet.digest,
        data=source.images.name,
        data_digest=source.images.digest,
        seed=source.request.seed,
    )
