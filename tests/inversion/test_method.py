"""What every method of the table writes is what its node returns, and survives saving. A new file adds a method."""
import sys

import pytest
import torch
from palimpsest import inversion as room
from palimpsest.editing.inverting import invert, learn
from palimpsest.inversion.method import Method, methods
from palimpsest.nodes import found as nodes
from palimpsest.nodes.inversion.ddim import PalimpsestDDIMInvert

import tiny
from node_execution import executor  # noqa: F401
from saving import (
    folders,  # noqa: F401
    loaded,
    same,
    saved,
)

NULL = tiny.cond(seed=9)
# The node of each method: the one whose file names the method's METHOD.
NODES = {method.name: node for node in nodes() for method in vars(sys.modules[node.__module__]).values()
         if isinstance(method, Method)}
TUNED = {"negative": NULL, "cfg": 7.5, "iterations": 1, "tolerance": 0.0}
RENOISED = {"iterations": 2, "average": 1, "early_iterations": 1}
# Settings with few rounds, and those with which a method writes all that it can. Other settings have their defaults.
CHANGED = {
    "Fixed Point": {"iterations": 2, "acceleration": "none"}, "ReNoise": RENOISED,
    "ReNoise Ancestral": {**RENOISED, "eta": 1.0}, "Negative Prompt": {"interpolation": 0.5, "negative": NULL},
    "Regularized": {"reg_steps": 1, "ac_rolls": 1}, "Direct": {"cfg": 7.5, "negative": NULL},
    "Null-Text": {"iterations": 1, "tolerance": 0.0}, "Prompt Tuning": TUNED, "StyleDiffusion": TUNED, "KV": TUNED}


def defaults(node):
    return {i.id: i.default for i in node.define_schema().inputs if getattr(i, "default", None) is not None}


@pytest.mark.parametrize("method", methods())
def test_what_every_method_writes_comes_back(folders, method):
    """So the table of what each method writes is true of its node."""
    model, node = tiny.sdxl(), NODES[method]
    latent = {"samples": model.model.process_latent_out(tiny.latent(model, 2))}
    learns = "inversion" in node.GET_NODE_INFO_V1()["input"]["required"]
    given = {"source": tiny.cond(), "latent": latent, "steps": 2, "scheduler": "ddim_uniform"}
    given = {"inversion": PalimpsestDDIMInvert.execute(model, **given).result[0]} if learns else given
    made = node.execute(model, **defaults(node) | given | CHANGED.get(method, {})).result[0]
    assert made.method == method
    found = loaded(saved(made))
    assert all(same(getattr(found, name), getattr(made, name)) for name in ("theta", "settings", "provenance"))


@pytest.mark.parametrize("method", methods())
def test_a_plain_call_gives_what_the_node_gives(method):
    """Inputs that the call is not given have the node's defaults."""
    model, node, declared = tiny.sdxl(), NODES[method], methods()[method]
    latent, sigmas = {"samples": model.model.process_latent_out(tiny.latent(model))}, torch.tensor([14.0, 2.0, 0.0])
    negative = {"negative": NULL} if "negative" in node.GET_NODE_INFO_V1()["input"]["required"] else {}
    inputs = defaults(node) | ({"eta": declared.settings["eta"].default} if method == "ReNoise Ancestral" else {})
    if declared.learn and not declared.along:
        source = invert("DDIM", model, tiny.cond(), latent, 2).inversion
        ours = learn(method, model, source, **negative)
        theirs = node.execute(model=model, inversion=source, **inputs, **negative).result[0]
    else:
        ours, noise, levels = invert(method, model, tiny.cond(), latent, sigmas=sigmas, **negative)
        theirs, *outputs = node.execute(model=model, source=tiny.cond(), latent=latent, sigmas=sigmas, **inputs).result
        assert same([noise, levels], outputs)
    assert theirs.method == ours.method == method
    assert all(same(getattr(ours, name), getattr(theirs, name)) for name in ("latents", "theta", "settings"))
    assert same({**ours.provenance, "seconds": 0}, {**theirs.provenance, "seconds": 0})


def test_a_plain_call_says_what_it_does_not_know():
    model = tiny.sd15()
    latent = {"samples": model.model.process_latent_out(tiny.latent(model))}
    for name, settings, message in (
            ("Telepathy", {}, "No method is named 'Telepathy'.*DDIM"), ("EDICT", {"q": 1}, "Invert knows no q.* p"),
            ("EDICT", {"p": 2.0}, "a p of 2.0, which is outside 0.5 to 1"), ("Null-Text", {}, "along an inversion"),
            ("DDPM", {"last_residual": "lose"}, "outside auto, keep, zero"), ("DDIM", {"cfg": 3.0}, "without guidance"),
            ("EDICT", {"cfg": 3.0}, "no negative CONDITIONING"), ("BDIA", {"gamma": 0.5, "steps": 50}, "raise gamma")):
        with pytest.raises(ValueError, match=message):
            invert(name, model, tiny.cond(), latent, **settings)
    with pytest.raises(ValueError, match="makes a trajectory"):
        learn("DDIM", model, invert("DDIM", model, tiny.cond(), latent, 2).inversion)


def test_a_new_file_alone_adds_a_method(tmp_path, monkeypatch):
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "__init__.py").touch()
    (tmp_path / "later" / "telepathy.py").write_text(
        "from ..method import Method\nMETHOD = Method('Telepathy', 'Telepathy Invert')\n", encoding="utf-8")
    monkeypatch.setattr(room, "__path__", [*room.__path__, str(tmp_path)])
    before = methods()
    methods.cache_clear()
    try:
        assert methods().keys() - before.keys() == {"Telepathy"}
    finally:
        methods.cache_clear()
        for name in [n for n in sys.modules if n.startswith(f"{room.__name__}.later")]:
            del sys.modules[name]
