"""Editors that read the source everywhere and record what they are given."""
from dataclasses import dataclass

from palimpsest.editing.sites import AttentionEdit

from explicit import SIDE

PIXELS = SIDE * SIDE


@dataclass(frozen=True, eq=False)
class Looks(AttentionEdit):
    """Reads the source everywhere and changes nothing."""
    inversion: object

    def reads(self, run, sigma):
        return True

    def acts(self, run, site, sigma):
        return False

    def keeps(self, run, site, sigma):
        return "qkv"


@dataclass(frozen=True, eq=False)
class Noted(Looks):
    """Records the features that it is given."""
    notes: dict

    def acts(self, run, site, sigma):
        return True

    def attend(self, rows, site, q, k, v, source, attention):
        self.notes.setdefault((site.kind, site.address), []).append((q.clone(), k.clone(), v.clone(), source))
        return attention(q, k, v)


def assert_rounding(a, b):
    """Equal within ten roundings of fp32 of the largest value, because each forward adds up in its own order."""
    assert (a - b).abs().max() <= 1e-5 * b.abs().max()
