"""Free-prompt editing against explicit softmax maps."""
import torch
from palimpsest.attention.free_prompt import SelfAttentionMaps

from explicit import apply_maps, features, softmax_maps
from feature_edits import attend


def test_free_prompt_edit_is_the_sources_maps_on_the_targets_values():
    target, source = features(2, 0), features(2, 1)
    got = attend(SelfAttentionMaps(None, frozenset(), 0, 1), 2, target, source)
    torch.testing.assert_close(got, apply_maps(softmax_maps(*source[:2]), target[2]), rtol=1e-12, atol=1e-12)
