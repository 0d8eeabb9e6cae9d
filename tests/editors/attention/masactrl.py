"""Mutual Self-Attention, over the whole picture and between two masks."""
import torch
from palimpsest.nodes.attention.masactrl import PalimpsestMutualSelfAttention

from editors.case import CROSS_END, EditorCase, shared_word, store


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


CASES = (EditorCase("mutual", mutual, 80, features=True, joint=True),
         EditorCase("mutual by words", mutual_words, 90, features=True, joint=True, finds=True))
