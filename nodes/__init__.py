"""Thin node shells, one module a family."""
