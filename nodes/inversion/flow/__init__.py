"""Nodes of inversion/flow/."""
