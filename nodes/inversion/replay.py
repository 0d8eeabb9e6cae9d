"""Replay Inversion."""
from comfy_api.latest import io

from ...editing.replay import replay
from ..search import aliases
from ..widgets import InversionType


class PalimpsestReplay(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestReplay", display_name="Replay Inversion", category="palimpsest/inversion",
            description="Samples from an inversion. The MODEL applies what the inversion learned. The SAMPLER adds "
                        "no noise. Connect all four outputs to SamplerCustom or SamplerCustomAdvanced.",
            **aliases("sample from inversion", "resampler", "sample from noise", "reconstruct image",
                      "continue inversion", "edit strength", "denoise strength"),
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
        return io.NodeOutput(*replay(model, inversion, start, sampler))
