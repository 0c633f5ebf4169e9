"""Estimate on images what training does not fix: BatchNorm statistics and ranges of untrained tensors."""
