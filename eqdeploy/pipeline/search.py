"""``eqdeploy search``: the subnet of a device that loses least within budgets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eqdeploy.artifact import artifact_directory, check_destination, write_artifact
from eqdeploy.errors import EqDeployError, UsageError
from eqdeploy.pipeline.evidence import Evidence, EvidenceSource
from eqdeploy.pipeline.measuring import program_versions
from eqdeploy.pipeline.search_files import recognize_search, write_search
from eqdeploy.pipeline.sources import LoadedSupernet, load_supernet
from eqdeploy.plan import DevicePlan
from eqdeploy.profile import load_profile
from eqdeploy.progress import Progress
from eqdeploy.requests import SearchOptions, SearchRequest
from eqdeploy.resolve import resolve
from eqdeploy.search.candidates import Candidates, choose, collect, measured_rows, report_rows
from eqdeploy.search.dependencies import require
from eqdeploy.search.genetic import GeneticSettings, ParetoFront, pareto_front
from eqdeploy.search.genetic import SearchResult as GeneticResult
from eqdeploy.search.genetic import search as search_genetic
from eqdeploy.search.integer_program import Optimum, minimize
from eqdeploy.search.outcome import OptimalityGap, SearchEvidence, SearchOrigin, SearchResult
from eqdeploy.search.pareto import ParetoTable, pareto_table
from eqdeploy.search.predictor import Prediction, Target
from eqdeploy.search.problem import SearchProblem, layer_widths, make_problem
from eqdeploy.search.surrogate import Predict, Surrogate, fit_surrogate
from eqdeploy.search.tables import AdditiveTable

#: Packages that a search needs.
_PACKAGES = ("pymoo", "scipy.optimize", "scipy.stats", "matplotlib.figure")

#: Nodes after which the integer program stops to prove its optimum; the gap that is left is reported.
_NODES = 50_000


@dataclass(frozen=True, eq=False)
class Finding:
    """What a search found, before it is written.

    Attributes:
        result: What it answers.
        table: The Pareto front; None where there was nothing to search.
        problem: What was searched.
    """

    result: SearchResult
    table: ParetoTable | None
    problem: SearchProblem

    @property
    def plan(self) -> DevicePlan:
        """What the device gets."""
        return resolve(self.problem.space.profile, self.problem.space.network, self.result.subnet)

    def write(self, folder: Path) -> None:
        """Write the files of the search into a folder, which is made if there is none.

        Raises:
            OutputError: If a file cannot be written.
        """
        write_search(folder, self.result, self.table, self.problem.budgets)


def search(request: SearchRequest, progress: Progress) -> SearchResult:
    """Search for the subnet of a profile that loses least within budgets, and write it with everything about it.

    Everything that can be refused is refused before any work.

    Raises:
        ProfileError: If the profile is invalid, or the supernet cannot serve it.
        CheckpointError: If the supernet or the predictor cannot be loaded.
        UsageError: If a budget is none or nothing keeps it, a table of times is wrong, the predictor or the
            measurements belong to something else, or too few subnets are to be measured.
        DataError: If the images cannot be loaded, are unlabelled or too few.
        OutputError: If the folder exists or cannot be written.
        MissingDependencyError: If pymoo, scipy or matplotlib are not installed.
    """
    profile = load_profile(request.profile)
    directory = request.output or artifact_directory(request.workspace / "search", profile.name)
    check_destination(directory, force=request.force, recognize=recognize_search)
    check_options(request.options)
    with progress.stage(f"loading {request.supernet}"):
        loaded = load_supernet(request.supernet, request.model, progress)
        problem = make_problem(profile, loaded.checkpoint.supernet.network, request.options)
    source = EvidenceSource(
        request.supernet, request.model, request.data, request.run_code, request.workspace, request.options
    )
    evidence = Evidence(source, loaded, progress)
    check_problem(problem, evidence)
    finding = find_subnet(problem, evidence, loaded, request.options, request.seed, progress)
    with write_artifact(directory, force=request.force, recognize=recognize_search) as folder:
        finding.write(folder)
    return replace(finding.result, directory=directory)


def check_options(options: SearchOptions) -> None:
    """Refuse settings that are out of range, and a search without the packages that it needs.

    Raises:
        UsageError: If a number is too small.
        MissingDependencyError: If a package is not installed.
    """
    for name in ("keep", "population", "generations"):
        if getattr(options, name) < 1:
            raise UsageError(f"{getattr(options, name)} is too small", where=f"--{name}", hint="at least 1")
    for package in _PACKAGES:
        require(package)


def check_problem(problem: SearchProblem, evidence: Evidence) -> None:
    """Refuse a predictor or measurements that do not fit, before anything takes time."""
    if problem.space.genes:
        evidence.check(problem.space)


def find_subnet(
    problem: SearchProblem,
    evidence: Evidence,
    loaded: LoadedSupernet,
    options: SearchOptions,
    seed: int,
    progress: Progress,
) -> Finding:
    """Search with the predictor, measure the best, choose by measurement.

    Args:
        problem: What is searched.
        evidence: Predicts and measures.
        loaded: The supernet.
        options: How to search.
        seed: Seed of the search.
        progress: Who listens.
    """
    space = problem.space
    origin = _origin(problem, loaded, options, seed)
    if not space.genes:
        progress.note(f"nothing to search: {space.profile.name} leaves a single subnet of {loaded.name}")
        return Finding(_result(problem, origin, problem.anchor, None), None, problem)
    predict, target = evidence.predict(space), evidence.found.predictor.target
    searched = _search(problem, predict, target, options, seed, progress)
    candidates = collect(problem, searched.genetic.choices, searched.program.choices, seed)
    measurements = evidence.measure([space.subnet(choices) for choices in candidates.choices])
    prediction = predict(candidates.choices)
    chosen = choose(measurements, prediction, target)
    rows = measured_rows(problem, candidates, measurements, prediction)
    found = SearchEvidence(
        predictor=evidence.found.record,
        measured_on=evidence.measured_on,
        rows=report_rows(candidates, rows, chosen, target),
        candidates=rows,
        gap=_gap(searched, candidates, prediction, chosen),
        evaluations=searched.genetic.evaluations,
        front=tuple(metric.value for metric in problem.front),
        front_points=len(searched.front.choices),
    )
    table = pareto_table(problem, searched.front, candidates.choices[chosen], predict, target)
    return Finding(_result(problem, origin, candidates.choices[chosen], found), table, problem)


@dataclass(frozen=True, eq=False)
class _Searched:
    """What was found without measuring."""

    surrogate: Surrogate
    program: Optimum
    genetic: GeneticResult
    front: ParetoFront


def _search(
    problem: SearchProblem, predict: Predict, target: Target, options: SearchOptions, seed: int, progress: Progress
) -> _Searched:
    """The exact optimum of the surrogate, then evolution from there and from every uniform configuration."""
    model = problem.model
    with progress.stage("solving the integer program"):
        surrogate = fit_surrogate(predict, target, model, problem.budgets, problem.anchor, seed)
        program = _program(surrogate.table, problem, progress)

    def loss(choices: NDArray[np.int64]) -> NDArray[np.float64]:
        return predict(choices).loss

    settings = GeneticSettings(population=options.population, generations=options.generations, seed=seed)
    seeds = np.concatenate([program.choices[None], problem.space.uniform()])
    genetic = search_genetic(
        loss, model, problem.budgets, seeds=seeds, settings=settings, keep=options.keep, progress=progress
    )
    front = pareto_front(
        loss,
        model,
        problem.front,
        problem.front_budgets,
        seeds=np.concatenate([genetic.choices, seeds]),
        settings=settings,
        progress=progress,
    )
    return _Searched(surrogate, program, genetic, front)


def _program(table: AdditiveTable, problem: SearchProblem, progress: Progress) -> Optimum:
    """The surrogate's optimum; where the solver finds none in time, some subnet, and a bound that is certain."""
    try:
        program = minimize(table, problem.model.limits(problem.budgets), node_limit=_NODES)
    except EqDeployError as error:
        progress.note(f"the integer program was not solved: {error.message}")
        program = None
    if program is not None:
        return program
    lowest = sum(float(values.min()) for values in table.singles)
    value = float(table(problem.anchor[None])[0])
    return Optimum(problem.anchor, value, (table.constant + lowest) / table.divisor)


