"""Every editor by name, as its node makes it. An editor listed here gets every test of composition and purity.

Each is a function (case, model=the case's own) -> edited MODEL, for any prompts that a Case can hold.
"""
import pytest
import torch
from palimpsest.attention.alignment import PromptEdit, align
from palimpsest.nodes.attention.cross_image import PalimpsestCrossImageAttention
from palimpsest.nodes.attention.free_prompt import PalimpsestFreePromptEdit
from palimpsest.nodes.attention.masactrl import PalimpsestMutualSelfAttention
from palimpsest.nodes.attention.p2p import PalimpsestAttentionInject
from palimpsest.nodes.attention.plug_and_play import PalimpsestPlugAndPlay
from palimpsest.nodes.attention.prompt_mixing import PalimpsestPromptMixing
from palimpsest.nodes.attention.reweight import PalimpsestAttentionReweight
from palimpsest.nodes.attention.store import PalimpsestAttentionStore
from palimpsest.nodes.attention.style_aligned import PalimpsestStyleAligned
from palimpsest.nodes.attention.tf_icon import PalimpsestInjectComposite
from palimpsest.nodes.blending.blended_latent import PalimpsestBlendedLatent
from palimpsest.nodes.blending.local_blend import PalimpsestLatentBlend
from palimpsest.nodes.blending.noise_mask import PalimpsestNoiseMask
from palimpsest.nodes.blending.object_aware import PalimpsestObjectAwareBlend
from palimpsest.nodes.guidance.attend_excite import PalimpsestAttendExcite
from palimpsest.nodes.guidance.ledits import PalimpsestLEDITS
from palimpsest.nodes.guidance.magic_remover import PalimpsestMagicRemover
from palimpsest.nodes.guidance.nmg import PalimpsestNoiseMapGuidance
from palimpsest.nodes.guidance.pix2pix_zero import PalimpsestCrossAttentionGuidance
from palimpsest.nodes.guidance.sega import PalimpsestSEGAGuidance
from palimpsest.nodes.guidance.self_guidance import PalimpsestSelfGuidance

import tiny
from runs import kept

STEPS, SELF_END, CROSS_END = 3, 0.5, 0.8


def shared_word(case):
    """The last source word that every prompt of the case has."""
    prompts = [tokens for pair in case.edit.pairs for tokens in (pair.source, pair.target)]
    names = [{w.name for w in tokens.words} for tokens in prompts]
    return next(w.name for w in reversed(prompts[0].words) if all(w.name in found for found in names))


@kept
def store(case):
    with torch.inference_mode():
        return PalimpsestAttentionStore.execute(case.model, case.inversion, case.edit, 0.25).result[0]


def inject(case, model=None, mode=None, weights="", ends=""):
    """On three steps: edits self- and cross-attention at the first, cross-attention at the second."""
    edit = case.edit if mode is None else PromptEdit(tuple(align(p.source, p.target, mode) for p in case.edit.pairs))
    schedules = 0.0, CROSS_END, 0.0, SELF_END
    return PalimpsestAttentionInject.execute(model or case.model, case.inversion, edit, *schedules, 1.0, 0.5, weights,
                                             ends).result[0]


def swap(case, model=None):
    return inject(case, model)


def refine(case, model=None):
    return inject(case, model, mode="refine")


def reweight(case, model=None):
    word = shared_word(case)
    return inject(case, model, weights=f"{word}: 3", ends=f"{word}: {SELF_END}")


def blend(case, model=None):
    """A mask of one quarter and a soft cell, that begins at the second of three steps."""
    height, width = case.latent.shape[-2:]
    mask = torch.zeros(1, height * 8, width * 8)
    mask[:, :height * 4, :width * 4] = 1
    mask[:, -8:, -8:] = 0.5
    return PalimpsestLatentBlend.execute(model or case.model, case.inversion, 0.5, "", "", 0.3, mask=mask).result[0]


def quarter(case):
    """A mask of the upper left quarter, in pixels."""
    height, width = case.latent.shape[-2:]
    mask = torch.zeros(1, height * 8, width * 8)
    mask[:, :height * 4, :width * 4] = 1
    return mask


