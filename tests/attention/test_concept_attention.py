"""Concept Attention against the authors' numbers and one masked softmax, the picture it leaves alone, and its masks."""
import json
from pathlib import Path

import comfy.model_base
import pytest
import torch
import torch.nn.functional as F
from comfy.model_management import InterruptProcessingException
from palimpsest.attention.concept_attention import embedded, read_concepts, with_concepts
from palimpsest.bench.masks import iou, named
from palimpsest.editing.editor import editors
from palimpsest.editing.inverting import invert
from palimpsest.host.network import text_blocks
from palimpsest.host.sampling import Solver, sample
from palimpsest.host.tokens import tokenize
from palimpsest.miniature.model import load_flow_miniature
from palimpsest.miniature.scenes import covered, held_out_edit
from palimpsest.nodes.attention.concept_attention import PalimpsestConceptAttention
from palimpsest.nodes.attention.store import PalimpsestAttentionHeatmap, PalimpsestAttentionMask
from palimpsest.nodes.blending.local_blend import PalimpsestLatentBlend

import joint
import tiny
from joint_by_hand import softmax
from joint_words import OVERRIDE, SOURCE, TOKENS, columns, inverted, made, of_picture, sampled, shaped
from node_execution import executor  # noqa: F401
from refusals import counted, plain, refused
from runs import kept, relative

AUTHORS = json.loads((Path(__file__).parents[1] / "data" / "concept_attention.json").read_text())
APART = [family for family in ("flux", "flux2", "chroma", "qwen", "sd3", "sd35 medium", "auraflow")
         if family in joint.WORDS]


def some(count, channels=tiny.DIM):
    return {f"c{i}": row for i, row in enumerate(torch.randn(count, channels,
                                                             generator=torch.Generator().manual_seed(9)))}


@pytest.mark.parametrize("name, size, depth, steps, guidance, layers", [
    ("square", (8, 8), 2, 3, 3.5, [1]), ("odd", (6, 14), 4, 5, 1.0, [2, 3])])
