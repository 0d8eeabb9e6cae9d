"""Inversions: one file a paper, pure tensor maths; `trajectory.py` is the value they all give."""
