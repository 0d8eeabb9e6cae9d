"""Editors of the source's features as their nodes make them, and the masks and maps that they take."""
import torch
from palimpsest.editing.sites import Rows, Site, Source
from palimpsest.nodes.attention.free_prompt import PalimpsestFreePromptEdit
from palimpsest.nodes.attention.masactrl import PalimpsestMutualSelfAttention
from palimpsest.nodes.attention.plug_and_play import PalimpsestPlugAndPlay
from palimpsest.nodes.attention.prompt_mixing import PalimpsestPromptMixing
from palimpsest.nodes.attention.store import PalimpsestAttentionStore

from explicit import HEADS, SIDE, Call, Run, attention
from runs import Case, kept


@kept
def case(family="sd15", **kwargs):
    return Case(family, steps=3, **kwargs)


def attend(editor, rows, target, source):
    site = Site("self", ("output", 0, 0), (SIDE, SIDE), 0.5, HEADS)
    return editor.attend(Rows(Call(Run()), {}, rows), site, *target, Source(zip("qkv", source)), attention)


def mask(*cells, size=2 * SIDE):
    """[1, size, size], 1 on some windows (top, bottom, left, right)."""
    m = torch.zeros(1, size, size)
    for top, bottom, left, right in cells:
        m[:, top:bottom, left:right] = 1
    return m


def mutual(c, start=0.0, end=1.0, layers="", source_words="", target_words="", threshold=0.1, null_too=False, **masks):
    return PalimpsestMutualSelfAttention.execute(c.model, c.inversion, start, end, layers, source_words, target_words,
                                                 threshold, null_too, **masks).result[0]


def plug_and_play(c, feature_end=0.8, attention_end=0.5, feature_layers="", layers="", null_too=False):
    return PalimpsestPlugAndPlay.execute(c.model, c.inversion, feature_end, attention_end, feature_layers, layers,
                                         null_too).result[0]


def free_prompt(c, start=0.0, end=0.8, layers=""):
    return PalimpsestFreePromptEdit.execute(c.model, c.inversion, start, end, layers).result[0]


def mixing(c, mix=None, start=0.0, end=0.8, preserve="", object="", threshold=0.3, preserve_end=0.8, layers="",
           **sources):
    return PalimpsestPromptMixing.execute(c.model, mix or c.source, start, end, preserve, object, threshold,
                                          preserve_end, layers,
                                          **sources).result[0]


def whole(c, value=1.0):
    return torch.full((1, 64, 64), value)


@kept
def store(c):
    with torch.inference_mode():
        return PalimpsestAttentionStore.execute(c.model, c.inversion, c.edit, 0.5).result[0]
