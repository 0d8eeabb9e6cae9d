"""Zero-shot Image-to-Image Translation (pix2pix-zero). Parmar, Singh, Zhang, Li, Lu, Zhu, SIGGRAPH 2023.
arXiv:2302.03027

An edit is a direction Δc_edit in the space of text embeddings: the mean of many sentences about what is wanted less the
mean of many about what is there. It is added to the source's embedding c. Cross-attention guidance holds the picture's
structure: at each step the latent x_t is moved so that the maps M_edit of the edited prompt come nearer to the source's
M_ref at this step,
    x_t <- x_t - λ_xa·∇_{x_t} Σ_sites ‖M_edit - M_ref‖²,
and the step is taken from there with c_edit = c + Δc_edit. ‖·‖² sums over places and tokens and is a mean over heads.

Differs from the paper: λ_xa is halved, as in the authors' code (diffusers' StableDiffusionPix2PixZeroPipeline), whose
mean is over the rows of the null prompt too. That code moves the null prompt's row by that row's own maps and steps
from that row, so that the move made for the edited prompt is only seen by its prediction. Here both predictions and the
step are those of the latent moved for the edited prompt, as in the equation. M_ref comes from the inversion's own
latents, not from sampling once more. In joint attention of words and picture the maps are over the words alone, at the
layers where words are read; ours, untuned.
Checked against: diffusers 0.42.1, whole runs with both rows moved alike.
"""
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..editing.attention_loss import loss_gradient, text_maps
from ..editing.latent_move import Mover
from ..editing.sites import AttentionEdit, source_of
from ..editing.word_maps import source_columns, text_columns
from ..inversion.trajectory import Inversion


def edit_direction(source: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
    """Δc_edit [tokens, C], from the embeddings [tokens, C] of sentences."""
    return torch.stack(list(target)).mean(0) - torch.stack(list(source)).mean(0)


@dataclass(frozen=True, eq=False)
class CrossAttentionGuidance(Mover, AttentionEdit):
    """Moves the latent so that the target's words attend where the source's did.

    amount: λ_xa.
    start, end: the percents of the schedule between which it acts.
    layers: the addresses of the cross-attentions whose maps are compared, or None for all.
    """
    inversion: Inversion
    amount: float = 0.1
    start: float = 0.0
    end: float = 1.0
    layers: frozenset | None = None
    follows, name = True, "Cross-Attention Guidance"

    def begin(self, run):
        run.warn_if_idle(self.name, lambda sigma: self.reads(run, sigma))

    def reads(self, run, sigma):
        return run.within(sigma, self.start, self.end)

    def acts(self, run, site, sigma):
        return False

    def keeps(self, run, site, sigma):
        return "qk" if site.kind == "cross" and self._at(site) and self.reads(run, sigma) else ""

    def _at(self, site):
        return self.layers is None or site.address in self.layers

    def move(self, run, x, sigma):
        if not self.reads(run, sigma):
            return x
        run.read(x, sigma)
        _, gradient = loss_gradient(run, x, sigma, self._at, *self._distance())
        return x - self.amount / 2 * gradient  # the step along λ_xa·∇

    def _distance(self):
        """(record, loss) of Σ_sites ‖M_edit - M_ref‖², the mean of several target entries; of texts of unequal length,
        the tokens that the shorter has."""
        terms = {}

        def record(rows, site, q, k):
            source, network = source_of(self, rows, site), rows.call.network
            edited = text_maps(q, k, site, network, text_columns(rows.entry))  # M_edit
            reference = text_maps(source.q, source.k, site, network, source_columns(self.inversion))  # M_ref
            tokens = min(edited.shape[-1], reference.shape[-1])
            found = (edited[..., :tokens] - reference[..., :tokens]).square().sum((2, 3)).mean(1)
            terms.setdefault(rows.entry["uuid"], []).append(found)

        return record, lambda: sum(map(sum, terms.values())) / len(terms) if terms else None
