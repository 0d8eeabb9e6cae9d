"""Attention edits, one file a paper. editing/sites.py runs them."""
