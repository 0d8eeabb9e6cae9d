"""Lists of layers, counted and named in the network's order."""
from types import SimpleNamespace

import pytest
from palimpsest.attention.plug_and_play import after_first, second_block
from palimpsest.editing.layers import coarse, decoder, listed, parse_layers, self_attention_layers
from palimpsest.nodes.widgets import layers_of

from unets import sd15, sdxl


def test_layers_are_counted_in_the_order_in_which_the_network_runs_them():
    assert listed(sd15()) == "d0-1 (1), d2-3 (1/2), d4-5 (1/4), m0 (1/8), u0-2 (1/4), u3-5 (1/2), u6-8 (1)"
    assert listed(sdxl()) == "d0-1.0-1 (1/2), d2-3.0-9 (1/4), m0.0-9 (1/4), u0-2.0-9 (1/4), u3-5.0-1 (1/2)"
    order = [("d", i) for i in range(6)] + [("m", 0)] + [("u", i) for i in range(9)]
    assert [(p.section, p.transformer) for p in self_attention_layers(sd15())] == order


def test_a_list_of_layers_names_sections_transformers_and_layers():
    unet = sdxl()
    assert parse_layers("d2.2-9, m0\nU0.4", unet) == {
        *(("input", 7, i) for i in range(2, 10)), *(("middle", 0, i) for i in range(10)), ("output", 0, 4)}
    assert parse_layers("u", unet) == {p.address for p in self_attention_layers(unet) if p.section == "u"}
    assert parse_layers("u3-5.1", unet) == {("output", i, 1) for i in (3, 4, 5)}
    assert parse_layers("", unet) == parse_layers(" , \n,", unet) == frozenset()


@pytest.mark.parametrize("text", ["d9", "d1-9", "m0.10", "d0.1-7", "u0.10", "u5-3"])
def test_a_layer_that_the_model_lacks_is_an_error_that_lists_what_it_has(text):
    with pytest.raises(ValueError, match=r"does not have: it has d0-1\.0-1 \(1/2\), d2-3\.0-9.*u3-5\.0-1"):
        parse_layers(f"m0, {text}", sdxl())


@pytest.mark.parametrize("text", ["x0", "d.1", "d0.", "4", "d0;m0", "middle"])
def test_what_is_no_layer_at_all_is_an_error(text):
    with pytest.raises(ValueError, match="names no layer"):
        parse_layers(text, sd15())


@pytest.mark.parametrize("text", ["", " ", ", ,", "\n"])
def test_a_list_without_a_layer_is_an_empty_one(text):
    model = SimpleNamespace(model=SimpleNamespace(diffusion_model=sd15()))
    assert layers_of(text, model, lambda unet: coarse(unet, 0.5)) == coarse(sd15(), 0.5)


def test_defaults_are_the_papers_layers():
    """MasaCtrl: from layer 10 of SD's 16, from layer 64 of SDXL's 70. PnP: the fourth block's features,
    attention of blocks 4 to 11."""
    for unet, layers, start in ((sd15(), "u3-8", 10), (sdxl(), "u3-5", 64)):
        mine = decoder(unet, 0.5)
        assert mine == parse_layers(layers, unet) == {p.address for p in self_attention_layers(unet)[start:]}
    assert second_block(sd15()) == {4} and {p[1] for p in after_first(sd15())} == set(range(4, 12))
    assert after_first(sdxl()) == parse_layers("u1-5", sdxl()) and second_block(sdxl()) == {1}
    assert coarse(sd15(), 0.5) == parse_layers("d2-5, m0, u0-5", sd15())
    assert coarse(sdxl(), 0.5) == parse_layers("d, m, u", sdxl())
