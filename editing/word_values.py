"""What attention takes from the words of another prompt.

In a U-Net it is made of the prompt alone. Where attention joins words and picture, words change from block to block
with the picture that they are seen with, so it is read in a forward of that prompt on the same latent.
"""
from dataclasses import dataclass, field

from torch import Tensor

from ..host.guiders import predictions
from ..host.network import text_runs
from ..host.options import with_transformer
from .call import Call
from .sites import AttentionObserver
from .word_maps import text_columns


@dataclass(frozen=True, eq=False)
class _Values(AttentionObserver):
    """Notes what the picture's tokens can take from the words at each cross-attention: {address: v of each of the
    text's runs}."""
    found: dict = field(default_factory=dict)
    roles = "other",

    def acts(self, run, site, sigma):
        return site.kind == "cross"

    def observe(self, rows, site, q, k, v, attention):
        runs = text_runs(rows.call.network, text_columns(rows.entry), v.shape[1])
        self.found[site.address] = [v[:, key:key + count] for key, _, count in runs]


def word_values(run, entries: list, x: Tensor, sigma: float) -> dict[tuple, list[Tensor]]:
    """{address of a cross-attention: v of each of the text's runs} of x at σ under processed cond entries of an
    editor's own. The run's editors take no part."""
    options, noted = with_transformer(run.guider.model_options, sample_sigmas=run.sigmas), _Values()
    predictions(run.guider, [entries], x, sigma, Call(run, [entries], sigma, x).install(options, [noted]))
    return noted.found
