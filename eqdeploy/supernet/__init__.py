"""Supernets: any traced float model with elastic quantizers in it."""
