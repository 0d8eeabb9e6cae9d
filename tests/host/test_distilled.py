"""What an inversion says of a distilled MODEL: of few steps, of whole steps, and of guidance that the source lacks."""
import comfy.supported_models
import pytest
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete
from palimpsest.editing.inverting import invert

import joint
import tiny
from exact_inversions import picture
from node_execution import executor  # noqa: F401


def schnell():
    """The host's own class of Flux without a guidance embedding."""
    config = comfy.supported_models.FluxSchnell({**tiny.flux().model.model_config.unet_config, "guidance_embed": False})
    return tiny.patcher(lambda c: c.get_model({}), config)


def sampled_by(kind):
    return ModelSamplingDiscrete().patch(tiny.sd15(), kind, False)[0]


def guided(guidance=1.0):
    """As FluxGuidance gives it. None: FluxDisableGuidance."""
    (embedding, extra), = tiny.cond()
    return [[embedding, {**extra, "guidance": guidance}]]


def texts(said, method, model, steps, source=None):
    said()
    invert(method, model, source or guided(), picture(model), steps, "simple")
    return said()


@pytest.mark.parametrize("make, fact", [
    (schnell, "has no guidance embedding, as Schnell"),
    (lambda: sampled_by("lcm"), "samples by lcm"), (lambda: sampled_by("x0"), "predicts x0, as Lightning")])
def test_what_the_host_knows_of_few_steps_is_said_at_a_way_back(make, fact, said):
    model = make()
    text, = texts(said, "DDIM", model, 2)
    assert fact in text and "FlowEdit Invert needs no way back" in text
    assert not texts(said, "FlowEdit", model, 2) and not texts(said, "ReNoise", model, 2)


def test_where_the_host_knows_nothing_few_steps_are_asked_about(said):
    model = tiny.flux()
    text, = texts(said, "DDIM", model, 8)
    assert "takes 8 steps (paper: 50)" in text and "choose FlowEdit Invert" in text and "take more steps" in text
    quiet = [("DDIM", model, 9), ("FireFlow", model, 8), ("FlowEdit", model, 2), ("DDIM", tiny.sd15(), 2)]
    assert not sum([texts(said, *run) for run in quiet], [])


def test_guidance_that_the_host_puts_into_the_source_is_said_once(said):
    text, = texts(said, "DDIM", tiny.flux(), 9, tiny.cond())
    assert "names no guidance" in text and "takes 3.5" in text and "connect FluxGuidance" in text
    text, = texts(said, "DDIM", joint.JOINT["hunyuan video"](), 9, tiny.cond()) if joint.TODAY else ["takes 6"]
    assert "takes 6" in text
    for make, source in ((tiny.flux, guided()), (tiny.flux, guided(None)), (tiny.sd3, tiny.cond())):
        assert not texts(said, "DDIM", make(), 9, source)
    assert not [text for text in texts(said, "DDIM", schnell(), 9, tiny.cond()) if "names no guidance" in text]


@pytest.mark.parametrize("make, guidance", [(tiny.flux, 3.5), *[(joint.hunyuan_video, 6.0)] * joint.TODAY])
def test_the_guidance_is_the_hosts_default(make, guidance):
    model, noise = make(), torch.zeros(1, 16, 8, 8)
    (embedding, extra), = tiny.cond()
    found = model.model.extra_conds(cross_attn=embedding, noise=noise, device=noise.device, **extra)
    assert found["guidance"].cond.tolist() == [guidance]


def test_a_model_of_whole_steps_is_refused():
    model = tiny.flux()
    model.model.model_config.unet_config["meanflow"] = True
    for method in ("DDIM", "FlowEdit"):
        with pytest.raises(ValueError, match=r"whole steps between those.*\(meanflow\): load the checkpoint"):
            invert(method, model, guided(), picture(model), 9)
