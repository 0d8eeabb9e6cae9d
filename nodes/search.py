"""Everyday words, and other packs' names, by which the host's search finds a node."""
from dataclasses import fields

from comfy_api.latest import io

KNOWN = any(field.name == "search_aliases" for field in fields(io.Schema))  # not on ComfyUI 0.3.64


def aliases(*words) -> dict:
    """For a node's schema: `**aliases("change a word", ...)`. All words of a search must stand in one alias."""
    return {"search_aliases": list(words)} if KNOWN else {}
