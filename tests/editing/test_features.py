"""Edits of modules other than attention: the source's feature reaches the rows of an edit's
prompts and no other rows."""
from dataclasses import dataclass

import torch
from palimpsest.editing.features import FeatureEdit
from palimpsest.editing.run import attach
from palimpsest.editing.sites import source_of

from watching import assert_close, case, differ, each_family, of, predictions


class Middle(FeatureEdit):
    """The network's middle block."""

    def modules(self, unet):
        return {("middle", 0): unet.middle_block[-1]}

    def acts(self, run, sigma):
        return True


@dataclass(frozen=True, eq=False)
class Copied(Middle):
    """The source's feature in place of the target's."""
    inversion: object

    def reads(self, run, sigma):
        return True

    def shown(self, module, x, out):
        return out.flatten(2).transpose(1, 2)

    def edited(self, rows, site, module, x, out):
        return source_of(self, rows, site).feature.transpose(1, 2).reshape_as(out)


@dataclass(frozen=True, eq=False)
class Scaled(Middle):
    factor: float
    roles: tuple = ("target",)

    def edited(self, rows, site, module, x, out):
        return self.factor * out


def x0s(c, model, role, **kwargs):
    return [chunk.x0 for chunk in of(predictions(c, model, **kwargs), role)]


@each_family
def test_a_feature_of_the_source_takes_its_place_in_the_targets_rows(family):
    """At its own latent and prompt the source has this feature already."""
    c = case(family)
    copied = attach(c.model, Copied(c.inversion))
    for a, b in zip(x0s(c, copied, "positive", positive=c.source), x0s(c, c.model, "positive", positive=c.source),
                    strict=True):
        assert_close(a, b)
    for a, b in zip(x0s(c, copied, "positive"), x0s(c, c.model, "positive"), strict=True):
        assert differ(a, b)
    for a, b in zip(x0s(c, copied, "negative"), x0s(c, c.model, "negative"), strict=True):
        assert_close(a, b)


def test_edits_of_one_module_change_what_those_before_made_of_it():
    c = case("sd15")
    twice = attach(attach(c.model, Scaled(0.5)), Scaled(4.0))
    for a, b in zip(x0s(c, twice, "positive"), x0s(c, attach(c.model, Scaled(2.0)), "positive"), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(x0s(c, attach(c.model, Scaled(2.0, ("null",))), "negative"), x0s(c, c.model, "negative"),
                    strict=True):
        assert differ(a, b)
