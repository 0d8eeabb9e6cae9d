"""Forgedit: Text-guided Image Editing via Learning and Forgetting. Zhang, Xiao, Huang, 2023. arXiv:2309.10556

One picture with a caption. The caption's embedding e_src and the network learn the picture together, each at its own
rate, which takes a fraction of the time of one after the other. The edit's embedding is made of e_src and the target's
e_tgt, by vector subtraction or by vector projection:

    e = e_src + γ·(e_tgt - e_src),
    e = α·e_src + β·e_edit,    e_edit = e_tgt - r·e_src,    r = ⟨e_src, e_tgt⟩ / ‖e_src‖²,

so that α holds the picture's identity and β drives the edit. Where the network has learned too much by heart it
forgets: a half of the U-Net gets its weights back, but for its attention or its keys and values. Its encoder learned
space and structure, its decoder appearance.

Differs from the paper: the caption is written, not BLIP's. What learns may be any change of weights.
Checked against: the paper's equations; the settings are those of witcherofresearch/Forgedit, whose code has no licence.
"""
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from ..editing.concepts import Concept, ConceptImages, PromptRows, WeightBasis
from ..editing.forecast import Forecast
from ..editing.learning import learn_concept

HALVES = {"encoder": ("down_blocks",), "decoder": ("up_blocks",)}
KEPT = {"nothing": (), "attention": ("_attn1_", "_attn2_"), "keys and values": ("_to_k", "_to_v")}


def learn(model, images: ConceptImages, source: list, trained: Sequence[WeightBasis], prompt_lr: float = 1e-3,
          steps: int = 40, batch: int = 10, seed: int = 0,
          told: Callable[[Forecast], None] | None = None) -> Concept:
    """The prompt and weights together. The CONCEPT's prompt is e_src. told: as learn_concept has it."""
    learned = learn_concept(model, None, images, [*trained, PromptRows(source, prompt_lr)], None, steps, batch, seed,
                            told=told, norm=math.inf)
    return replace(learned, state=None)


def subtracted(learned: list, target: list, gamma: float) -> list:
    """e by vector subtraction, as a CONDITIONING."""
    e_src, (e_tgt, extras) = learned[0][0].to(target[0][0]), target[0]
    return [[e_src + gamma * (e_tgt - e_src), extras]]


def projected(learned: list, target: list, alpha: float, beta: float) -> list:
    """e by vector projection, as a CONDITIONING. The whole embedding is one vector."""
    e_src, (e_tgt, extras) = learned[0][0].to(target[0][0]), target[0]
    r = (e_src * e_tgt).sum() / e_src.square().sum()
    return [[alpha * e_src + beta * (e_tgt - r * e_src), extras]]


def forgotten(concept: Concept, half: str, kept: str) -> Concept:
    """The CONCEPT without the weights of a half of the U-Net, but for what is kept of it."""
    def inside(name):
        return any(part in name for part in HALVES[half])

    def lost(name):
        return inside(name) and not any(part in name for part in KEPT[kept])

    found = [name for name in concept.weights if inside(name)]
    if not any(map(lost, found)):
        raise ValueError(f"The concept holds {len(concept.weights)} weights, {len(found)} of the U-Net's {half} and "
                         f"{len(found)} of these kept, so it would forget nothing: keep less, or give it a concept "
                         "that learned more of a U-Net (SD1.x, SD2.x, SDXL).")
    weights, compact = ({name: value for name, value in held.items() if not lost(name)}
                        for held in (concept.weights, concept.compact))
    return replace(concept, weights=weights, compact=compact, state=None)
