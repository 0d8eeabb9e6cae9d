"""Edits of modules of the network other than attention, such as residual branches and group norms.

Their modules are hooked for one forward. Where the source is read, what they show is kept for the target. Where the
host predicts, edits change what they give, in the rows of their prompts.
"""
from functools import partial

import torch
from torch import Tensor

from ..host.options import with_hooks
from .editor import Editor
from .sites import Rows, Site


class FeatureEdit(Editor):
    """An edit of some modules, in the rows of its `roles`. Where it reads, `source_of` has the source's `feature`."""

    def modules(self, unet) -> dict:
        """{address: module} of those that it acts on; an address is a tuple."""
        raise NotImplementedError

    def acts(self, run, sigma) -> bool:
        raise NotImplementedError

    def keeps(self, run, site, sigma) -> str:
        return "f" if self.reads(run, sigma) else ""

    def grid(self, out: Tensor) -> tuple:
        """(height, width) of the tokens that `shown` gives, or (1,) where they are of the whole picture."""
        return tuple(out.shape[-2:])

    def shown(self, module, x: Tensor, out: Tensor) -> Tensor:
        """The feature [rows, tokens, channels] that is kept of a module's input and output."""
        raise NotImplementedError

    def edited(self, rows: Rows, site: Site, module, x: Tensor, out: Tensor) -> Tensor:
        """What a module gives for these rows, of its input and of what it gave so far."""
        raise NotImplementedError

    @staticmethod
    def install(model_options, edits, call):
        """model_options whose forwards pass the modules of the edits that act through `_at`."""
        acting = [e for e in edits if call.mode == "read" or e.acts(call.run, call.sigma)]
        if not acting:
            return model_options

        def register(unet, options):
            found = {}
            for edit in acting:
                for address, module in edit.modules(unet).items():
                    found.setdefault((address, module), []).append(edit)
            for (address, module), mine in found.items():
                yield module.register_forward_hook(partial(_at, mine, call, address, options))

        return with_hooks(model_options, "palimpsest.features", register)


def _at(edits, call, address, options, module, inputs, out):
    """A module's output, with the edits in it."""
    parts = call.parts(options)
    out = list(out.chunk(len(parts)))
    for i, ((index, _, role, entry), x) in enumerate(zip(parts, inputs[0].chunk(len(parts)))):
        for edit in edits if call.mode == "write" else call.readers(index, edits):
            site = Site("feature", address, edit.grid(out[i]))
            if call.mode == "write" and role in edit.roles:
                out[i] = edit.edited(Rows(call, entry, len(x)), site, module, x, out[i])
            elif call.mode == "read" and any(edit.reads(call.run, level) for level in call.levels):
                kept = {"f": edit.shown(module, x, out[i])}
                call.run.reference.keep(edit.inversion, call, index, site, entry.get("area"), kept)
    return torch.cat(out)
