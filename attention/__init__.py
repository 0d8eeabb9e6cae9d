"""Attention edits, one file a paper; `control.py` runs them."""
