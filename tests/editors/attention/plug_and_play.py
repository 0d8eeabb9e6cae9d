"""Plug-and-Play Features."""
from palimpsest.nodes.attention.plug_and_play import PalimpsestPlugAndPlay

from editors.case import CROSS_END, EditorCase
from joint import JOINT


def plug_and_play(case, model=None):
    features = 0.0 if case.family in JOINT else CROSS_END  # there is no decoder
    return PalimpsestPlugAndPlay.execute(model or case.model, case.inversion, features, CROSS_END, "", "",
                                         False).result[0]


CASES = (EditorCase("plug and play", plug_and_play, 100, features=True, joint=True),)
