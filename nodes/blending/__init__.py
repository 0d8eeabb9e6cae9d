"""Nodes of blending/."""
