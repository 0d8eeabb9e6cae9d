"""Inversions made for flow models."""
