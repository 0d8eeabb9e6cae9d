"""What fits which card: the bytes that are counted of networks that hold no numbers."""
import pytest
import torch
from palimpsest.bench.fits import SHAPES, counted, encoders, held, network, smallest
from palimpsest.concept.custom_diffusion import KeysAndValues
from palimpsest.concept.dreambooth import AllWeights
from palimpsest.concept.lora import LoRA
from palimpsest.editing.forecast import GB
from torch._subclasses.fake_tensor import FakeTensorMode

import joint
import tiny


def test_the_bytes_are_those_of_the_real_models():
    """The published numbers of weights, and what diffusers' scripts train of SD1.5."""
    with FakeTensorMode():
        small, large = network(SHAPES["SD1.5"]), network(SHAPES["SDXL"])
        assert (held(small), held(large)) == (2 * 859_520_964, 2 * 2_567_463_684)
        if joint.TODAY:  # ComfyUI 0.3.64 builds Flux of other settings
            assert held(network(SHAPES["Flux"], torch.float8_e4m3fn)) == 11_901_408_320
        learns = {basis: sum(int(w.numel()) if basis.lr == 1 else basis.rank * (len(w) + w[0].numel())
                             for name, w in small.named_parameters() if basis.takes(name, w))
                  for basis in (LoRA(2), KeysAndValues(1), AllWeights(1))}
    assert list(learns.values()) == [797_184, 19_169_280, 859_520_964]
    # with the projections of the pooled text
    (clip_l, none), (both, _) = encoders("SD1.5"), encoders("SDXL")
    assert clip_l == 2 * (123_060_480 + 768 ** 2) and both - clip_l == 2 * 694_659_840 and not none


@pytest.mark.parametrize("basis, recomputed", [(None, False), (LoRA(1, 2), True)], ids=["word", "lora, twice"])
def test_fake_tensors_count_what_real_ones_keep(basis, recomputed):
    config = tiny.unet_config([1, 1], 1, [1, 1, 1, 1], num_heads=2)
    for key in ("adm_in_channels", "use_temporal_attention", "use_temporal_resblock"):
        config.pop(key)
    found = counted(network(config), config, 16, basis, recomputed)
    with FakeTensorMode():
        fake = counted(network(config), config, 16, basis, recomputed)
    assert fake == found and found["pass"] > 0
    parts = [] if basis is None else [w for n, w in network(config).named_parameters() if basis.takes(n, w)]
    numbers = sum(basis.rank * (len(w) + w[0].numel()) if isinstance(basis, LoRA) else w.numel() for w in parts)
    assert found["learns"] == 4 * 4 * numbers  # fp32: itself, its gradient and AdamW's two means


def test_a_gigabyte_of_the_card_is_left():
    assert [smallest(int(needed * GB)) for needed in (7, 7.1, 23, 23.1)] == ["8 GB", "12 GB", "24 GB", "–"]