def shrinking(case, model=None):
    """Grows the mask by two cells at the first of three steps and by one at the second."""
    return PalimpsestBlendedLatent.execute(model or case.model, 2, 0.6, case.inversion, quarter(case)).result[0]


def objects(case, model=None):
    """Two objects, from the first and from the second of three steps."""
    for mask, start in ((quarter(case), 0.0), (quarter(case).flip(1, 2), 0.3)):
        model = PalimpsestObjectAwareBlend.execute(model or case.model, case.inversion, mask, start).result[0]
    return model


def noise_mask(case, model=None):
    return PalimpsestNoiseMask.execute(model or case.model, case.inversion, "source", 0.0, 1.0, 0.5).result[0]


def composite(case, model=None):
    """The picture set into itself, with its own queries and keys everywhere, until the blend ends at
    the second of three steps."""
    return PalimpsestInjectComposite.execute(model or case.model, case.inversion, case.inversion, quarter(case), 0,
                                             CROSS_END,
                                             SELF_END, 0).result[0]


def blend_words(case, model=None):
    """Random nets give words flat maps, so only a high threshold makes a mask of a part of the picture."""
    word = shared_word(case)
    return PalimpsestLatentBlend.execute(model or case.model, case.inversion, 0.5, word, word, 0.95,
                                         attention=store(case)).result[0]


def sega(case, model=None):
    """Two concepts, one of them removed. They act from the first and from the second of three steps."""
    for text, direction, warmup in (("a hat", "add", 0.0), ("fur", "remove", 0.3)):
        model = PalimpsestSEGAGuidance.execute(model or case.model, tiny.encode(case.clip, text), direction, 5.0,
                                               warmup, 1.0, 0.9,
                                               1.0, 0.1, 0.4).result[0]
    return model


def ledits(case, model=None):
    return PalimpsestLEDITS.execute(model or case.model, case.clip, "a hat", "add", 5.0, 0.0, 1.0, 0.7).result[0]


def inject_then_blend(case, model=None):
    return blend_words(case, inject(case, model))


def blend_then_inject(case, model=None):
    return inject(case, blend_words(case, model))


def mutual(case, model=None):
    return PalimpsestMutualSelfAttention.execute(model or case.model, case.inversion, 0.0, CROSS_END, "", "", "", 0.1,
                                                 False).result[0]


def mutual_words(case, model=None):
    """The source's mask from words, at a threshold that is far from every cell of the tiny models' maps. The
    target's mask is painted."""
    word, (height, width) = shared_word(case), case.latent.shape[-2:]
    mask = torch.zeros(1, height * 8, width * 8)
    mask[:, :, :width * 4] = 1
    return PalimpsestMutualSelfAttention.execute(model or case.model, case.inversion, 0.0, CROSS_END, "", word, "", 0.7,
                                                 False, target_mask=mask, attention=store(case)).result[0]


def plug_and_play(case, model=None):
    return PalimpsestPlugAndPlay.execute(model or case.model, case.inversion, CROSS_END, CROSS_END, "", "",
                                         False).result[0]


def free_prompt(case, model=None):
    return PalimpsestFreePromptEdit.execute(model or case.model, case.inversion, 0.0, CROSS_END, "").result[0]


def excite(case, model=None):
    """One move at the first of three steps, and at most two more at the second."""
    return PalimpsestAttendExcite.execute(model or case.model, shared_word(case), 100.0, 0.5, "0.2: 0.9", 2,
                                          0.25).result[0]


def pull(case, model=None):
    return PalimpsestCrossAttentionGuidance.execute(model or case.model, case.inversion, 20.0, 0.0, CROSS_END).result[0]


def noise_map(case, model=None):
    return PalimpsestNoiseMapGuidance.execute(model or case.model, case.inversion, 0.005).result[0]


def guide(case, model=None):
    """An object that moves to the right."""
    return PalimpsestSelfGuidance.execute(model or case.model, case.inversion, shared_word(case), 0.3, 0.0, 1.0, "",
                                          50.0, 0.05, 0.0,
                                          CROSS_END, 0.5).result[0]


