"""Imagic and Imagic Mix."""
from comfy_api.latest import io

from ...concept.dreambooth import AllWeights
from ...concept.imagic import learn, mixed
from ..search import aliases
from .learn import said
from .widgets import (
    batch_input,
    check_one_prompt,
    check_weights,
    learned_output,
    learned_outputs,
    network_input,
    pictures_of,
    rate_input,
    seed_input,
)


class PalimpsestImagic(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestImagic", display_name="Imagic", category="palimpsest/concept",
            description="Learns one picture for one edit (Kawar et al. 2022): a prompt near the target that gives the "
                        "picture, then the network under that prompt. Imagic Mix goes from there to the target.",
            **aliases("single image editing", "edit one photo", "change pose", "non-rigid edit"),
            inputs=[
                io.Model.Input("model", tooltip="The MODEL without Palimpsest editors. It is not changed."),
                io.Latent.Input("latent", tooltip="The picture, from VAE Encode."),
                io.Conditioning.Input("target", tooltip="The prompt of the edited picture: 'a sitting dog'."),
                io.Int.Input("prompt_steps", default=500, min=1, max=100_000, tooltip=(
                    "Updates of the prompt. Paper: 100. diffusers: 500. The miniature: 60.")),
                io.Float.Input("prompt_lr", default=1e-3, min=1e-7, max=1.0, step=1e-7, round=1e-8, tooltip=(
                    "Learning rate of the prompt. Paper and diffusers: 1e-3. The miniature: 2e-2.")),
                io.Int.Input("steps", default=1000, min=1, max=100_000, tooltip=(
                    "Updates of the network after it. Paper: 1500. diffusers: 1000. The miniature: 60.")),
                rate_input(2e-6, "Of the network. diffusers: 2e-6. Paper: 5e-7 on Stable Diffusion. The miniature: "
                                 "2e-4. A TRAINABLE has its own."),
                batch_input(),
                seed_input(),
                network_input(),
            ],
            outputs=learned_outputs())

    @classmethod
    def execute(cls, model, latent, target, prompt_steps, prompt_lr, steps, lr, batch, seed,
                trainable=None) -> io.NodeOutput:
        check_one_prompt("Imagic's target", target)
        check_weights("Imagic", trainable)
        learned = learn(model, pictures_of(model, latent), target, trainable or (AllWeights(lr),), prompt_steps,
                        prompt_lr, steps, batch, seed, said)
        return learned_output(model, learned)


class PalimpsestImagicMix(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestImagicMix", display_name="Imagic Mix", category="palimpsest/concept",
            description="The prompt between a learned one and the target's. Sample it on Imagic's MODEL.",
            **aliases("interpolate prompts", "prompt blend", "Imagic strength"),
            inputs=[
                io.Conditioning.Input("learned_prompt", tooltip="From Imagic: gives the picture."),
                io.Conditioning.Input("target", tooltip="The target, as Imagic had it, or another one."),
                io.Float.Input("share", default=0.7, min=-2.0, max=3.0, step=0.05, tooltip=(
                    "Of the target, η. 0 gives the picture, 1 the target's prompt. Paper: 0.6 to 0.8. diffusers: "
                    "1.2.")),
            ],
            outputs=[io.Conditioning.Output()])

    @classmethod
    def execute(cls, learned_prompt, target, share) -> io.NodeOutput:
        check_one_prompt("Imagic Mix's target", target, learned_prompt)
        return io.NodeOutput(mixed(learned_prompt, target, share))
