"""Reward Guidance."""
from palimpsest.nodes.guidance.dco import PalimpsestRewardGuidance

import tiny
from editors.case import EditorCase


def rewarded(case, model=None):
    """The expert is another prompt, as of a word that was learned without weights."""
    return PalimpsestRewardGuidance.execute(model or case.model, tiny.encode(case.clip, "a hat"), 3.0, 0.0,
                                            1.0).result[0]


CASES = (EditorCase("reward", rewarded, concepts=1, bare=True),)
