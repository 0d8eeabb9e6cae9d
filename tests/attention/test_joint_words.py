"""Words in joint attention: their maps and Prompt-to-Prompt against an explicit softmax with slices written by hand."""
import pytest
import torch
from palimpsest.attention.alignment import PromptEdit, align
from palimpsest.attention.store import read_maps
from palimpsest.editing.inverting import invert
from palimpsest.host.dit import word_layers
from palimpsest.host.sampling import Solver, sample
from palimpsest.nodes.attention.p2p import PalimpsestAttentionInject
from palimpsest.nodes.attention.store import PalimpsestAttentionMask, PalimpsestAttentionStore
from palimpsest.nodes.blending.local_blend import PalimpsestLatentBlend
from palimpsest.nodes.prompt import PalimpsestPromptEdit

import clips
import joint
from joint import WORDS
from joint_words import (
    OVERRIDE,
    SOURCE,
    TOKENS,
    columns,
    inverted,
    keys_of,
    made,
    of_picture,
    picture,
    recorded,
    sampled,
    shaped,
)
from runs import relative


@pytest.mark.parametrize("family", WORDS)
def test_a_words_map_is_what_the_picture_gives_to_its_tokens(family):
    """In the one softmax of all tokens, mean over heads and frames, at the layers that show words best. Refined it is
    the mean of the cells that a cell looks up."""
    cells, frames = picture(family)
    with torch.inference_mode():
        found = read_maps(made(family), inverted(family))
        chosen = [at[1] for at in sorted(word_layers(made(family).model.diffusion_model))]
        calls = recorded(family, joint.worded(family, SOURCE))
    maps, walks = [], []
    for q, k, _ in (calls[i] for i in chosen):
        own = of_picture(family, q.shape[2])
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1).mean(1)[:, own]
        maps.append(torch.stack([weights[..., columns(family, i)].sum(-1) for i in range(TOKENS - 1)], 1))
        walks.append(weights[..., own])
    wanted = torch.stack(maps).mean(0).unflatten(2, (frames, -1)).mean(2)
    torch.testing.assert_close(found.steps[0].flatten(2), wanted, rtol=1e-4, atol=1e-6)
    if family != "wan":
        found_by = [(walk @ wanted.repeat(1, 1, frames).transpose(1, 2), walk.sum(-1, keepdim=True)) for walk in walks]
        spread = [torch.div(*(x.transpose(1, 2).unflatten(2, (frames, -1)).mean(2) for x in both))
                  for both in found_by]
        refined = torch.stack(spread).mean(0)
        torch.testing.assert_close(found.refined.flatten(2), refined, rtol=1e-3, atol=1e-5)


TARGET = "a red big dog sits"


def explicit_p2p(family, pair, known, layout):
    """The run in which the picture's rows have the source's probabilities for words with a partner, but for "sits",
    whose schedule is over. "dog" counts twice. layout: they have the source's q and k of the picture, too."""
    a, e = torch.ones(2, len(pair.target.ids))
    a[list(pair.target.find("sits").positions)], e[list(pair.target.find("dog").positions)] = 0, 2
    model, inversion, calls = made(family).clone(), inverted(family), iter(range(99))
    longer = len(pair.target.ids) - len(pair.source.ids)
    total = known[0][0].shape[2] + longer * (2 if family == "hidream" else 1)

    def edit(func, q, k, v, heads, *args, **kwargs):
        split = shaped(q, k, v, heads, **kwargs)
        if split[0].shape[2] != split[1].shape[2] or split[0].shape[2] not in (total, known[0][0].shape[2]):
            return func(q, k, v, heads, *args, **kwargs)
        q_s, k_s, _ = known[next(calls)]
        own, theirs = (of_picture(family, x.shape[2]) for x in (split[0], q_s))
        maps, maps_s = ((x @ y.transpose(-1, -2) * x.shape[-1] ** -0.5).softmax(-1)
                        for x, y in ((split[0], split[1]), (q_s, k_s)))
        if layout:
            asked, keys = (x.clone() for x in split[:2])
            asked[:, :, own], keys[:, :, own] = q_s[:, :, theirs], k_s[:, :, theirs]
            maps[:, :, own] = (asked[:, :, own] @ keys.transpose(-1, -2) * asked.shape[-1] ** -0.5).softmax(-1)
        edited = maps.clone()
        for j in range(len(pair.target.ids)):
            for n, key in enumerate(keys_of(family, pair.target, j)):
                moved = sum(pair.mapper[i, j] * maps_s[:, :, theirs, keys_of(family, pair.source, i)[n]]
                            for i in pair.mapper[:, j].nonzero()[:, 0].tolist())
                mine = maps[:, :, own, key]
                edited[:, :, own, key] = e[j] * a[j] * (pair.kept[j] * moved + (1 - pair.kept[j]) * mine) + (
                    1 - a[j]) * mine
        return (edited @ split[2]).transpose(1, 2).flatten(2)

    model.model_options["transformer_options"][OVERRIDE] = edit
    target = joint.worded(family, TARGET, seed=2)
    found = sample(model, target, model.model.process_latent_out(inversion.path[0]), inversion.sigmas, Solver())
    assert next(calls) == len(known)
    return found