def test_maps_are_the_authors(name, size, depth, steps, guidance, layers):
    """At each level of an inversion, all three concepts' or the first of two, where the pooled text is zeros."""
    model, (text, extra) = tiny.flux(mlp_ratio=4.0, depth=depth), tiny.cond(512, seed=1)[0]
    source = [[text, {**extra, "pooled_output": torch.zeros_like(extra["pooled_output"]), "guidance": guidance}]]
    latent = torch.randn(1, 16, *size, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        inversion = invert("DDIM", model, source, {"samples": latent}, sigmas=torch.linspace(1, 0, steps + 1)).inversion
        found = read_concepts(model, inversion, some(3 if name == "square" else 2),
                              {("double", layer, 0) for layer in layers})
    wanted = torch.tensor(AUTHORS[name])
    found = found.steps.flatten(1)[:, :len(wanted) // steps].flatten()
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)  # processors round up to 9e-6 apart


def seen_by(model, source, size, count, layers, normalise):
    """Maps of a DDIM INVERSION in two steps."""
    latent = torch.randn(1, model.model.latent_format.latent_channels, *size,
                         generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        inversion = invert("DDIM", model, source, {"samples": latent}, sigmas=torch.tensor([1.0, 0.6, 0.0])).inversion
        return read_concepts(model, inversion, some(count), {("double", layer, 0) for layer in layers}, normalise).steps


@pytest.mark.parametrize("layer", [0, 1])
def test_maps_of_sd3_are_the_authors_of_outputs_that_look_up_the_prompt(layer):
    """Their first token is one of padding, which concepts look up and which gets no share of the picture."""
    found = seen_by(tiny.sd3(), tiny.cond(), (6, 12), 4, [layer], True)[:, 0, 1:]
    wanted = torch.tensor(AUTHORS["sd3"]).view(2, 2, 3, 6)[layer]
    torch.testing.assert_close((found / found.sum(1, keepdim=True))[:, 0], wanted, rtol=0, atol=1e-5)


@pytest.mark.skipif(not joint.TODAY, reason="ComfyUI 0.3.64 has no Flux.2")
def test_maps_of_flux_2_are_the_authors():
    (text, extra), = tiny.cond(20)
    source = [[text, {**extra, "guidance": 4.0}]]
    found = seen_by(joint.flux2(depth=3, output=0.2), source, (5, 7), 2, [1, 2], False)[:, 0, 0]
    torch.testing.assert_close(found, torch.tensor(AUTHORS["flux2"]).view(2, 5, 7), rtol=0, atol=2e-5)


def masked(family, concepts, normalise, seen):
    """Attention with concepts, by one softmax in which scores that may not count are -inf. Adds the maps at each block
    with two streams to `seen`."""
    count, calls = TOKENS + len(concepts), iter(range(99))
    ours = [columns(family, i, count)[0] + (family == "flux2") * len(concepts) for i in range(TOKENS, count)]
    blocks = len(text_blocks(made(family).model.diffusion_model))

    def edit(func, q, k, v, heads, *args, **kwargs):
        q, k, v = shaped(q, k, v, heads, **kwargs)
        own, barred = of_picture(family, q.shape[2]), torch.zeros(q.shape[2], k.shape[2], dtype=torch.bool)
        if q.shape[2] != own.stop - own.start:
            barred[:, ours] = True
            barred[ours] = True
            barred[ours, own] = False
            barred[torch.tensor(ours)[:, None], torch.tensor(ours)] = False
        out = softmax(q, k, v, lambda maps: (maps * ~barred) / (maps * ~barred).sum(-1, keepdim=True))
        if barred.any() and next(calls) < blocks:
            o_c = F.normalize(out[:, ours], dim=-1) if normalise else out[:, ours]
            seen.append((o_c @ out[:, own].transpose(1, 2)).softmax(1))
        return out

    return edit


@pytest.mark.parametrize("family", APART)
def test_concepts_look_up_the_picture_and_each_other_and_nothing_looks_up_them(family):
    """The maps, and a prediction that is as without concepts."""
    normalise, seen, inversion, model = family.startswith("sd3"), [], inverted(family), made(family).clone()
    concepts, layers = some(2), text_blocks(model.model.diffusion_model)
    longer = with_concepts(joint.worded(family, SOURCE), torch.stack([*concepts.values()]),
                           model.model.diffusion_model)
    model.model_options["transformer_options"][OVERRIDE] = masked(family, concepts, normalise, seen)
    with torch.inference_mode():
        found = read_concepts(made(family), inversion, concepts, layers, normalise)
        start = model.model.process_latent_out(inversion.path[0])
        by_hand = sample(model, longer, start, inversion.sigmas, Solver())
        alone = sample(made(family), joint.worded(family, SOURCE), start, inversion.sigmas, Solver())
    assert len(seen) == len(layers)
    torch.testing.assert_close(found.maps.flatten(2), torch.stack(seen).mean(0), rtol=1e-4, atol=1e-5)
    assert relative(by_hand, alone) < 1e-5
    assert (found.maps[:, 0] - 0.5).abs().max() > 1e-3


@pytest.mark.parametrize("family", APART)
def test_the_picture_is_read_as_it_is_without_concepts(family, monkeypatch):
    """But for rounding, as a processor may multiply a matrix of more rows in other parts."""
    read, alone, inversion = [], [], inverted(family)
    monkeypatch.setattr("palimpsest.attention.concept_attention.report_step", lambda *args: read.append(args[-1]))

    def plainly(denoise, x, sigmas, extra_args, callback, disable):
        alone.append(denoise(inversion.latents[0].to(x), sigmas[0].repeat(len(x)), **extra_args))
        return x

    with torch.inference_mode():
        read_concepts(made(family), inversion, some(2), text_blocks(made(family).model.diffusion_model))
        sample(made(family), inversion.conditioning, inversion.path[0], inversion.sigmas, Solver(plainly))
    assert relative(read[0], alone[0]) < 5e-7


def test_a_cancelled_reading_leaves_nothing_in_the_model(monkeypatch):
    model, inversion, layers = made("flux"), inverted("flux"), {("double", 1, 0)}
    network = model.model.diffusion_model
    held = {name: weight.clone() for name, weight in network.state_dict().items()}

    def cancelled(*_):
        raise InterruptProcessingException

    with torch.inference_mode():
        before = read_concepts(model, inversion, some(2), layers).maps
        with monkeypatch.context() as cancelling, pytest.raises(InterruptProcessingException):
            cancelling.setattr("palimpsest.attention.concept_attention.report_step", cancelled)
            read_concepts(model, inversion, some(2), layers)
        after = read_concepts(model, inversion, some(2), layers).maps
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    assert not editors(model) and OVERRIDE not in model.model_options["transformer_options"]
    assert torch.equal(before, after) and all(torch.equal(w, held[n]) for n, w in network.state_dict().items())


@kept
def flow():
    return load_flow_miniature()


@kept
def pictured():
    """An edit, its picture and INVERSION on the flow miniature."""
    model, clip, vae = flow()
    edit = held_out_edit(0, "object")
    picture = torch.from_numpy(edit.source_image)[None]
    source = clip.encode_from_tokens_scheduled(clip.tokenize(edit.source_text))
    with torch.inference_mode():
        return edit, picture, invert("DDIM", model, source, {"samples": vae.encode(picture)}, 8).inversion


def attention(concepts, layers="d", normalise=False):
    model, clip, _ = flow()
    return PalimpsestConceptAttention.execute(model, clip, pictured()[2], concepts, layers, normalise).result[0]


def test_masks_of_a_trained_model_cover_the_thing():
    """On 8 x 8 tokens, of a picture of 128 x 128 pixels. What is around it gets the rest."""
    edit, picture, _ = pictured()
    words, thing = named(edit, "shape")
    shape, true = words.partition("#")[0], torch.from_numpy(covered(thing))[None]
    found = attention(f"{shape}, background")
    masks = [PalimpsestAttentionMask.execute(found, word, 0.0, 0, 0.0, picture).result[0]
             for word in (shape, "background")]
    assert iou(masks[0], true) > 0.6 and iou(masks[1], 1 - true) > 0.8
    assert PalimpsestAttentionHeatmap.execute(found, picture, "").ui["palimpsest_words"][0]["words"][1]["name"] \
        == "background"


def test_a_concept_is_its_first_token_read_alone():
    _, clip, _ = flow()
    (text, _), = clip.encode_from_tokens_scheduled(clip.tokenize("striped star"))
    first = tokenize(clip, "striped star").words[0].positions[0]
    assert first > 0 and torch.equal(embedded(clip, ["sky", "striped star"])[1], text[0, first])


def test_latent_blend_keeps_the_picture_outside_a_concept():
    """The ATTENTION is of the INVERSION's picture, though its words are none of the source's."""
    (model, clip, _), (_, _, inversion), found = flow(), pictured(), attention("sky, triangle")
    blended = PalimpsestLatentBlend.execute(model, inversion, 0.0, "sky", "", 0.0, attention=found).result[0]
    mask = found.mask([[found.tokens[0].find("sky")]], (16, 16), 0.0, True)
    target = clip.encode_from_tokens_scheduled(clip.tokenize("a photo of a red circle on a sky background"))
    with torch.inference_mode():
        edited = sampled(blended, inversion, target)
        source = model.model.process_latent_out(inversion.path[-1])
    outside = (1 - mask).bool().expand_as(edited)
    assert 0.2 < mask.mean() < 0.95 and relative(edited[~outside], source[~outside]) > 0.1
    torch.testing.assert_close(edited[outside], source[outside], rtol=0, atol=1e-4)


@pytest.mark.parametrize("given, facts", [
    ({"concepts": "cat"}, ("1 (cat)", "'cat, background'")), ({"concepts": ""}, ("0 (none)",)),
    ({"concepts": "cat, Cat"}, ("2 (cat, Cat)", "each once")), ({"layers": "s"}, ("'s'", "d15-18")),
    ({"layers": "d9"}, ("d9", "d0-2"))])
def test_what_it_cannot_compare_is_refused(given, facts):
    (model, calls), (_, clip, _) = counted(flow()[0]), flow()
    with refused(calls, *facts):
        PalimpsestConceptAttention.execute(model, clip, pictured()[2], **{
            "concepts": "cat, mat", "layers": "", "normalise": False, **given})


@pytest.mark.parametrize("family", ["hidream", "zimage", "wan"])
def test_other_families_are_refused(family):
    """Their words know of each other before the blocks, or have no stream of their own."""
    model, calls = counted(made(family))
    with refused(calls, "Flux, Chroma, Qwen-Image, SD3, AuraFlow", "Attention Store"):
        PalimpsestConceptAttention.execute(model, flow()[1], inverted(family), "cat, mat", "", False)


def test_a_model_that_places_the_picture_by_its_prompts_length_is_refused(monkeypatch):
    """As LongCat-Image, whose network is Flux's."""
    model, calls = counted(made("flux"))
    monkeypatch.setattr(comfy.model_base, "LongCatImage", type(model.model), raising=False)
    with refused(calls, "LongCatImage", "Attention Store"):
        PalimpsestConceptAttention.execute(model, flow()[1], inverted("flux"), "cat, mat", "", False)


def test_concepts_of_another_text_encoder_are_refused():
    model, calls = counted(made("flux"))
    with refused(calls, "7 channels", f"prompt has {tiny.DIM}", "CLIP that encoded the source"):
        read_concepts(model, inverted("flux"), some(2, 7), text_blocks(model.model.diffusion_model))


def test_a_unet_is_refused():
    case = plain()
    model, calls = counted(case.model)
    with refused(calls, "UNetModel", "Attention Store"):
        PalimpsestConceptAttention.execute(model, flow()[1], case.inversion, "cat, mat", "", False)
