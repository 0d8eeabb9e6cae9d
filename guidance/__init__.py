"""Guidance: one file a paper, editors of how predictions are combined."""
