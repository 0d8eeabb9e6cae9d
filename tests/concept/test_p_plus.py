"""P+: a vector of each layer learns through the host's encoder and network, and its prompt says it to that layer."""
import pytest
import torch
from palimpsest.concept.p_plus import ExtendedTextualInversion
from palimpsest.concept.textual_inversion import TextualInversion
from palimpsest.editing.concepts import WordTable
from palimpsest.editing.learning import applied, learn_concept
from palimpsest.editing.word_spaces import prompt
from palimpsest.host.layered import transformers
from palimpsest.nodes.attention.free_prompt import PalimpsestFreePromptEdit
from palimpsest.nodes.concept.learn import PalimpsestConceptHook
from palimpsest.nodes.concept.p_plus import PalimpsestPPlus
from palimpsest.nodes.concept.words import PalimpsestConceptPrompt
from palimpsest.nodes.inversion.ddim import PalimpsestDDIMInvert

import nodes
import tiny
from concepts import drawn, images, prediction
from node_execution import executor  # noqa: F401  runs every test as the host does
from runs import kept, relative
from word_spaces import CAPTION, Plain, serves

RATE, SEED, TEXT = 1e-2, 4, "a photo of embedding:thing dog"


@kept
def case():
    """A small model, and a word that it learned in two steps."""
    model, clip = tiny.sd15(), tiny.clip()
    word, = PalimpsestPPlus.execute("thing", "cat", RATE).result[0]
    return model, clip, word, learn_concept(model, clip, images(model, (CAPTION,)), [word], None, 2, 2, SEED)


def test_a_step_equals_transformers_and_diffusers():
    """One AdamW step of each layer's vector; diffusers' cross-attentions take their texts in the order of the authors'
    processors, which is the order in which they run. The gradient reaches every vector."""
    model, clip = tiny.sd15(), tiny.clip()
    word = ExtendedTextualInversion("thing", "cat", 1, RATE)
    found = learn_concept(model, clip, images(model, (CAPTION,)), [word], None, 2, 1, SEED)
    generator = torch.Generator().manual_seed(SEED)
    with torch.inference_mode(False):
        plain, losses = Plain(model, clip), []
        vectors = [plain.vector.clone().requires_grad_() for _ in transformers(model.model.diffusion_model)]
        optimiser = torch.optim.AdamW(vectors, lr=RATE)
        for _ in range(2):
            (_, level, noise), = drawn(model, 1, 1, generator)
            loss = plain.loss([plain.text(v) for v in vectors], level, noise)
            optimiser.zero_grad()
            for v, gradient in zip(vectors, torch.autograd.grad(loss, vectors)):
                v.grad = gradient
            optimiser.step()
            losses.append(float(loss.detach()))
        wanted = torch.stack(vectors).detach()
    table = found.tables["thing"]
    assert len(vectors) > 5 and table.vectors["clip_l"].shape == (1, len(vectors), 1, tiny.DIM)
    assert found.losses == pytest.approx(losses, rel=1e-4)
    assert relative(table.vectors["clip_l"][0, :, 0] - plain.vector, wanted - plain.vector) < 1e-3
    moved = found.state["optimiser"]["state"][0]["exp_avg"]
    assert all(one.count_nonzero() for one in moved[0])


def test_equal_vectors_are_textual_inversion():
    model, clip = tiny.sd15(), tiny.clip()
    places = transformers(model.model.diffusion_model)
    word = learn_concept(model, clip, images(model, (CAPTION,)), [TextualInversion("thing", "cat", 1, RATE)], steps=2)
    vector = word.words["thing"]["clip_l"]
    table = WordTable({"clip_l": vector.repeat(1, len(places), 1, 1)}, places)
    plain, told = tiny.encode(applied(model, clip, word)[1], TEXT), prompt(clip, {"thing": table}, TEXT)
    assert relative(told[0][1]["cross_attn_controlnet"], plain[0][0]) < 1e-6
    (_, served), (_, wanted) = prediction(model, told), prediction(model, plain)
    assert relative(served, wanted) < 1e-6
    _, other = prediction(model, tiny.encode(clip, "a photo of cat dog"))
    assert relative(other, wanted) > 1e-4


def test_the_file_predicts_as_in_training(tmp_path, monkeypatch):
    model, clip, word, concept = case()
    training, served = serves(model, clip, concept, word, tmp_path, monkeypatch)
    assert served == pytest.approx(training, rel=1e-5)


def test_sdxl_learns_a_vector_for_each_encoder_and_transformer():
    model, clip = tiny.sdxl(), tiny.sdxl_clip()
    found = learn_concept(model, clip, images(model, (CAPTION,)), [ExtendedTextualInversion("thing", "cat", 1, RATE)],
                          steps=1)
    table = found.tables["thing"]
    assert set(table.vectors) == {"clip_l", "clip_g"} and len(table.places) == len({p for p in table.places}) == 4
    told, = prompt(clip, found.tables, TEXT)
    assert told[0].shape == (1, 4 * 77, tiny.DIM) and told[1]["pooled_output"].shape[0] == 1
    assert torch.isfinite(prediction(model, [told])[1]).all()
    with pytest.raises(ValueError, match="is none of them: sample with a MODEL of the family"):
        prediction(tiny.sd15(), [told])


