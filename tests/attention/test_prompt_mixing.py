"""Prompt mixing's preserved shapes and mixed values against explicit maps."""
from collections import defaultdict
from dataclasses import dataclass, fields

import pytest
import torch
from palimpsest.attention.prompt_mixing import MixedValues, PreservedShapes
from palimpsest.editing.editor import editors
from palimpsest.editing.run import attach
from palimpsest.editing.sites import mask_at
from palimpsest.host.unet import host_attention, resolutions

from explicit import SIDE, apply_maps, features, relative, softmax_maps
from families import each_family
from feature_edits import attend, case, mask, mixing, store, whole


@pytest.mark.parametrize("varied", [False, True])
@pytest.mark.parametrize("soft", [1.0, 0.5])
def test_preserved_shapes_take_the_sources_rows_and_columns(soft, varied):
    """The rows and columns of the preserved places, but not where they overlap the object whose shape varies."""
    target, source = features(2, 0), features(2, 1)
    o, b = torch.zeros(2, SIDE, SIDE).double()
    o[:2, 1:3], b[1:, 2:] = soft, soft * varied
    o, b = o.flatten(), b.flatten()
    m = (1 - (1 - o)[:, None] * (1 - o)[None]) * (1 - b)[:, None] * (1 - b)[None]
    maps = m * softmax_maps(*source[:2]) + (1 - m) * softmax_maps(*target[:2])
    editor = PreservedShapes(None, frozenset(), 0, 1, preserved=soft * mask((0, 4, 2, 6)),
                             varied=soft * mask((2, 8, 4, 8)) if varied else None)
    torch.testing.assert_close(attend(editor, 2, target, source), apply_maps(maps, target[2]), rtol=1e-6, atol=1e-6)


@dataclass(frozen=True, eq=False)
class ExplicitShapes(PreservedShapes):
    """The edited maps, made as the paper writes them."""

    def attend(self, rows, site, q, k, v, source, attention):
        q, k, q_s, k_s, v = (x.unflatten(-1, (site.heads, -1)).transpose(1, 2) for x in (q, k, source.q, source.k, v))
        theirs, own = ((a @ b.transpose(-1, -2) * a.shape[-1] ** -0.5).softmax(-1) for a, b in ((q_s, k_s), (q, k)))
        o, b = (mask_at(m, rows, site)[0] for m in (self.preserved, self.varied))
        m = (1 - (1 - o)[:, None] * (1 - o)) * (1 - b)[:, None] * (1 - b)
        return ((m * theirs + (1 - m) * own) @ v).transpose(1, 2).flatten(2)


@each_family
def test_a_run_that_preserves_shapes_is_that_of_explicit_maps(family):
    """Through the node, which finds the object by its word in the preserved places."""
    c = case(family)
    preserved = {"preserve_end": 1.0, "mask": whole(c), "inversion": c.inversion}
    model = mixing(c, object="cat", threshold=0.9, attention=store(c), **preserved)
    shapes = editors(model)[-1]
    assert 0 < shapes.varied.mean() < 1
    explicit = attach(model, ExplicitShapes(**{f.name: getattr(shapes, f.name) for f in fields(shapes)}),
                      replacing=shapes)
    found = c.sample(model)
    assert relative(found, c.sample(explicit)) < 2e-5
    assert relative(found, c.sample(mixing(c, **preserved))) > 1e-3


@each_family
def test_values_of_the_mixed_prompt_meet_the_keys_of_the_pictures(family):
    """At every cross-attention, only in the target's rows and only in the middle of the schedule."""
    c, seen = case(family), defaultdict(list)
    unet = c.model.model.diffusion_model

    def note(q, k, v, options):
        section, number = options["block"]
        transformer = next(m for m in (unet.middle_block if section == "middle"
                                       else getattr(unet, f"{section}_blocks")[number])
                           if hasattr(m, "transformer_blocks"))
        seen[float(options["sigmas"][0])].append((transformer.transformer_blocks[options["block_index"]].attn2, k, v))
        return host_attention(q, k, v, options)

    model = mixing(c, start=0.5)  # the second of three steps
    for position in resolutions(unet):
        model.set_model_patch_replace(note, "attn2", *position)
    c.sample(model, cfg=1.0)
    assert len(seen) == 3
    with torch.inference_mode():
        for step, found in enumerate(seen.values()):
            assert len(found) == len(resolutions(unet))
            for attn, k, v in found:
                assert relative(k, attn.to_k(c.target[0][0])) < 1e-5
                assert relative(v, attn.to_v((c.source if step == 1 else c.target)[0][0])) < 1e-5


def test_a_mixed_prompt_of_another_length_fills_the_positions_that_it_has():
    """The words of a prompt are found in every repetition that the host made of its columns."""
    v, other = torch.randn(2, 12, 3), torch.randn(1, 4, 3)
    mixed = MixedValues(other, 0, 1).mixed(v, 6)
    torch.testing.assert_close(mixed[:, :4], other.expand(2, -1, -1))
    torch.testing.assert_close(mixed[:, 6:10], other.expand(2, -1, -1))
    torch.testing.assert_close(mixed[:, 4:6], v[:, 4:6])
    longer = torch.randn(2, 9, 3)
    torch.testing.assert_close(MixedValues(longer, 0, 1).mixed(v, 6), longer[:, :6].repeat(1, 2, 1))
