"""DreamMatcher."""
from comfy_api.latest import io

from ...attention.dreammatcher import NAME, AppearanceMatching, Descriptors
from ...editing.layers import decoder, roles
from ...editing.run import attach
from ...editing.word_maps import WordMaps, nearest_resolution
from ...host.network import require_unet
from ...host.tokens import parse_words
from ..checks import check_span, check_trajectory
from ..search import aliases
from ..widgets import InversionType, layers_input, layers_of, null_input, share_input


class PalimpsestDreamMatcher(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestDreamMatcher", display_name=NAME, category="palimpsest/attention",
            description="Gives a learned subject the looks of a picture of it, part to matching part, in any new "
                        "picture (Nam et al. 2024). Learns nothing. For a MODEL with a LoRA or a word of the subject.",
            **aliases("dream matcher", "subject consistency", "same subject", "fix lora details",
                      "improve dreambooth", "improve textual inversion", "subject fidelity", "reference subject",
                      "appearance matching"),
            inputs=[
                io.Model.Input("model", tooltip="The MODEL that learned the subject."),
                InversionType.Input("inversion", tooltip="A picture that shows the subject, inverted with its prompt."),
                io.String.Input("words", default="", tooltip=(
                    "Words of the sampled prompt that name the subject, separated by commas. Only where they attend is "
                    "anything changed.")),
                share_input("start", 0.08, "Share of the schedule where it begins. Before, the new picture is laid "
                                           "out. Paper: step 4 of 50."),
                share_input("end", 1.0, "Share where it ends. Paper: 1."),
                layers_input("up grids of at least half the latent's side (SD1.x and SD2.x: u3-8, the paper's layers "
                             "10 to 15 of 16; SDXL: u3-5)"),
                io.Float.Input("cycle", default=0.4, min=0.01, max=10.0, step=0.01, tooltip=(
                    "How far from a place the match of its match may be, as a share of the grid's side times the "
                    "share of the picture that the words cover. Higher brings more of the reference. Paper: 0.4.")),
                io.Float.Input("threshold", default=0.05, min=0.0, max=1.0, step=0.01, tooltip=(
                    "Attention above this share of its range counts as the words. Higher is tighter. Paper: 0.05. 0: "
                    "soft, as the authors' program computes it.")),
                null_input(),
            ],
            outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, inversion, words, start, end, layers, cycle, threshold, null_too) -> io.NodeOutput:
        require_unet(model, NAME)
        check_trajectory(model, inversion, NAME)
        check_span(NAME, start, end, "0.08 and 1")
        if not words.strip():
            raise ValueError(f"{NAME} changes a subject and nothing around it, but no word names one: write the "
                             "subject's words of the sampled prompt, as in 'sks, dog'.")
        chosen, rows = layers_of(layers, model, lambda unet: decoder(unet, 0.5)), roles(null_too)
        found = WordMaps(lambda prompts: parse_words(words, prompts), nearest_resolution(model, 0.25))
        features = Descriptors(inversion, end, rows)
        for editor in found, features, AppearanceMatching(inversion, chosen, start, end, rows, words=found,
                                                          descriptors=features, cycle=cycle, threshold=threshold):
            model = attach(model, editor)
        return io.NodeOutput(model)