def test_sdxls_pooled_text_is_the_first_layers():
    """As if all layers had its vector; or the text that it reads elsewhere."""
    model, clip = tiny.sdxl(), tiny.sdxl_clip()
    places = transformers(model.model.diffusion_model)
    generator = torch.Generator().manual_seed(SEED)
    vectors = {name: torch.randn(1, len(places), 1, tiny.DIM // 2, generator=generator)
               for name in ("clip_l", "clip_g")}
    alike = {name: v[:, :1].expand_as(v) for name, v in vectors.items()}

    def pooled(vectors, layers=None):
        told, = prompt(clip, {"thing": WordTable(vectors, places)}, TEXT, "a red cat", layers)
        return told[1]["pooled_output"]

    assert relative(pooled(vectors), pooled(alike)) < 1e-6
    assert relative(pooled(vectors), pooled({name: v.flip(1) for name, v in vectors.items()})) > 1e-3
    plain = tiny.encode(clip, "a red cat")[0][1]["pooled_output"]
    assert relative(pooled(vectors, frozenset(places[1:])), plain) < 1e-6


def test_layers_read_their_own_text():
    """Those that are named read the text, the others what stands elsewhere."""
    model, clip, _, concept = case()
    count = len(transformers(model.model.diffusion_model))

    def told(text, layers="", elsewhere=""):
        (rows, extras), = PalimpsestConceptPrompt.execute(clip, concept, text, layers, 0.0, 1.0, elsewhere).result[0]
        return rows.unflatten(1, (-1, count)) if "hooks" in extras else rows[:, :, None].expand(-1, -1, count, -1)

    whole, plain, mixed = told(TEXT), tiny.encode(clip, "a red cat")[0][0], told(TEXT, "d1, u0-1", "a red cat")
    own = [False, True, False, True, True, False, False]
    assert count == len(own)
    for n, mine in enumerate(own):
        assert relative(mixed[:, :, n], whole[:, :, n] if mine else plain) < 1e-6
    assert relative(whole[:, :, 0], whole[:, :, 1]) > 1e-4
    assert torch.equal(told(TEXT, "d, m, u", "a red cat"), whole)


def test_it_samples_beside_other_prompts_and_under_an_editor():
    """A plain negative prompt reads its own rows; a picture of the batch is what it is alone; self-attention is edited
    as under any prompt."""
    model, clip, _, concept = case()
    told, null = prompt(clip, concept.tables, TEXT), tiny.encode(clip, "")

    def sampled(m, batch=1, cfg=3.0):
        latent = {"samples": torch.zeros(batch, 4, 8, 8)}
        return nodes.common_ksampler(m, 0, 2, cfg, "euler", "simple", told, null, latent)[0]["samples"]

    alone = sampled(model)
    assert relative(sampled(model, 2)[:1], alone) < 1e-5
    assert relative(alone, sampled(model, cfg=1.0)) > 1e-3
    assert not model.model_options["transformer_options"].get("patches")
    inversion = PalimpsestDDIMInvert.execute(model, tiny.encode(clip, "a dog"), {
        "samples": model.model.process_latent_out(tiny.latent(model))}, 2, "simple").result[0]
    edited = sampled(PalimpsestFreePromptEdit.execute(model, inversion, 0.0, 1.0, "").result[0])
    assert torch.isfinite(edited).all() and relative(edited, alone) > 1e-3


def test_what_cannot_work_is_said():
    model, clip, word, concept = case()
    told = prompt(clip, concept.tables, TEXT)
    with pytest.raises(ValueError, match="has none of the concept's words"):
        prompt(clip, concept.tables, "a photo of embedding:thing-2 dog")
    with pytest.raises(ValueError, match="has d0-1, m0, u0-3"):
        PalimpsestConceptPrompt.execute(clip, concept, TEXT, "d7", 0.0, 1.0, "")
    joined, = nodes.ConditioningConcat().concat(told, tiny.encode(clip, "a dog on grass"))
    with pytest.raises(ValueError, match=r"had 539 rows and has 616 now: remove Conditioning \(Concat\)"):
        prediction(model, joined)
    with pytest.raises(ValueError, match="'hooks'"):
        PalimpsestDDIMInvert.execute(model, told, {"samples": tiny.latent(model)}, 2, "simple")
    with pytest.raises(ValueError, match="load the CLIP of the family"):
        prompt(tiny.sdxl_clip(), concept.tables, TEXT)
    with pytest.raises(ValueError, match="U-Nets"):
        learn_concept(tiny.flux(), clip, images(tiny.flux()), [word])
    with pytest.raises(ValueError, match="the words thing and no weights"):
        PalimpsestConceptHook.execute([], concept, 1.0)
