"""Imagic: Text-Based Real Image Editing with Diffusion Models. Kawar, Zada, Lang, Tov, Chang, Dekel, Mosseri, Irani,
CVPR 2023. arXiv:2210.09276

One picture x and a target prompt with the embedding e_tgt. In three steps (section 3.2):
A. The embedding learns the picture from e_tgt on, the network stays. It ends near it, at e_opt.
B. The network θ learns the picture under e_opt, which stays.
C. The tuned network samples from between the two, at the share η,

    ē = η·e_tgt + (1 - η)·e_opt.    (Eq. 3)

A and B have the model's own loss (Eq. 2). The larger η, the more follows the prompt; 0.6 to 0.8 is a good place.

Differs from the paper: what learns in B is any change of weights, such as a LoRA. Imagen's super-resolution networks
have no part.
Checked against: diffusers' community pipeline imagic_stable_diffusion, three and three steps of its training and its
mix.
"""
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from ..editing.concept_checks import check
from ..editing.concepts import Concept, ConceptImages, PromptRows, WeightBasis
from ..editing.forecast import Forecast
from ..editing.learning import learn_concept


def learn(model, images: ConceptImages, target: list, trained: Sequence[WeightBasis], prompt_steps: int = 500,
          prompt_lr: float = 1e-3, steps: int = 1000, batch: int = 1, seed: int = 0,
          told: Callable[[Forecast], None] | None = None) -> Concept:
    """Steps A and B. The CONCEPT's prompt is e_opt. told: as learn_concept has it."""
    check(model, None, images, [*trained, PromptRows(target, 0.0)], None, None, {})  # before A, which takes long
    near = learn_concept(model, None, images, [PromptRows(target, prompt_lr)], None, prompt_steps, batch, seed,
                         told=told)
    assert near.prompt
    tuned = learn_concept(model, None, images, [*trained, PromptRows(near.prompt, 0.0)], None, steps, batch, seed,
                          told=told, norm=math.inf)
    return replace(tuned, losses=(*near.losses, *tuned.losses), state=None)


def mixed(learned: list, target: list, share: float) -> list:
    """ē as a CONDITIONING, of e_opt and e_tgt."""
    e_opt, (e_tgt, extras) = learned[0][0], target[0]
    return [[share * e_tgt + (1 - share) * e_opt.to(e_tgt), extras]]  # Eq. 3
