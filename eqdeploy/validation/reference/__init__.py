"""The integer reference: what a device that follows the arithmetic of :mod:`eqdeploy.quant` must compute.

Two semantics evaluate one graph. :class:`~eqdeploy.validation.reference.kernels.IntegerKernels` is the reference:
exact integer sums, rounded with the float32 arithmetic of fused integer kernels.
:class:`~eqdeploy.validation.reference.exact.ExactNumbers` explains differences: exact real numbers with a bound on
what float32 arithmetic makes of them.
"""

from eqdeploy.validation.reference.integer import IntegerReference, ReferenceResult

__all__ = ["IntegerReference", "ReferenceResult"]
