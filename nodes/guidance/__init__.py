"""Nodes of guidance/."""
