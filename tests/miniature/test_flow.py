"""The miniature flow model: trained as the host runs it, and a model of the host that follows its captions."""
import comfy.model_base
import comfy.ops
import pytest
import torch
from comfy.ldm.flux.model import Flux
from palimpsest.bench.miniature import accuracy
from palimpsest.miniature import scenes, train_flow
from palimpsest.miniature.model import FLOW, load_flow_miniature, load_miniature
from palimpsest.miniature.networks import WORDS, flux_settings
from palimpsest.miniature.picture import sample
from palimpsest.miniature.train_flow import new_flow
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def flow():
    return load_flow_miniature()


def test_it_is_trained_as_the_host_runs_it():
    """Every weight is drawn, since fresh ones end in zeros."""
    ours, theirs = new_flow(), Flux(**flux_settings(), dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    g = torch.Generator().manual_seed(0)
    for p in ours.parameters():
        p.data = torch.randn(p.shape, generator=g) * .1
    theirs.load_state_dict(ours.state_dict())
    given = torch.randn(2, 4, 16, 12, generator=g), torch.tensor([.3, .9]), torch.randn(2, 7, 128, generator=g)
    with torch.no_grad():
        found, wanted = ours(*given), theirs(*given)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())


def test_training_runs_from_nothing_to_weights_that_load(tmp_path):
    curve = train_flow.train(.02, tmp_path / "work", tmp_path, count=32)
    again = train_flow.train(.02, tmp_path / "work", tmp_path, count=32)
    assert curve == again, "a finished training is not trained again"
    made = load_file(tmp_path / FLOW.name)
    fresh = new_flow().state_dict()
    assert made.keys() == fresh.keys() and FLOW.stat().st_size < 14e6
    assert (made["final_layer.linear.weight"] != 0).any(), "it was 0 before the first step"
    assert load_flow_miniature(tmp_path / FLOW.name)[0].model.diffusion_model.double_blocks[0].img_attn.num_heads == 6


def test_it_is_an_ordinary_flow_model_of_the_host(flow):
    model, clip, _ = flow
    assert isinstance(model.model, comfy.model_base.Flux)
    assert model.model.model_sampling.sigma(torch.tensor(.25)) == .25, "its levels are not shifted"
    text = "a photo of a red striped star on a sand background"
    rows, whole = (c.encode_from_tokens_scheduled(c.tokenize(text))[0][0] for c in (clip, load_miniature()[1]))
    assert rows.shape[1] == WORDS
    torch.testing.assert_close(rows, whole[:, :WORDS], rtol=0, atol=1e-5)


def test_samples_show_what_captions_ask(flow):
    drawn = [scenes.held_out_scene(i) for i in range(10)]
    made = sample(*flow, [s.caption() for s in drawn], steps=20)
    seen = accuracy(made, drawn)
    assert min(seen["ground"], seen["colour"]) > .9 and seen["shape"] > .7
