"""Forgedit, Forgedit Prompt and Forget."""
from comfy_api.latest import io

from ...concept.dreambooth import AllWeights
from ...concept.forgedit import HALVES, KEPT, forgotten, learn, projected, subtracted
from ..search import aliases
from .learn import said
from .widgets import (
    ConceptType,
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


class PalimpsestForgedit(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestForgedit", display_name="Forgedit", category="palimpsest/concept",
            description="Learns one picture quickly: its encoded caption and the network together (Zhang et al. 2023). "
                        "Forgedit Prompt makes the edit's prompt, Forget takes back what was learned by heart.",
            **aliases("single image editing", "edit one photo", "fast fine-tuning", "learning and forgetting"),
            inputs=[
                io.Model.Input("model", tooltip="The MODEL without Palimpsest editors. It is not changed."),
                io.Latent.Input("latent", tooltip="The picture, from VAE Encode."),
                io.Conditioning.Input("source", tooltip="Its caption. The authors: BLIP's."),
                io.Int.Input("steps", default=40, min=1, max=100_000, tooltip=(
                    "Number of updates. The authors: 400 noises, 10 an update. The miniature: 60.")),
                io.Float.Input("prompt_lr", default=1e-3, min=1e-7, max=1.0, step=1e-7, round=1e-8, tooltip=(
                    "Learning rate of the caption. The authors: 1e-3. The miniature: 1e-2.")),
                rate_input(6e-5, "Of the network. The authors: 6e-5. The miniature: 2e-4. A TRAINABLE has its own."),
                batch_input(10, "The authors: 10."),
                seed_input(),
                network_input(),
            ],
            outputs=learned_outputs())

    @classmethod
    def execute(cls, model, latent, source, steps, prompt_lr, lr, batch, seed, trainable=None) -> io.NodeOutput:
        check_one_prompt("Forgedit's source", source)
        check_weights("Forgedit", trainable)
        learned = learn(model, pictures_of(model, latent), source, trainable or (AllWeights(lr),), prompt_lr, steps,
                        batch, seed, said)
        return learned_output(model, learned)


class PalimpsestForgeditPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestForgeditPrompt", display_name="Forgedit Prompt", category="palimpsest/concept",
            description="The edit's prompt, made of a learned one and the target's.",
            **aliases("vector projection", "vector subtraction", "interpolate prompts"),
            inputs=[
                io.Conditioning.Input("learned_prompt", tooltip="From Forgedit: gives the picture."),
                io.Conditioning.Input("target", tooltip="The prompt of the edited picture."),
                io.Combo.Input("by", options=["subtraction", "projection"], default="subtraction", tooltip=(
                    "subtraction: from the learned prompt to the target's. projection: identity and edit set apart.")),
                io.Float.Input("edit", default=0.8, min=-2.0, max=5.0, step=0.05, tooltip=(
                    "How strong the edit is: γ of subtraction (the authors: 0.5 to 1.6), β of projection (1 to 1.6).")),
                io.Float.Input("identity", default=0.9, min=-2.0, max=5.0, step=0.05, tooltip=(
                    "How much of the picture is kept: α of projection. The authors: 0.8 to 1.1. Not for subtraction.")),
            ],
            outputs=[io.Conditioning.Output()])

    @classmethod
    def execute(cls, learned_prompt, target, by, edit, identity) -> io.NodeOutput:
        check_one_prompt("Forgedit Prompt's target", target, learned_prompt)
        if by == "subtraction":
            return io.NodeOutput(subtracted(learned_prompt, target, edit))
        return io.NodeOutput(projected(learned_prompt, target, identity, edit))


class PalimpsestForget(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestForget", display_name="Forget (Forgedit)", category="palimpsest/concept",
            description="A concept without what a half of the U-Net learned, where a picture was learned by heart "
                        "(Zhang et al. 2023). Connect Apply Concept.",
            **aliases("overfitting", "LoRA blocks", "block weights", "drop layers"),
            inputs=[
                ConceptType.Input("concept"),
                io.Combo.Input("half", options=list(HALVES), default="encoder", tooltip=(
                    "encoder: structure and place are forgotten. decoder: looks are. The authors' example: encoder.")),
                io.Combo.Input("kept", options=list(KEPT), default="keys and values", tooltip=(
                    "What stays learned in that half. The authors: keys and values, or attention.")),
            ],
            outputs=[ConceptType.Output(display_name="concept")])

    @classmethod
    def execute(cls, concept, half, kept) -> io.NodeOutput:
        return io.NodeOutput(forgotten(concept, half, kept))
