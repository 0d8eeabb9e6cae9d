"""Semantic guidance: concepts added to or removed from what is sampled, each where it belongs."""
import torch
from comfy_api.latest import io, ui

from ..attention.control import require_unet
from ..attention.store import resolution
from ..blending.local_blend import covered, picture_mask
from ..guidance.ledits import LEDITS, Grounded
from ..guidance.sega import SEGA, Concept, held, read_regions
from ..host.sampling import check_family
from ..host.session import attach
from ..host.tokens import encode, tokenize_rows
from ..inversion import ddpm, ledits
from .drawing import heat_rows, sheet
from .exact import check_guidance, check_stochastic, guidance, last_residual, stacked, together
from .runner import InversionType, inputs, invert, outputs, own_sigmas, prompt_alone


def concept_inputs(*concept, scale, warmup, threshold):
    return [
        io.Model.Input("model"),
        *concept,
        io.Combo.Input("direction", options=["add", "remove"], default="add", tooltip="Towards the concept or away from it."),
        io.Float.Input("scale", default=scale, min=0.0, max=100.0, step=0.1,
                       tooltip=f"Strength of the concept's guidance. Paper: {scale:g}, 3 to 15."),
        io.Float.Input("warmup", default=warmup, min=0.0, max=1.0, step=0.01,
                       tooltip="Share of the schedule before the concept acts; later keeps more of the composition. Paper: "
                               f"{warmup:g}."),
        io.Float.Input("cooldown", default=1.0, min=0.0, max=1.0, step=0.01,
                       tooltip="Share from which the concept acts no more. Paper: 1, which is never."),
        io.Float.Input("threshold", default=threshold, min=0.0, max=0.999, step=0.005,
                       tooltip="Share of the latent that the concept leaves alone, its least concerned places. Paper: "
                               f"{threshold:g}; 0.75 for whole scenes, 0.99 for small things."),
    ]


def check_concept(name, scale, warmup, cooldown):
    if not scale:
        raise ValueError(f"{name} at scale 0 would change nothing: raise it (paper: 5), or remove the node.")
    if warmup >= cooldown:
        raise ValueError(f"{name} warms up until {warmup:g} and cools down from {cooldown:g}, so that no step is left: lower "
                         "warmup or raise cooldown (paper: 0.2 and 1).")


class PalimpsestSEGAGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestSEGAGuidance", display_name="SEGA Guidance", category="palimpsest/guidance",
            description="Adds a concept to what is sampled, or removes it, where the model sees it (Brack et al. 2023). On any "
                        "MODEL, with an inversion or without; chain one node a concept.",
            inputs=[
                *concept_inputs(io.Conditioning.Input("concept", tooltip="What to add or remove, encoded by itself: \"glasses\", "
                                                      "\"a red hat\"."), scale=5.0, warmup=0.2, threshold=0.9),
                io.Float.Input("weight", default=1.0, min=0.0, max=10.0, step=0.05,
                               tooltip="The concept's share beside the other concepts', in their sum and momentum. Paper: 1."),
                io.Float.Input("momentum", default=0.1, min=0.0, max=0.99, step=0.01,
                               tooltip="How much of the concepts' past guidance is added to it; one value for all concepts. "
                                       "Paper: 0.1, 0.3 for faces."),
                io.Float.Input("beta", default=0.4, min=0.0, max=0.99, step=0.01,
                               tooltip="How slowly that past fades; one value for all concepts. Paper: 0.4, 0.6 for faces."),
            ],
            outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, concept, direction, scale, warmup, cooldown, threshold, weight, momentum, beta) -> io.NodeOutput:
        check_concept("SEGA Guidance", scale * weight, warmup, cooldown)
        prompt_alone("SEGA Guidance's concept", concept)
        before = held(model, SEGA)
        if before and (before.momentum, before.beta) != (momentum, beta):
            raise ValueError(f"The concepts on a MODEL share one momentum: the SEGA Guidance before has {before.momentum:g} with "
                             f"beta {before.beta:g}, this one {momentum:g} with {beta:g}. Give both the same.")
        added = Concept(concept, -scale if direction == "remove" else scale, warmup, cooldown, threshold, weight)
        editor = SEGA((*(before.concepts if before else ()), added), momentum, beta)
        return io.NodeOutput(attach(model, editor, replacing=before))


