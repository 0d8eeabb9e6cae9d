"""KV Inversion."""
import torch
from comfy_api.latest import io

from ...editing.inverting import learn
from ...editing.layers import parse_layers, self_attention_layers
from ...host.guiders import prompted
from ...host.unet import require_unet
from ...host.unet_inputs import with_added, with_widths_measured
from ...inversion import kv
from ..widgets import InversionType, learning_inputs


class PalimpsestKVInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestKVInvert", display_name="KV Inversion", category="palimpsest/inversion",
            description="Learns for each step what to add to self-attention's keys and values, so that guidance "
                        "returns the picture's contents (Huang et al. 2023). For prompts that change an action. "
                        "Replay Inversion adds it to the target's.",
            inputs=[
                *learning_inputs(10, "Not the paper's value."),
                io.String.Input("layers", default="", tooltip=(
                    "Self-attention layers, such as 'd2.2-9, m0, u0.4': section (d, m, u), transformer, layer, "
                    "counted from 0. More layers keep more and use more memory. Empty: the last of each resolution "
                    "in u (SD1.x and SD2.x: u2, u5, u8; SDXL: u2.9, u5.1). Not the paper's choice.")),
            ],
            outputs=[InversionType.Output(display_name="inversion")])

    @classmethod
    def execute(cls, model, inversion, negative, cfg, iterations, tolerance, layers) -> io.NodeOutput:
        require_unet(model, "KV Inversion")
        network = model.model.diffusion_model
        chosen = parse_layers(layers, network) if layers.strip() else last_of_each_grid(network)

        def solve(net, x, sigmas, extra_args=None, callback=None, disable=None, *, path, flow):
            def under(options, x, sigma):
                return prompted(net, {**extra_args, "model_options": options}, "source", x, sigma)

            shapes, options = {}, extra_args["model_options"]
            with torch.no_grad():
                under(with_widths_measured(options, shapes), x, sigmas[:1].expand(len(x)))
            named = {"content." + ".".join(map(str, place)): place for place in sorted(chosen)}
            theta, losses = kv.optimise(
                lambda x, sigma: prompted(net, extra_args, "null", x, sigma),
                lambda x, sigma, deltas: under(with_added(options, contents={named[n]: d for n, d in deltas.items()}),
                                               x, sigma),
                path, sigmas, {name: (2, *shapes[place]) for name, place in named.items()}, cfg=cfg,
                iterations=iterations,
                tolerance=tolerance, flow=flow, callback=callback, disable=disable)
            return theta, {"losses": losses}

        return learn("KV Inversion", "KV", model, inversion, solve, {"null": negative}, guidance=cfg)


def last_of_each_grid(network) -> frozenset:
    """The last layer on each grid of the up section."""
    return frozenset({p.resolution: p.address for p in self_attention_layers(network) if p.section == "u"}.values())
