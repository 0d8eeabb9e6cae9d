"""Nodes of inversion/."""
