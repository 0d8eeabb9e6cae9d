"""Mutual self-attention against explicit softmax maps, with and without masks."""
from dataclasses import dataclass

import torch
from palimpsest.attention.masactrl import MutualSelfAttention, object_mask
from palimpsest.editing.run import attach
from palimpsest.host.sampling import schedule
from palimpsest.host.unet import host_attention
from palimpsest.nodes.inversion.fixed_point import PalimpsestFixedPointInvert

from explicit import SIDE, apply_maps, attention, features, only, relative, softmax_maps
from feature_edits import attend, case, mask


def test_mutual_self_attention_looks_up_the_source():
    target, source = features(2, 0), features(2, 1)
    got = attend(MutualSelfAttention(None, frozenset(), 0, 1), 2, target, source)
    torch.testing.assert_close(got, apply_maps(softmax_maps(target[0], source[1]), source[2]), rtol=1e-12, atol=1e-12)


def test_masked_mutual_self_attention_is_the_papers_equation_with_masked_maps():
    """Two pictures with different masks, of different counts of keys, for four rows, and a soft target mask."""
    target, source = features(4, 0), features(4, 1)
    places_ = torch.cat([mask((0, 4, 0, 6)), mask((2, 8, 2, 4))])
    wanted = torch.cat([mask((0, 8, 4, 8)), 0.25 * mask((0, 8, 0, 8))])
    inside = torch.zeros(2, SIDE, SIDE, dtype=torch.bool)
    inside[0, :2, :3] = inside[1, 1:, 1:2] = True
    inside, m = inside.flatten(1).repeat(2, 1), torch.zeros(2, SIDE, SIDE).double()
    m[0, :, 2:], m[1] = 1, 0.25
    m = m.flatten(1).repeat(2, 1)[..., None]
    f_o, f_b = (apply_maps(softmax_maps(target[0], source[1], only(keys[:, None, None])), source[2])
                for keys in (inside, ~inside))
    got = attend(MutualSelfAttention(None, frozenset(), 0, 1, (), places_, wanted), 4, target, source)
    torch.testing.assert_close(got, f_o * m + f_b * (1 - m), rtol=1e-10, atol=1e-10)


def test_a_side_without_keys_looks_up_them_all():
    target, source = features(1, 0), features(1, 1)
    wanted = mask((0, 8, 0, 4))
    for empty in (mask(), mask((0, 8, 0, 8))):
        got = attend(MutualSelfAttention(None, frozenset(), 0, 1, (), empty, wanted), 1, target, source)
        torch.testing.assert_close(got, attention(target[0], source[1], source[2]))


def test_the_object_is_where_its_words_are_over_the_threshold_of_their_range():
    maps = torch.tensor([[[[0.2, 0.25], [0.3, 0.7]], [[0.1, 0.1], [0.14, 0.6]]]])
    assert torch.equal(object_mask(maps, (2, 2), 0.1), torch.tensor([[[0.0, 0.0], [1.0, 1.0]]]))
    assert torch.equal(object_mask(maps, (4, 4), 0.2)[0], mask((2, 4, 2, 4), size=4)[0])
    assert object_mask(torch.ones(1, 1, 2, 2), (2, 2), 0.1).isfinite().all()


@dataclass(frozen=True, eq=False)
class Noted(MutualSelfAttention):
    notes: dict = None

    def attend(self, rows, site, q, k, v, source, attention):
        self.notes[rows.call.sigma, site.address] = k, v, source
        return super().attend(rows, site, q, k, v, source, attention)


def test_what_is_looked_up_are_the_features_of_the_inversion_itself():
    """TIC (arXiv:2312.14611) reads the keys and values of the inversion itself, however far guidance makes a
    reconstruction drift."""
    c, inverted = case(), {}
    place = ("output", 3, 0)

    def note(q, k, v, options):
        inverted[float(options["sigmas"][0])] = k, v  # the last evaluation of a step is at the step's end
        return host_attention(q, k, v, options)

    model = c.model.clone()
    model.set_model_attn1_replace(note, *place)
    with torch.inference_mode():
        inversion, noise, sigmas = PalimpsestFixedPointInvert.execute(
            model, c.source, {"samples": c.latent}, 1, "normal", 20, 1e-6, "anderson",
            schedule(c.model, "ddim_uniform", 10)[2:]).result  # where the iteration converges
    notes = {}
    edited = attach(c.model, Noted(inversion, frozenset([place]), 0.0, 1.0, notes=notes))
    c.sample(edited, latent=noise["samples"], sigmas=sigmas)
    assert len(notes) == len(inverted) == 8
    drift = []
    for (sigma, _), (k, v, source) in notes.items():
        mine = next(found for level, found in inverted.items() if abs(level / sigma - 1) < 1e-4)
        for theirs, looked_up, own in zip(mine, (source.k, source.v), (k, v)):
            assert relative(looked_up, theirs) < 1e-4
            drift.append(relative(own, theirs))
    assert max(drift) > 0.05
