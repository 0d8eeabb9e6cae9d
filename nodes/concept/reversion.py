"""ReVersion: steering a new word towards relations."""
from comfy_api.latest import io

from ...concept.reversion import DRAWN, PREPOSITIONS, SKEW, TEMPERATURE, WEIGHT, Steering
from ..search import aliases
from .widgets import ObjectiveType, more_objectives_input


class PalimpsestReVersion(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestReVersion", display_name="Relation (ReVersion)", category="palimpsest/concept",
            **aliases("relation inversion", "action", "pose between things", "preposition", "interaction"),
            description="Lets a new word learn a relation, such as 'carved from', and not the things that stand in it "
                        "(Huang et al. 2023). For New Word, with captions such as 'cat * stone'.",
            inputs=[
                io.Float.Input("weight", default=WEIGHT, min=0.0, max=100.0, step=0.001, round=0.0001, tooltip=(
                    "What the steering counts beside the picture's loss. Higher keeps how the things look further "
                    "away. Paper: 0.01.")),
                io.Int.Input("drawn", default=DRAWN, min=1, max=1000, tooltip=(
                    "How many of the words below draw it in each picture, other ones each time. Paper: 4.")),
                io.Float.Input("temperature", default=TEMPERATURE, min=0.001, max=100.0, step=0.01, round=0.001,
                               tooltip="Lower looks at the nearest words alone. Paper: 0.07."),
                io.Float.Input("noisier", default=SKEW, min=0.0, max=1.0, step=0.05, tooltip=(
                    "How much more often noisy levels are learned, which decide what things do, than clean ones, "
                    "which decide how they look. 0: as the model was trained. Paper: 0.5.")),
                io.String.Input("words", multiline=True, default=" ".join(PREPOSITIONS), tooltip=(
                    "The words that draw it. Paper: prepositions.")),
                more_objectives_input(),
            ],
            outputs=[ObjectiveType.Output(display_name="objective")])

    @classmethod
    def execute(cls, weight, drawn, temperature, noisier, words, more=None) -> io.NodeOutput:
        near = tuple(words.replace(",", " ").split())
        return io.NodeOutput((*(more or ()), Steering(near, drawn, weight, temperature, noisier)))
