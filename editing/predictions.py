"""Predictions of prompts that an editor compares, under the same ControlNets."""
import math


def controls(entries, sigma) -> list:
    """The ControlNets that processed cond entries have for the whole picture at σ, each once, with None where one has
    none."""
    acting = (e for e in entries if "area" not in e
              and e.get("timestep_start", math.inf) >= sigma >= e.get("timestep_end", 0.0))
    return list(dict.fromkeys(e.get("control") for e in acting)) or [None]


def controlled_as(entries, others, sigma) -> list:
    """Processed cond entries under the ControlNets of the others, once under each, so that they differ by their words
    alone. The
    objects are shared: the host has made them ready, runs them in one forward with the others, and cleans them up."""
    return [{k: v for k, v in {**e, "control": c}.items() if k != "control" or c}
            for e in entries for c in controls(others, sigma)]
