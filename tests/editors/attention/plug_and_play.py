"""Plug-and-Play Features."""
from palimpsest.nodes.attention.plug_and_play import PalimpsestPlugAndPlay

from editors.case import CROSS_END, EditorCase


def plug_and_play(case, model=None):
    return PalimpsestPlugAndPlay.execute(model or case.model, case.inversion, CROSS_END, CROSS_END, "", "",
                                         False).result[0]


CASES = (EditorCase("plug and play", plug_and_play, 100, features=True),)
