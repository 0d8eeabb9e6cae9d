"""Prompt Mixing and LEDITS++'s words in joint attention, against an explicit softmax with slices written by hand."""
import pytest
import torch
import torch.nn.functional as F
from palimpsest.editing.masks import smoothed
from palimpsest.editing.run import attach
from palimpsest.editing.word_maps import WordMaps
from palimpsest.guidance.ledits import LEDITS, Grounded
from palimpsest.guidance.sega import largest, read_regions
from palimpsest.host.network import resolutions, word_layers
from palimpsest.host.sampling import Solver, sample
from palimpsest.nodes.attention.prompt_mixing import PalimpsestPromptMixing

import joint
from editors.guidance.ledits import ledits
from feature_edits import case
from joint_by_hand import masactrl
from joint_words import OVERRIDE, SOURCE, columns, inverted, made, of_picture, picture, recorded, sampled, shaped
from runs import relative

TARGET, MIX = "a blue cat sits", "a dog"  # as long as the source, and shorter


def softmax(q, k):
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)


def explicit_mixing(family, target, known, mixed, preserved):
    """The run in which the picture's rows take words' values from the mixed prompt, and in the preserved places
    (weights [cells]) all of the source's probabilities."""
    model, inversion, calls = made(family).clone(), inverted(family), iter(range(99))
    keep = 1 - (1 - preserved)[:, None] * (1 - preserved)

    def edit(func, q, k, v, heads, *args, **kwargs):
        q, k, v = shaped(q, k, v, heads, **kwargs)
        if q.shape[2] != k.shape[2] or q.shape[2] != known[0][0].shape[2]:
            return func(*(x.transpose(1, 2).flatten(2) for x in (q, k, v)), heads, **{**kwargs, "skip_reshape": False})
        n = next(calls)
        (q_s, k_s, _), own, maps = known[n], of_picture(family, q.shape[2]), softmax(q, k)
        theirs = k.clone()
        theirs[:, :, own] = k_s[:, :, own]
        of_source, share = softmax(q_s, theirs)[:, :, own], preserved[:, None].expand(-1, k.shape[2]).clone()
        share[:, own] = keep
        edited, values = share * of_source + (1 - share) * maps[:, :, own], v.clone()
        for token in range(128 if family == "hidream" else 3):  # to which HiDream fills T5's up
            for key, other in list(zip(columns(family, token), columns(family, token, 3)))[:3 if token < 3 else 1]:
                values[:, :, key] = mixed[n][2][:, :, other]
        out = maps @ v
        out[:, :, own] = edited @ values
        return out.transpose(1, 2).flatten(2)

    model.model_options["transformer_options"][OVERRIDE] = edit
    found = sample(model, target, model.model.process_latent_out(inversion.path[0]), inversion.sigmas, Solver())
    assert next(calls) == len(known)
    return found


@pytest.mark.parametrize("family", ["flux", "sd3", "zimage", "auraflow", "hidream", *["flux2"] * joint.TODAY])
def test_words_values_are_the_mixed_prompts_and_shapes_the_sources(family):
    """Of a shorter prompt, seen with the same latent. What it has no tokens for keeps its own."""
    mask = torch.zeros(1, 64, 64)
    mask[..., :32] = 1
    side = 8 if family in joint.CELLS else 4
    left = (torch.arange(side) < side // 2).float().repeat(side)
    target, mix = joint.worded(family, TARGET, seed=2), joint.worded(family, MIX, seed=7)
    with torch.inference_mode():
        known, mixed = recorded(family, joint.worded(family, SOURCE)), recorded(family, mix, 3)
        put = PalimpsestPromptMixing.execute(made(family), mix, 0.0, 1.0, "", "", 0.3, 1.0, "",
                                             inversion=inverted(family), mask=mask).result[0]
        found, plain = (sampled(model, inverted(family), target) for model in (put, made(family)))
        wanted = explicit_mixing(family, target, known, mixed, left)
    assert relative(found, wanted) < 1e-5 and relative(found, plain) > 1e-4


@pytest.mark.parametrize("family", ["flux", "sd3", "zimage"])
def test_words_maps_are_attentions_own_whatever_values_are_mixed_in(family):
    """In the first block, before which nothing is edited."""
    model, target, seen = made(family), joint.worded(family, TARGET, seed=2), []
    first = frozenset(list(resolutions(model.model.diffusion_model))[:1])

    class Noting(WordMaps):
        def observe(self, rows, *site):
            super().observe(rows, *site)
            seen.append(self.mean(rows.call.run))

    mixed = PalimpsestPromptMixing.execute(model, joint.worded(family, MIX, seed=7), 0.0, 1.0, "", "", 0.3, 1.0,
                                           "").result[0]
    maps = Noting(lambda prompts: [list(tokens.words[1:3]) for tokens in prompts], 0.5, layers=first)
    with torch.inference_mode():
        for chosen in (model, mixed):
            sampled(attach(chosen, maps), inverted(family), target)
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-5, atol=1e-7)
    assert len(seen) == 2 and 0 < seen[0].min() and seen[0].max() < 1


@pytest.mark.parametrize("family", ["flux", "sd3", "qwen", "wan"])
def test_a_concept_is_kept_where_the_picture_gives_most_to_its_words(family):
    """And where its guidance is largest."""
    model, inversion, null = made(family), inverted(family), joint.worded(family, "", columns=5)
    hat, layers = joint.worded(family, "a straw hat", seed=4), word_layers(made(family).model.diffusion_model)
    editor = LEDITS((Grounded(hat, 5.0, 0.0, 1.0, 0.6, tokens=hat[0][1]["palimpsest_tokens"]),), layers=layers,
                    resolution=0.5)
    with torch.inference_mode():
        found = read_regions(attach(model, editor), editor, inversion, null)
        noise = model.model.process_latent_out(inversion.path[0])
        x0, none = (model.model.process_latent_in(sample(model, prompt, noise, inversion.sigmas, Solver()))
                    for prompt in (hat, null))
        maps = []
        for q, k, _ in (recorded(family, hat, 4)[at[1]] for at in sorted(layers)):
            given = softmax(q, k)[:, :, of_picture(family, q.shape[2])]
            maps.append(given[..., [column for i in range(3) for column in columns(family, i, 4)]].sum(-1).mean(1))
    frames = picture(family)[1]
    attended = smoothed(torch.stack(maps).mean(0).unflatten(1, (frames, 4, 4)).mean(1))[:, None]
    psi = (none - x0).flatten(2, -3) if x0.ndim > 4 else (none - x0)[:, :, None]
    size = psi.abs().sum(1)
    strong = (size >= size.flatten(1).quantile(0.6, dim=1)).float().mean(1)
    wanted = F.interpolate(largest(attended, 0.6), size.shape[-2:])[:, 0] * strong
    assert torch.equal(found[0], wanted) and 0 < wanted.mean() < 0.4


def test_a_concept_is_looked_for_in_the_same_places_before_and_after_an_edit_of_self_attention():
    """In every layer, its words' too."""
    c = case("flux")
    both = c.sample(ledits(c, masactrl(c.model, c.inversion))), c.sample(masactrl(ledits(c), c.inversion))
    assert torch.equal(*both) and relative(both[0], c.sample(masactrl(c.model, c.inversion))) > 1e-3
