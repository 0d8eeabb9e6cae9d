"""Inputs and types that the nodes of concepts share."""
from comfy_api.latest import io

ConceptImagesType = io.Custom("CONCEPT_IMAGES")
TrainableType = io.Custom("TRAINABLE")
ObjectiveType = io.Custom("OBJECTIVE")
ConceptType = io.Custom("CONCEPT")


def rate_input(default: float, said: str):
    return io.Float.Input("lr", default=default, min=0.0, max=1.0, step=1e-7, round=1e-8, tooltip=(
        f"Learning rate of AdamW. {said}"))


def text_encoder_input():
    return io.Boolean.Input("text_encoder", default=False, tooltip=(
        "Whether the text encoder learns too. The subject becomes more faithful, overfitting comes sooner. Paper: on."))


def more_input():
    return TrainableType.Input("more", optional=True, tooltip="What else learns in the same run.")


def added(one, more) -> io.NodeOutput:
    """The TRAINABLE of one thing more."""
    return io.NodeOutput((*(more or ()), one))
