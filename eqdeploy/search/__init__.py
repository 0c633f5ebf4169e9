"""Mixed precision by search: which widths a device allows, what they cost, and which of them lose least."""