def remove(case, model=None):
    """An object in one quarter."""
    return PalimpsestMagicRemover.execute(model or case.model, case.inversion, shared_word(case), 0.3, 1.0, 0.0,
                                          CROSS_END,
                                          mask=quarter(case)).result[0]


def mixing(case, model=None):
    """The source prompt's values in the target. Shapes in one quarter are preserved."""
    height, width = case.latent.shape[-2:]
    mask = torch.zeros(1, height * 8, width * 8)
    mask[:, :height * 4, :width * 4] = 1
    return PalimpsestPromptMixing.execute(model or case.model, case.source, 0.0, CROSS_END, "", "", 0.3, CROSS_END, "",
                                          inversion=case.inversion, mask=mask).result[0]


def style_aligned(case, model=None):
    return PalimpsestStyleAligned.execute(model or case.model, 0.0, CROSS_END, 0.69, 1.0, True, "", False,
                                          case.inversion).result[0]


def cross_image(case, model=None):
    """The picture's own appearance, with AdaIN in one quarter. Over the whole picture AdaIN leaves too little for
    rounding to be small against."""
    return PalimpsestCrossImageAttention.execute(model or case.model, case.inversion, 0.0, CROSS_END, CROSS_END, 0.2,
                                                 1.0, 1.67, "",
                                                 structure_mask=quarter(case), appearance_mask=quarter(case)).result[0]


def weigh(case, model=None):
    """A word's factor. The word may act in one quarter only."""
    word = shared_word(case)
    return PalimpsestAttentionReweight.execute(model or case.model, f"{word}: 3", word, "", 0.3, 0.0, CROSS_END,
                                               mask=quarter(case)).result[0]


EDITORS = {"swap": swap, "refine": refine, "reweight": reweight, "blend": blend, "blend by words": blend_words,
           "inject, blend": inject_then_blend, "blend, inject": blend_then_inject, "mutual": mutual,
           "mutual by words": mutual_words, "plug and play": plug_and_play, "free prompt": free_prompt,
           "mixing": mixing,
           "excite": excite, "pull": pull, "guide": guide, "remove": remove,
           "sega": sega, "ledits": ledits, "shrinking": shrinking, "objects": objects, "noise mask": noise_mask,
           "composite": composite, "style aligned": style_aligned, "cross image": cross_image, "weigh": weigh,
           "noise map": noise_map}
FEATURES = {"composite", "mutual", "mutual by words", "plug and play", "free prompt", "mixing",
            "style aligned", "cross image"}  # of every entry, until CROSS_END
READS = {"swap", "refine", "reweight", "inject, blend", "blend, inject", "pull", "guide", "remove",
         *FEATURES}  # the source's features, until CROSS_END
ACTS = READS - {"guide"} | {"weigh"}  # on predictions, until CROSS_END
NULL_TOO = {"remove"}  # also the null prompt's rows, which read the source under that prompt
MOVES = {"excite", "pull", "remove",
         "noise map"}  # the latent itself, so no prompt, not even the null prompt, is predicted at the given one
BARE = {"blend", "shrinking"}  # gather nothing in a run
WORDS = {"blend by words", "inject, blend", "blend, inject", "sega", "ledits", "noise mask",
         "guide", "noise map"}  # with a threshold on maps, or with signs of an L1 norm
CONCEPTS = {"sega": 2, "ledits": 1, "noise mask": 1}  # own prompts, in the target's forward
FAMILIES = list(tiny.UNETS)
each = pytest.mark.parametrize("editor, family", [(e, f) for e in EDITORS for f in FAMILIES])


def each_with(name, variants):
    """Every editor with every variant, each pair on one family in turn. All pairs of the three occur in a test."""
    return pytest.mark.parametrize(f"editor, {name}, family", [
        (e, v, FAMILIES[(i + j) % len(FAMILIES)]) for i, e in enumerate(EDITORS) for j, v in enumerate(variants)])
