"""Nodes of attention/."""
