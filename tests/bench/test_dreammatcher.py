"""What the benchmark of DreamMatcher says of pictures."""
import pytest
import torch
from palimpsest.bench.dreammatcher import ALONE, rim, table


def test_the_rim_is_the_outer_eighth_of_a_picture_alone():
    pictures = torch.zeros(2, 64, 64, 3)
    others = pictures.clone()
    others[:, 8:-8, 8:-8] = 1
    assert rim(pictures, others).isinf().all()
    others[1, :8] = others[1, -8:] = others[1, :, :8] = others[1, :, -8:] = 0.1
    assert float(rim(pictures, others)[1]) == pytest.approx(20)


def test_the_table_says_gains_over_the_model_alone():
    plain = {name: (12.0, 11.0, 13.0) for name in ("seen", "unseen", "rim", "time", "seen gain", "unseen gain")}
    plain["rim"] = [None] * 3  # inf dB, as in JSON
    edited = plain | {"unseen": (13.5, 13.0, 14.0), "unseen gain": (1.5, 0.5, 2.0), "seen gain": (-0.2, -0.5, 0.1)}
    _, _, first, second = table({ALONE: plain, "DreamMatcher": edited}).splitlines()
    assert first == f"| {ALONE} | 12.0 dB | 12.0 dB | – | 12.00 |"
    assert second == "| DreamMatcher | 12.0 dB (-0.2, -0.5 to +0.1) | 13.5 dB (+1.5, +0.5 to +2.0) | inf dB | 12.00 |"
