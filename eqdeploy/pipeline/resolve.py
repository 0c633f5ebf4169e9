"""``eqdeploy resolve``: what a device would get, without computing a number."""

from __future__ import annotations

from eqdeploy.budget import average_bits
from eqdeploy.float_share import float_share
from eqdeploy.pipeline.sources import load_subnet, load_supernet
from eqdeploy.profile import load_profile
from eqdeploy.progress import Progress
from eqdeploy.requests import ResolveRequest
from eqdeploy.resolve import resolve
from eqdeploy.results import ResolvedPlan
from eqdeploy.supernet.costs import count_costs


def resolve_profile(request: ResolveRequest, progress: Progress) -> ResolvedPlan:
    """Resolve one profile for one supernet.

    Raises:
        ProfileError: If the profile or the subnet is invalid, or the supernet cannot serve it.
        CheckpointError: If the supernet cannot be loaded.
    """
    profile = load_profile(request.profile)
    subnet = load_subnet(request.subnet)
    with progress.stage(f"loading {request.supernet}"):
        loaded = load_supernet(request.supernet, request.model, progress)
    network = loaded.checkpoint.supernet.network
    plan = resolve(profile, network, subnet)
    bits = average_bits(plan, network)
    costs = count_costs(loaded.checkpoint.supernet)
    return ResolvedPlan(
        profile_digest=profile.digest,
        supernet=loaded.name,
        plan=plan,
        average_weight_bits=bits.weights,
        average_activation_bits=bits.activations,
        float_share=float_share(plan, network, costs.macs, costs.parameters),
    )
