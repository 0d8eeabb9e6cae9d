"""Replay Inversion."""
import comfy.k_diffusion.sampling
from comfy_api.latest import io

from ...editing.replay import Replayed
from ...editing.run import attach
from ...host.sampling import Solver, check_family, split_at
from ...inversion.method import method_of
from ..widgets import InversionType


class PalimpsestReplay(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestReplay", display_name="Replay Inversion", category="palimpsest/inversion",
            description="Samples from an inversion. The MODEL applies what the inversion learned. The SAMPLER adds "
                        "no noise. Connect all four outputs to SamplerCustom or SamplerCustomAdvanced.",
            inputs=[
                io.Model.Input("model", tooltip="The MODEL of the inversion, with or without editors."),
                InversionType.Input("inversion"),
                io.Float.Input("start", default=0.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Where sampling begins, as ComfyUI's percent of the full schedule. 0 is the "
                                       "noisiest level (papers). Higher keeps more of the picture."),
                io.Sampler.Input("sampler", optional=True,
                                 tooltip="A solver from KSamplerSelect or a Sampler… node. Empty: the method's own "
                                         "(euler for DDIM)."),
            ],
            outputs=[
                io.Model.Output(display_name="model"), io.Sampler.Output(display_name="sampler"),
                io.Sigmas.Output(display_name="sigmas"),
                io.Latent.Output(display_name="latent", tooltip="The source's latent where sampling starts."),
            ])

    @classmethod
    def execute(cls, model, inversion, start, sampler=None) -> io.NodeOutput:
        check_family(model, inversion)
        method = method_of(inversion)
        if method.reverse and sampler is not None:
            raise ValueError(f"{inversion.method} recorded {', '.join(inversion.theta)} for its own steps, which the "
                             "connected SAMPLER does not take: leave the sampler input empty.")
        first = split_at(model, inversion.sigmas, start)
        sigmas = inversion.sigmas[first:]
        if len(sigmas) < 2:
            raise ValueError(f"Starting at {start:.0%} leaves no step of the inversion's {inversion.schedule}: choose "
                             "an earlier start (0 is the noisiest level).")
        own = method.reverse(inversion) if method.reverse else comfy.k_diffusion.sampling.sample_euler
        solver = Solver(own, inversion=inversion, coupled=method.coupled) if sampler is None else Solver.of(sampler)
        latent = model.get_model_object("latent_format").process_out(inversion.at(float(sigmas[0])))
        return io.NodeOutput(attach(model, Replayed(inversion, method.guided)), solver, sigmas, {"samples": latent})
