"""ReVersion: a step against the paper's losses on diffusers' network, where a word goes, and the node."""
import math

import pytest
import torch
from palimpsest.bench import twin
from palimpsest.concept.lora import LoRA
from palimpsest.concept.p_plus import ExtendedTextualInversion
from palimpsest.concept.reversion import PREPOSITIONS, Steering
from palimpsest.concept.textual_inversion import TextualInversion
from palimpsest.editing.learning import learn_concept
from palimpsest.editing.rows import level
from palimpsest.host.concept_files import vectors_of
from palimpsest.nodes.concept.reversion import PalimpsestReVersion

import tiny
from concepts import clip_of, images
from node_execution import executor  # noqa: F401  runs every test as the host does

SEED, CAPTION = 4, ("the cat is * stone",)
WORD = TextualInversion("thing", "and", 1, 1e-2)


def steer(relation, near, far, temperature=0.07):
    """L_steer as the paper writes it, of vectors of norm 1."""
    R, P, N = (v / v.norm(dim=-1, keepdim=True) for v in (relation, near, far))
    above = sum(math.exp(float(R @ p) / temperature) for p in P)
    return -math.log(above / (above + sum(math.exp(float(R @ n) / temperature) for n in N)))


def test_the_first_step_is_the_papers_loss():
    """Its level by f(t), its noise and its prepositions drawn by the same generator."""
    model, clip = tiny.sd15(), tiny.clip()
    given = images(model, CAPTION)
    learned = learn_concept(model, clip, given, [WORD], steps=1, seed=SEED, objective=Steering(weight=0.5))
    generator = torch.Generator().manual_seed(SEED)
    torch.randint(1, (1,), generator=generator)
    f = [1 / 1000 * (1 - 0.5 * math.cos(math.pi * t / 1000)) for t in range(1000)]
    t = int(torch.multinomial(torch.tensor(f), 1, generator=generator))
    noise = torch.randn(tiny.latent(model).shape, generator=generator)
    chosen = torch.randperm(len(PREPOSITIONS), generator=generator)[:4].tolist()
    relation, near, far = (vectors_of(clip, text)["clip_l"] for text in (
        "and", " ".join(PREPOSITIONS[n] for n in chosen), "cat stone"))
    sigma = model.model.model_sampling.sigmas[t].clone()
    clean = model.model.process_latent_in(given.examples[0].latent.clone())[None]
    with torch.inference_mode(False), torch.no_grad():
        text = tiny.encode(clip, "the cat is and stone")[0][0].clone()
        found = twin.unet(model)((clean + sigma * noise) / (1 + sigma ** 2) ** 0.5, t, text).sample
        denoise = float((found - noise).square().mean())
    assert learned.losses[0] == pytest.approx(denoise + 0.5 * steer(relation[0], near, far), rel=1e-4)
    assert steer(relation[0], near, far) > 0.1


def test_noisy_levels_are_drawn_by_f():
    sampling, generator = tiny.sd15().model.model_sampling, torch.Generator().manual_seed(0)
    found = torch.tensor([level(sampling, "eps", 1.0, generator) for _ in range(1000)])
    share = float((found > sampling.sigmas[499]).float().mean())
    assert share == pytest.approx(0.5 + 1 / math.pi, abs=0.04)  # f over the noisier half; 3 deviations
    even = [level(sampling, "eps", 0.0, torch.Generator().manual_seed(n)) for n in range(3)]
    assert even == [float(sampling.sigmas[int(torch.randint(1000, (), generator=torch.Generator().manual_seed(n)))])
                    for n in range(3)]


@pytest.mark.parametrize("kind, family", [(TextualInversion, "sdxl"), (ExtendedTextualInversion, "sd15")])
def test_the_word_goes_to_the_prepositions_and_from_the_things(kind, family):
    model, clip = getattr(tiny, family)(), clip_of(family)
    learned = learn_concept(model, clip, images(model, CAPTION), [kind("thing", "and", 1, 1e-2)], steps=2,
                            objective=Steering(weight=1e4, near=("on",), drawn=1))
    tables = [vectors_of(clip, text) for text in ("on", "cat stone", "and")]
    after = learned.words.get("thing") or learned.tables["thing"].vectors
    for encoder, (near, far, start) in {key: [table[key] for table in tables] for key in tables[0]}.items():
        def likeness(v, known):
            return torch.nn.functional.cosine_similarity(v.reshape(-1, 1, v.shape[-1]), known[None], dim=-1).mean(1)
        v = after[encoder]
        assert (likeness(v, near) > likeness(start, near)).all() and (likeness(v, far) < likeness(start, far)).all()


def test_the_node_and_what_it_needs():
    (objective,), = PalimpsestReVersion.execute(0.01, 4, 0.07, 0.5, " ".join(PREPOSITIONS)).result
    assert objective == Steering()
    assert PalimpsestReVersion.execute(0.01, 4, 0.07, 0.5, ", ".join(PREPOSITIONS)).result[0] == (objective,)
    assert objective.far("a (red cat:1.3) in (embedding:my-thing:1.2) * stone") == ["red", "cat", "stone"]
    model, clip = tiny.sd15(), tiny.clip()
    with pytest.raises(ValueError, match="connect New Word"):
        learn_concept(model, clip, images(model, CAPTION), [LoRA(1e-3)], objective=objective)
    with pytest.raises(ValueError, match="'no words' for the caption"):
        learn_concept(model, clip, images(model, ("on the *",)), [WORD], objective=objective)
