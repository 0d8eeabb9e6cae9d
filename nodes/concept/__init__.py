"""Nodes of concept/."""
