"""Proof that an exported model computes the integers it should: static checks, parity and accuracy."""
