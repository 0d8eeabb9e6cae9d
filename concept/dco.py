"""Direct Consistency Optimization for Compositional Text-to-Image Personalization. Lee, Kwak, Sohn, Shin, 2024.
arXiv:2402.12004

Fine-tuning pulls a model to a few pictures, and away from what it knew. DCO lets it learn no more than how much better
than before it fits them, by the loss of the model that learns, ε_θ, and of the frozen one, ε_φ, on the same noise:

    E[ -log s(-β(‖ε_θ(x_t; c) - ε‖² - ‖ε_φ(x_t; c_φ) - ε‖²)) ],    s the logistic function.

Where both are equal it is log 2 and its gradient β/2 that of the plain loss; where a picture is learned it fades away.
So no class pictures are needed. c_φ is the caption without the new word. Captions say all that is seen (comprehensive
captions), and a new word's vectors keep their norms. `guidance/dco.py` samples from both models.

Differs from the paper: errors are means over a latent's values, as in the authors' program, which also takes the mean
of a batch before the logarithm; here each picture has its own, which is the same for a batch of one.
Checked against: kyungmnlee/dco@164ae17, its loss line by line on equal predictions.
"""
from dataclasses import dataclass

import torch

from ..editing.concepts import Objective


@dataclass(frozen=True)
class DCO(Objective):
    """beta: β.
    base: what * reads as in c_φ.
    """
    beta: float = 1000.0
    base: str = ""

    def losses(self, errors, frozen):
        return -torch.nn.functional.logsigmoid(-self.beta * (errors - frozen))

    def settled(self, vectors, start):
        return vectors * (start.norm(dim=-1, keepdim=True) / vectors.norm(dim=-1, keepdim=True))
