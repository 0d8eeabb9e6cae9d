"""Direct Invert."""
import dataclasses

from comfy_api.latest import io

from ...editing.inverting import invert, recorded_theta
from ...inversion import ddim, direct
from ..checks import check_guidance
from ..widgets import guidance_inputs, inversion_inputs, inversion_outputs, sigmas_input


class PalimpsestDirectInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestDirectInvert", display_name="Direct Invert (PnP Inversion)",
            category="palimpsest/inversion",
            description="DDIM inversion that also records an offset for each step. With it, sampling at this CFG "
                        "returns the picture (Ju et al. 2024). The offsets act in a replay of the source prompt "
                        "with the same CFG and negative prompt. With an editor it equals DDIM Invert, whose source "
                        "branch never drifts.",
            inputs=[
                *inversion_inputs(),
                io.Float.Input("scale", default=1.0, min=0.0, max=1.0, step=0.05,
                               tooltip="Share of each step's error that its offset corrects. 1 returns the picture "
                                       "(paper). 0 is plain DDIM."),
                *guidance_inputs("The CFG you will replay at, for the offsets. The inversion itself runs at 1. The "
                                 "paper edits at 7.5."), sigmas_input()],
            outputs=inversion_outputs())

    @classmethod
    def execute(cls, model, source, latent, steps, scheduler, scale, cfg, negative=None, sigmas=None) -> io.NodeOutput:
        check_guidance("Direct Invert", cfg, negative)

        def follow(*args, **kwargs):
            return ddim.invert(*args, **kwargs), {}

        def record(model, x, *args, flow, data, **kwargs):
            path = [z.to(x) for z in inversion.latents]
            return path, {"offset": recorded_theta(direct.record(model, path, *args, scale=scale, **kwargs))}

        common = "Direct Invert", "Direct", model, source, latent, steps, scheduler, sigmas
        inversion = invert(*common, follow).result[0]
        found, noise, sigmas = invert(*common, record, cfg, negative, scale=scale, guidance=cfg).result
        spent = {k: inversion.provenance[k] + found.provenance[k] for k in ("evaluations", "seconds")}
        return io.NodeOutput(dataclasses.replace(found, provenance={**found.provenance, **spent}), noise, sigmas)
