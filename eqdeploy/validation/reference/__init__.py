"""The integer reference: what a device that follows the arithmetic of :mod:`eqdeploy.quant` must compute."""
