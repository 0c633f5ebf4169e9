"""The steps of resolving a profile: forms, graph structure, coverage, shared encodings."""
