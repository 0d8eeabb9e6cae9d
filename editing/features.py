"""Edits of modules of the network other than attention, such as residual branches and group norms.

Their modules are hooked for one forward. Where the source is read, what they show is kept for the target. Where the
host predicts, edits change what they give, in the rows of their prompts. Blocks of transformers are no modules of one
branch; a BranchEdit knows what their last one adds (host/branches.py).
"""
from functools import partial

import torch
from torch import Tensor, nn

from ..host.branches import with_branches
from ..host.options import with_hooks
from .editor import Editor
from .sites import Rows, Site, keep_features


class FeatureEdit(Editor):
    """An edit of some modules, in the rows of its `roles`. `source_of` gives the source's `feature` where it reads."""

    def modules(self, network: nn.Module) -> dict[tuple, nn.Module]:
        """{address: module} of those that it acts on."""
        raise NotImplementedError

    def acts(self, run, sigma) -> bool:
        """Whether it changes the modules at this σ."""
        raise NotImplementedError

    def keeps(self, run, site, sigma):
        return ("feature",) if self.reads(run, sigma) else ()

    def grid(self, out: Tensor) -> tuple:
        """(height, width) of the tokens that `shown` gives, or (1,) where they are of the whole picture."""
        return tuple(out.shape[-2:])

    def shown(self, module: nn.Module, x: Tensor, out: Tensor) -> Tensor:
        """The feature [rows, tokens, channels] that is kept of a module's input and output."""
        raise NotImplementedError

    def edited(self, rows: Rows, site: Site, module: nn.Module, x: Tensor, out: Tensor) -> Tensor:
        """What a module gives for these rows, of its input and of what it gave so far."""
        raise NotImplementedError

    @staticmethod
    def install(model_options, edits, call):
        """model_options whose forwards pass the modules of the edits that act through `_hook`."""
        acting = [e for e in edits if call.reads or e.acts(call.run, call.sigma)]
        if not acting:
            return model_options

        def register(network, options):
            found = {}
            for edit in acting:
                for address, module in edit.modules(network).items():
                    found.setdefault((address, module), []).append(edit)
            for (address, module), mine in found.items():
                yield module.register_forward_hook(partial(_hook, mine, call, address, options))

        return with_hooks(model_options, "palimpsest.features", register)


def _hook(edits, call, address, options, module, inputs, out):
    """A module's output, with the edits in it."""
    x, *_ = inputs
    if call.reads:
        for edit in edits:
            site = Site("feature", address, edit.grid(out))
            keep_features([edit], call, site, options, feature=edit.shown(module, x, out))
        return out
    made = []
    for part, own, given in call.split(options, x, out):
        for edit in (e for e in edits if part.role in e.roles):
            site, rows = Site("feature", address, edit.grid(given)), Rows(call, part.entry, len(own))
            given = edit.edited(rows, site, module, own, given)
        made.append(given)
    return torch.cat(made)


class BranchEdit(Editor):
    """An edit of what the last branch of some blocks adds to the picture's tokens, in the rows of its `roles`.
    `source_of` gives the source's `feature` where it reads.

    layers: the addresses of the blocks.
    """
    layers: frozenset

    def acts(self, run, sigma) -> bool:
        """Whether it changes the branches at this σ."""
        raise NotImplementedError

    def keeps(self, run, site, sigma):
        return ("feature",) if site.address in self.layers and self.reads(run, sigma) else ()

    def added(self, rows: Rows, site: Site, added: Tensor) -> Tensor:
        """What is added for these rows, of what is added so far: [rows, tokens, channels]."""
        raise NotImplementedError

    @staticmethod
    def install(model_options, edits, call):
        """model_options whose forwards pass what the branches add through `_branch`."""
        acting = [e for e in edits if call.reads or e.acts(call.run, call.sigma)]
        found = {at: [e for e in acting if at in e.layers] for edit in acting for at in edit.layers}
        return with_branches(model_options, {at: partial(_branch, mine, call, at) for at, mine in found.items()})


def _branch(edits, call, address, added, grid, options):
    """What a branch adds, with the edits in it; None where none acts."""
    site = Site("feature", address, grid)
    if call.reads:
        return keep_features(edits, call, site, options, feature=added)
    made = []
    for part, own in call.split(options, added):
        for edit in (e for e in edits if part.role in e.roles):
            own = edit.added(Rows(call, part.entry, len(own)), site, own)
        made.append(own)
    return torch.cat(made)
