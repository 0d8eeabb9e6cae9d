"""Mask nodes: where an edit is to happen, from what the MODEL predicts for two prompts."""
from comfy_api.latest import io, ui

from ...blending.diffedit import EVEN, RULES, difference_map, spread
from ...blending.diffedit import mask as binary_mask
from ...editing.editor import require_plain
from ...editing.inverting import source_latent
from ...host.canvas import log, note
from ..search import aliases


class PalimpsestDiffEditMask(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestDiffEditMask", display_name="DiffEdit Mask", category="palimpsest/blending",
            description="Makes a mask from two prompts alone. It marks where their noise predictions on the noised "
                        "picture differ (DiffEdit, Couairon et al. 2023). Needs no inversion and no words.",
            **aliases("diffedit", "mask from two prompts", "auto mask", "automatic mask", "mask from text",
                      "mask of what changes", "difference mask"),
            inputs=[
                io.Model.Input("model", tooltip="The MODEL without Palimpsest editors. LoRA is allowed."),
                io.Conditioning.Input("source", tooltip="The prompt that describes the picture as it is. An empty one "
                                                        "works worse."),
                io.Conditioning.Input("target", tooltip="The prompt that describes the wanted picture."),
                io.Latent.Input("latent", tooltip="The picture, from VAE Encode. A noise mask on it is ignored."),
                io.Int.Input("maps", default=10, min=1, max=256,
                             tooltip="Number of noises to average, two model evaluations each. More is smoother. "
                                     "Paper: 10."),
                io.Float.Input("strength", default=0.5, min=0.01, max=1.0, step=0.01,
                               tooltip="How far the picture is noised, as a share of the schedule. Paper: 0.5."),
                io.Float.Input("threshold", default=0.5, min=0.0, max=1.0, step=0.01,
                               tooltip="Cells whose scaled difference exceeds this may change. Higher is tighter. "
                                       "Paper: 0.5."),
                io.Float.Input("clamp", default=3.0, min=0.1, max=100.0, step=0.1,
                               tooltip="Differences are clamped at this many times their mean, then scaled to 1. "
                                       "Higher is tighter. Diffusers: 3."),
                io.Int.Input("seed", default=0, min=0, max=0xffffffffffffffff, control_after_generate=True,
                             tooltip="Seed of the noises."),
                io.Combo.Input("rule", options=list(RULES), default="paper", optional=True, tooltip=(
                    "paper: threshold and clamp always, so at most two thirds of the picture can pass. auto: where the "
                    "difference is nearly even, as for a new style or background, nearly all of the picture passes. "
                    "Else as the paper.")),
            ],
            outputs=[
                io.Mask.Output(tooltip="At the latent's size. 1 where the picture may change."),
                io.String.Output(display_name="settings", tooltip=(
                    "The rule in words. With auto: what it found, and what it chose. Edit Report writes it below its "
                    "pictures."))],
            is_output_node=True)

    @classmethod
    def execute(cls, model, source, target, latent, maps, strength, threshold, clamp, seed,
                rule="paper") -> io.NodeOutput:
        require_plain(model, "DiffEdit Mask")
        if _equal(source, target):
            raise ValueError("Source and target are the same prompt, so their predictions do not differ anywhere: "
                             "connect the picture's prompt to source, and the wanted picture's to target.")
        found = difference_map(model, source, target, source_latent(model, latent), maps, strength, seed)
        mask = binary_mask(found, threshold, clamp, rule)
        said = [f"mask: threshold {threshold:g}, clamp {clamp:g}"]
        if rule == "auto":
            places = [("the whole picture" if s > EVEN else f"a part of the picture, threshold {threshold:g}", s)
                      for s in spread(found).tolist()]
            said = [f"auto: the two prompts differ on {place} (spread {s:.2f}, limit {EVEN:g})" for place, s in places]
            for line in said:
                note("%s", line)
        empty = [i for i, one in enumerate(mask, 1) if not one.any()]
        if len(empty) == len(mask):
            raise ValueError(f"The mask at threshold {threshold:g} and clamp {clamp:g} is empty: lower one of them "
                             "(paper: 0.5 and 3).")
        if empty:
            said.append(f"the mask of picture {', '.join(map(str, empty))} of {len(mask)} is empty, so that nothing of "
                        "it changes: lower threshold or clamp")
            log.warning("DiffEdit Mask: %s.", said[-1])
        return io.NodeOutput(mask, "\n".join(said), ui=ui.PreviewMask(mask, cls=cls))


def _equal(a, b):
    """Whether two CONDITIONINGs hold the same embeddings under the same conditions, whatever ControlNets they have."""
    return len(a) == len(b) and all(x.equal(y) and not {k for k in p.keys() ^ q.keys() if "control" not in k}
                                    for (x, p), (y, q) in zip(a, b))
