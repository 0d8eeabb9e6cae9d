"""Inputs and types that the nodes of concepts share."""
from comfy_api.latest import io

from ...editing.concepts import ConceptImages, Example, WeightBasis
from ...editing.inverting import source_latent
from ...editing.learning import applied
from ...host.canvas import log
from ...host.sampling import latent_of
from ..checks import check_prompt_alone

ConceptImagesType = io.Custom("CONCEPT_IMAGES")
TrainableType = io.Custom("TRAINABLE")
ObjectiveType = io.Custom("OBJECTIVE")
ConceptType = io.Custom("CONCEPT")


def name_input():
    return io.String.Input("name", default="my-thing", tooltip=(
        "The word's name. Letters, digits, _ and -. In Concept Prompt: embedding:NAME."))


def like_input():
    return io.String.Input("like", default="", tooltip=(
        "What it roughly is, in a word of one token that the model knows. Its learning starts there. Paper: one coarse "
        "word, such as 'sculpture' or 'cat'."))


def rate_input(default: float, said: str):
    return io.Float.Input("lr", default=default, min=0.0, max=1.0, step=1e-7, round=1e-8, tooltip=(
        f"Learning rate of AdamW. {said}"))


def text_encoder_input():
    return io.Boolean.Input("text_encoder", default=False, tooltip=(
        "Whether the text encoder learns too. The subject becomes more faithful, overfitting comes sooner. Paper: on."))


def more_input():
    return TrainableType.Input("more", optional=True, tooltip="What else learns in the same run.")


def more_objectives_input():
    return ObjectiveType.Input("more", optional=True, tooltip="What else is asked of the same run.")


def added(one, more) -> io.NodeOutput:
    """The TRAINABLE of one thing more."""
    return io.NodeOutput((*(more or ()), one))


def batch_input(default=1, said="Paper: 1."):
    return io.Int.Input("batch", default=default, min=1, max=256, tooltip=(
        f"Noises an update. Large models take them one after the other, so more cost time and no memory. {said} "
        "The miniature: 4."))


def seed_input():
    return io.Int.Input("seed", default=0, min=0, max=2 ** 64 - 1, control_after_generate=True,
                        tooltip="Of levels and noise. Equal seeds learn equal bytes.")


def network_input():
    return TrainableType.Input("trainable", optional=True, tooltip=(
        "What learns in the network, such as LoRA Weights for less memory. All weights without it, as in the paper."))


def learned_outputs() -> list:
    """Of a node that learns one picture with its prompt."""
    return [io.Model.Output(), io.Conditioning.Output(display_name="learned prompt", tooltip=(
        "Gives the picture on this MODEL.")), ConceptType.Output(display_name="concept")]


def learned_output(model, learned) -> io.NodeOutput:
    return io.NodeOutput(applied(model, None, learned)[0], learned.prompt, learned)


def pictures_of(model, latent) -> ConceptImages:
    """The pictures of a LATENT."""
    source_latent(model, latent)  # an error where it is none
    if latent.get("noise_mask") is not None:
        log.warning("The LATENT has a noise mask, and the whole picture is learned: to learn a part of it, give "
                    "Concept Images the mask, and use Learn Concept.")
    return ConceptImages(tuple(Example(z.cpu(), "") for z in latent_of(model, latent["samples"])))


def check_weights(node, trainable):
    """ValueError where a TRAINABLE is not of weights alone, beside an encoded prompt."""
    wrong = next((one for one in trainable or () if not isinstance(one, WeightBasis)), None)
    if wrong:
        raise ValueError(f"{node}'s trainable holds {type(wrong).__name__}, which learns in the text, and its text "
                         "is an encoded prompt: connect weights alone, such as LoRA Weights.")


def check_one_prompt(whose, conditioning, learned=None):
    """ValueError where a CONDITIONING is not one plain prompt, or not of the learned one's size."""
    if len(conditioning) != 1 or len(conditioning[0][0]) != 1:
        raise ValueError(f"{whose} has {len(conditioning)} entries of {[len(c) for c, _ in conditioning]} prompts, and "
                         "one is needed: describe the picture in one prompt, and remove Conditioning (Combine).")
    check_prompt_alone(whose, conditioning)
    shapes = [tuple(one[0][0].shape) for one in (learned or conditioning, conditioning)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{whose} is encoded to {shapes[1][1]} rows of {shapes[1][2]}, the learned prompt to "
                         f"{shapes[0][1]} rows of {shapes[0][2]}: encode both with one CLIP, and none over 75 tokens.")