def _gap(searched: _Searched, candidates: Candidates, prediction: Prediction, chosen: int) -> OptimalityGap:
    """How far from the best there is."""
    genetic = candidates.genetic[0]
    first, other = (float(prediction.loss[row]) for row in (genetic, candidates.program))
    losses = searched.surrogate.table(candidates.choices)
    return OptimalityGap(
        explained=searched.surrogate.explained,
        bound=min(searched.program.bound, *losses.tolist()),
        program=float(losses[candidates.program]),
        genetic=float(losses[genetic]),
        chosen=float(losses[chosen]),
        gain=1.0 - first / other if other else 0.0,
    )


def _origin(problem: SearchProblem, loaded: LoadedSupernet, options: SearchOptions, seed: int) -> SearchOrigin:
    """What the search was about."""
    profile = problem.space.profile
    return SearchOrigin(
        profile=profile.name,
        profile_digest=profile.digest,
        supernet=loaded.name,
        supernet_digest=loaded.digest,
        seed=seed,
        budgets=tuple(str(budget) for budget in problem.budgets),
        settings={
            "keep": options.keep,
            "population": options.population,
            "generations": options.generations,
            "front": [metric.value for metric in problem.front],
        },
        latency_digest=problem.latency_digest,
        versions=program_versions(),
    )


def _result(
    problem: SearchProblem, origin: SearchOrigin, choices: NDArray[np.int64], evidence: SearchEvidence | None
) -> SearchResult:
    """What is answered about the chosen subnet."""
    space = problem.space
    costs = problem.model.costs(choices[None])
    return SearchResult(
        origin=origin,
        subnet=space.subnet(choices),
        subnets=space.subnets,
        genes=len(space.genes),
        costs={metric.value: float(values[0]) for metric, values in costs.items()},
        layers=layer_widths(space, choices),
        evidence=evidence,
    )
