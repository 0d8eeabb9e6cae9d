"""HiPer and HiPer Prompt."""
from comfy_api.latest import io

from ...concept.hiper import ROWS, SCALE, rows_of
from ...editing.concepts import PromptRows
from ...editing.learning import learn_concept
from ..search import aliases
from .learn import said
from .widgets import batch_input, check_one_prompt, pictures_of, rate_input, seed_input


class PalimpsestHiPer(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestHiPer", display_name="HiPer", category="palimpsest/concept",
            description="Learns one picture in the last rows of its encoded prompt (Han et al. 2023). The model stays "
                        "as it is. HiPer Prompt puts the rows behind another prompt.",
            **aliases("single image editing", "personalize one photo", "learn a photo", "prompt tuning"),
            inputs=[
                io.Model.Input("model", tooltip="The MODEL without Palimpsest editors. It is not changed."),
                io.Latent.Input("latent", tooltip="The picture, from VAE Encode."),
                io.Conditioning.Input("source", tooltip="A prompt that describes it: 'a standing dog'."),
                io.Int.Input("rows", default=ROWS, min=1, max=1000, tooltip=(
                    "How many rows learn. More hold more of the picture and leave less to the prompt. Paper: 5.")),
                io.Int.Input("steps", default=1000, min=1, max=100_000,
                             tooltip="Number of updates. Paper: about 1000. The miniature: 100."),
                rate_input(5e-3, "Paper: 5e-3. The miniature: 5e-2."),
                batch_input(),
                seed_input(),
            ],
            outputs=[io.Conditioning.Output(display_name="learned prompt",
                                            tooltip="The source's, with the learned rows.")])

    @classmethod
    def execute(cls, model, latent, source, rows, steps, lr, batch, seed) -> io.NodeOutput:
        check_one_prompt("HiPer's source", source)
        check_rows(rows, source)
        learned = learn_concept(model, None, pictures_of(model, latent), [PromptRows(source, lr, rows)], None, steps,
                                batch, seed, told=said)
        return io.NodeOutput(learned.prompt)


class PalimpsestHiPerPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestHiPerPrompt", display_name="HiPer Prompt", category="palimpsest/concept",
            description="A target prompt whose last rows are those that HiPer learned.",
            **aliases("apply HiPer", "personalized prompt"),
            inputs=[
                io.Conditioning.Input("learned_prompt", tooltip="From HiPer."),
                io.Conditioning.Input("target", tooltip="The prompt of the edited picture: 'a sitting dog'."),
                io.Int.Input("rows", default=ROWS, min=1, max=1000, tooltip="As many as HiPer learned. Paper: 5."),
                io.Float.Input("scale", default=SCALE, min=0.0, max=10.0, step=0.05, tooltip=(
                    "Of the learned rows. Lower follows the prompt more. The authors: 0.8. Paper: 1.")),
            ],
            outputs=[io.Conditioning.Output()])

    @classmethod
    def execute(cls, learned_prompt, target, rows, scale) -> io.NodeOutput:
        check_one_prompt("HiPer Prompt's target", target, learned_prompt)
        check_rows(rows, target)
        return io.NodeOutput(rows_of(learned_prompt, target, rows, scale))


def check_rows(rows, conditioning):
    has = conditioning[0][0].shape[1]
    if rows >= has:
        raise ValueError(f"The encoded prompt has {has} rows, and {rows} are to be learned, which leaves none for its "
                         "words: lower rows (paper: 5).")
