"""Latent and mask blends, one file a paper."""
