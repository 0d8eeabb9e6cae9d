"""What editors that look at attention see beside those that change it."""
from dataclasses import dataclass

import pytest
import torch
from palimpsest.attention.add_it import ExtendedAttention
from palimpsest.attention.feature_share import SharedFeatures
from palimpsest.attention.masactrl import MutualSelfAttention
from palimpsest.editing.run import attach
from palimpsest.editing.word_maps import WordMaps
from palimpsest.host.network import resolutions
from palimpsest.host.sampling import Solver

from feature_edits import case, mask
from joint_by_hand import OVERRIDE
from joint_words import shaped
from runs import relative

HALF = mask((0, 8, 0, 4))
KNOWN = torch.rand(1, 2, 4, 4, generator=torch.Generator().manual_seed(5))
MAKE = {"mutual": lambda c, at: MutualSelfAttention(c.inversion, at, 0.0, 1.0),
        "mutual by masks": lambda c, at: MutualSelfAttention(c.inversion, at, 0.0, 1.0, source=HALF, target=1 - HALF),
        "shared keys": lambda c, at: SharedFeatures(c.inversion, at, 0.0, 1.0, {"k": False, "v": False})}


@dataclass(frozen=True, eq=False)
class Noted(WordMaps):
    """Notes the maps of two words after a step, and their refinement of maps that never change."""
    notes: list = None

    def before(self, run, x, sigma):
        run.state(self).start_again(KNOWN)
        return x

    def after(self, run, x0, sigma):
        self.notes.append((self.mean(run), self.refined(run)))
        return x0


def first_layer(c) -> dict:
    """{its address: its resolution}."""
    return dict(list(resolutions(c.model.model.diffusion_model).items())[:1])


def predicted(c, model) -> list:
    """x0 of a latent that is not the source's, at two levels."""
    found = []

    def walk(denoise, x, sigmas, extra_args, callback, disable):
        found.extend(denoise(x, sigma.expand(len(x)), **extra_args) for sigma in sigmas[:2])
        return x

    c.sample(model, c.target, 1.0, Solver(walk), c.apart)
    return found


def noted(c, *edits):
    """[(maps, refined)] of both levels, and the predictions."""
    (at, resolution), = first_layer(c).items()
    model, notes = c.model, []
    for edit in edits:
        model = attach(model, edit)
    maps = Noted(lambda prompts: [tokens.words[1:3] for tokens in prompts], resolution, resolution, frozenset([at]),
                 notes=notes)
    return notes, predicted(c, attach(model, maps))


@pytest.mark.parametrize("family", ["sd15", "flux", "zimage"])
@pytest.mark.parametrize("editor", MAKE)
def test_maps_are_of_the_pictures_own_attention_whatever_it_is_made_to_look_up(editor, family):
    """Looking changes no bit of the prediction."""
    c = case(family)
    edit = MAKE[editor](c, frozenset(first_layer(c)))
    (plain, _), (beside, found) = noted(c), noted(c, edit)
    for own, theirs in zip(plain, beside, strict=True):
        torch.testing.assert_close(theirs[1], own[1], rtol=1e-5, atol=1e-7)
        if family != "sd15":  # there cross-attention is asked what self-attention made
            torch.testing.assert_close(theirs[0], own[0], rtol=1e-5, atol=1e-7)
    unseen, untouched = (predicted(c, model) for model in (attach(c.model, edit), c.model))
    assert len(plain) == 2 and all(torch.equal(a, b) for a, b in zip(found, unseen, strict=True))
    assert relative(unseen[0], untouched[0]) > 1e-4


def test_add_its_maps_are_those_of_its_extended_attention():
    """As the authors store them: of the softmax over the source's picture too, where words and picture have the keys
    that are weighted. The walk is over the picture's own places."""
    c, weight, seen = case("flux"), 1.3, []
    at, = first_layer(c)
    edit = ExtendedAttention(c.inversion, {at: 1.0}, 0.0, weight)

    def record(func, q, k, v, heads, *args, **kwargs):
        seen.append(shaped(q, k, v, heads, **kwargs)[:2])
        return func(q, k, v, heads, *args, **kwargs)

    def first(call):
        """q and k of the first attention of the first forward that `call` makes of a MODEL."""
        model = c.model.clone()
        model.model_options["transformer_options"][OVERRIDE] = record
        seen.clear()
        call(model)
        return seen[0]

    q, k = first(lambda model: predicted(c, model))
    _, k_s = first(lambda model: c.predictions(model, c.source))
    cells = KNOWN[0, 0].numel()
    keys = torch.cat([weight * k, k_s[:, :, -cells:]], 2)
    maps = (q[:, :, -cells:] @ keys.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1).mean(1)
    words = k.shape[2] - cells
    own = maps[..., words:-cells]
    (found, refined), *_ = noted(c, edit)[0]
    torch.testing.assert_close(found.flatten(2), maps[..., 1:3].transpose(1, 2), rtol=1e-4, atol=1e-6)
    walked = own @ KNOWN.flatten(2).transpose(1, 2) / own.sum(-1, keepdim=True)
    torch.testing.assert_close(refined.flatten(2), walked.transpose(1, 2), rtol=1e-4, atol=1e-6)