@pytest.mark.parametrize("family, layout", [
    *((family, False) for family in ("flux", "sd3", "qwen", "zimage", "lumina2", "auraflow", "hidream",
                                     *["hunyuan image"] * joint.TODAY)), ("flux", True), ("qwen", True)])
def test_prompt_to_prompt_replaces_the_maps_of_words(family, layout):
    """In the picture's rows, of a longer target, with a factor and with a word whose schedule is over."""
    source, target = joint.worded(family, SOURCE), joint.worded(family, TARGET, seed=2)
    pair = align(*(c[0][1]["palimpsest_tokens"][0] for c in (source, target)))
    with torch.inference_mode():
        known = recorded(family, source)
        put = PalimpsestAttentionInject.execute(made(family), inverted(family), PromptEdit((pair,)), 0.0, 1.0, 0.0,
                                                float(layout), 1.0, 1.0, "dog: 2", "sits: 0").result[0]
        found, plain = (sampled(model, inverted(family), target) for model in (put, made(family)))
        wanted = explicit_p2p(family, pair, known, layout)
    assert pair.kept[-6:].tolist() == [1, 1, 0, 0, 1, 1]
    assert relative(found, wanted) < 1e-5 and relative(found, plain) > 1e-4


@pytest.mark.skipif(not joint.TODAY, reason="ComfyUI 0.3.64 does not know it")
def test_words_behind_tokens_of_unknown_number_are_refused():
    """HunyuanVideo 1.5 puts other tokens before them."""
    with pytest.raises(ValueError, match="1.5 puts other tokens before the words.*choose HunyuanVideo 1.0"):
        PalimpsestAttentionStore.execute(joint.hunyuan_video(use_cond_type_embedding=True), inverted("hunyuan video"),
                                         None, 0.25)


@pytest.mark.parametrize("family", clips.MADE)
def test_words_choose_what_may_change(family):
    """From the text in Prompt Edit to a picture that is the source's own outside what the words name."""
    clip, model = clips.clip(family), made(family)
    with torch.inference_mode():
        source, target, edit = PalimpsestPromptEdit.execute(clip, "a cat on a hill", "a dog on a hill", "auto").result
        latent = {"samples": joint.latent(family, model)}
        inversion = invert("DDIM", model, source, latent, steps=3).inversion
        attention = PalimpsestAttentionStore.execute(model, inversion, edit, 0.25).result[0]
        mask = PalimpsestAttentionMask.execute(attention, "cat", 0.0, 0, 0.0).result[0]
        blend = PalimpsestLatentBlend.execute(model, inversion, 0.0, "cat", "", 0.0, attention=attention).result[0]
        found = sampled(blend, inversion, target)
    moved = (found - latent["samples"]).abs().amax(tuple(range(1, found.ndim - 2)))
    assert moved[mask == 0].max() < 1e-5 < 1e-3 < moved[mask == 1].max()