class PalimpsestSEGARegions(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestSEGARegions", display_name="SEGA Regions", category="palimpsest/guidance",
            description="Where each concept on the MODEL acts in an inverted picture: one mask each, in the chain's order.",
            inputs=[
                io.Model.Input("model", tooltip="The MODEL from SEGA Guidance or LEDITS++. Its other editors take no part."),
                InversionType.Input("inversion"),
                io.Conditioning.Input("negative", tooltip="The negative that you sample with."),
                io.Image.Input("image", tooltip="The picture that was inverted."),
            ],
            outputs=[io.Mask.Output()],
            is_output_node=True)

    @classmethod
    def execute(cls, model, inversion, negative, image) -> io.NodeOutput:
        check_family(model, inversion)
        editor = held(model, SEGA) or held(model, LEDITS)
        if editor is None:
            raise ValueError("SEGA Regions shows the concepts on its MODEL, and this MODEL has none: connect SEGA Guidance's.")
        window = covered(image.shape[1:3], tuple(inversion.shape[-2:]))
        regions = read_regions(model, editor, inversion, negative)
        pictures = [heat_rows(image[i % len(image)][window], {f"concept {n + 1}": r for n, r in enumerate(regions[:, i])})
                    for i in range(inversion.batch)]
        size = [s.stop - s.start for s in window]
        mask = torch.nn.functional.interpolate(regions.flatten(0, 1)[:, None], size, mode="nearest")[:, 0]
        return io.NodeOutput(picture_mask(mask, image.shape[1:3]), ui=ui.PreviewImage(sheet(sum(pictures, [])), cls=cls))


class PalimpsestLEDITSInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestLEDITSInvert", display_name="LEDITS++ Invert", category="palimpsest/inversion",
            description="Edit-friendly noise maps of a solver of few steps, DPM-Solver++ of second order (Brack et al. 2024). "
                        "Replay returns the picture (see last_residual); LEDITS++ on its MODEL edits. The paper's skip is "
                        "Replay's start. Eps and v models.",
            inputs=[
                *inputs(30),
                io.Int.Input("seed", default=0, min=0, max=0xffffffffffffffff, control_after_generate=True,
                             tooltip="Of the noise the levels are drawn with; the picture comes back with any."),
                *guidance("Guidance of the inversion. The paper takes an empty source prompt at 1, or a source prompt at 3.5; "
                          "replay at the same value."), own_sigmas(), last_residual()],
            outputs=outputs(own_reverse=True))

    @classmethod
    def execute(cls, model, source, latent, steps, scheduler, seed, cfg, negative=None, sigmas=None,
                last_residual="auto") -> io.NodeOutput:
        check_stochastic("LEDITS++ Invert", model)
        check_guidance("LEDITS++ Invert", cfg, negative)
        levels = together(model, latent, source) if cfg == 1 else 1  # guidance magnifies the rounding of a shared forward

        def solve(model, x, sigmas, *, flow, data, **kwargs):
            path = ddpm.independent_path(x, sigmas, seed)
            path, maps, denoised = ledits.noise_maps(model, path, sigmas, together=levels, **kwargs)
            return path, {"z": stacked(ddpm.last_residual(maps, sigmas, last_residual)), "denoised": stacked(denoised)}
        return invert("LEDITS++ Invert", "LEDITS++", model, source, latent, steps, scheduler, sigmas, solve, cfg, negative,
                      "independent", seed=seed, guidance=cfg)


class PalimpsestLEDITS(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestLEDITS", display_name="LEDITS++", category="palimpsest/guidance",
            description="Adds a concept to a picture, or removes it, where its words' attention and its guidance agree (Brack et "
                        "al. 2024). Made for LEDITS++ Invert; sample what was inverted, at its CFG. Chain one node a concept.",
            inputs=concept_inputs(
                io.Clip.Input("clip"),
                io.String.Input("concept", default="", tooltip="What to add or remove: \"glasses\", \"a red hat\"."),
                scale=5.0, warmup=0.0, threshold=0.9),
            outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, clip, concept, direction, scale, warmup, cooldown, threshold) -> io.NodeOutput:
        check_concept("LEDITS++", scale, warmup, cooldown)
        require_unet(model, "LEDITS++")
        tokens = tokenize_rows(clip, [concept])
        if not tokens[0].words:
            raise ValueError("LEDITS++ looks for its concept's words in the picture, and the concept is empty: write what to add "
                             "or remove.")
        before = held(model, LEDITS)
        added = Grounded(encode(clip, tokens), -scale if direction == "remove" else scale, warmup, cooldown, threshold,
                         tokens=tokens)
        editor = LEDITS((*(before.concepts if before else ()), added), share=resolution(model, 0.25))
        return io.NodeOutput(attach(model, editor, replacing=before))


NODES = [PalimpsestSEGAGuidance, PalimpsestSEGARegions, PalimpsestLEDITSInvert, PalimpsestLEDITS]
