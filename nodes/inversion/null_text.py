"""Null-Text Optimize: the unconditional embedding of every step, learned along an inversion."""
from comfy_api.latest import io

from ...editing.inverting import learn, tokens_for
from ...host.guiders import prompted
from ...inversion import null_text
from ...inversion.trajectory import Theta
from ..widgets import InversionType

STARTS = ("source prompt", "negative")


class PalimpsestNullTextOptimize(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestNullTextOptimize", display_name="Null-Text Optimize", category="palimpsest/inversion",
            description="Optimises an unconditional embedding for each step, so that sampling with guidance follows "
                        "the inversion (Mokady et al. 2023). At this CFG the source returns, and edits stay close "
                        "to it. Replay Inversion uses the embeddings as the negative prompt.",
            inputs=[
                io.Model.Input("model", tooltip="The MODEL of the inversion, without editors."),
                InversionType.Input("inversion", tooltip="The trajectory to follow, from DDIM Invert (paper), "
                                                         "Fixed-Point Invert or ReNoise Invert."),
                io.Float.Input("cfg", default=7.5, min=1.1, max=100.0, step=0.1,
                               tooltip="The CFG you will sample at. Paper: 7.5."),
                io.Int.Input("iterations", default=10, min=1, max=500,
                             tooltip="Maximum updates per step, three model passes each. Paper: 10."),
                io.Float.Input("tolerance", default=1e-5, min=0.0, max=1.0, step=1e-6, round=1e-7,
                               tooltip="A step ends when its mean squared error to the inversion is below this. The "
                                       "limit grows by twice this every fiftieth of the schedule. Higher is faster. "
                                       "Paper: 1e-5."),
                io.Combo.Input("start", options=list(STARTS), default=STARTS[0],
                               tooltip="The embedding the first step starts from. source prompt is already close: "
                                       "it reconstructs better in a fraction of the passes. negative: the connected "
                                       "prompt (paper)."),
                io.Conditioning.Input("negative", optional=True, tooltip=(
                    "Only if start is negative. Paper: the empty prompt.")),
            ],
            outputs=[InversionType.Output(display_name="inversion")])

    @classmethod
    def execute(cls, model, inversion, cfg, iterations, tolerance, start, negative=None) -> io.NodeOutput:
        if (start == "negative") != (negative is not None):
            raise ValueError(f"Null-Text Optimize starts from the {start} and has {'no' if negative is None else 'a'} "
                             "negative: connect the empty prompt and set start to negative, or neither.")
        chosen = inversion.conditioning if negative is None else negative
        embedding, extras = tokens_for(chosen, inversion), chosen[0][1]
        source = inversion.conditioning[0][0]
        if embedding.shape[-1] != source.shape[-1]:
            raise ValueError(f"The negative's embedding is {embedding.shape[-1]} wide, the source's "
                             f"{source.shape[-1]}: encode both with the same CLIP.")
        pooled = extras.get("pooled_output")

        def solve(net, x, sigmas, extra_args=None, callback=None, disable=None, *, path, flow):
            theta, history = null_text.optimise(
                lambda x, sigma: prompted(net, extra_args, "source", x, sigma),
                lambda x, sigma, e: prompted(net, extra_args, "start", x, sigma, e),
                path, sigmas, embedding.clone().to(x), cfg=cfg, iterations=iterations, tolerance=tolerance, flow=flow,
                callback=callback, disable=disable)
            kept = {} if pooled is None else {"uncond_pooled": Theta(pooled.float().cpu()[None].clone(), "run",
                                                                     "prediction")}
            return {"uncond": theta, **kept}, {"losses": history}

        return learn("Null-Text Optimize", "Null-Text", model, inversion, solve, {"start": chosen}, guidance=cfg,
                     start=start)
