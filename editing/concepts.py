"""What a concept is learned from, what is trained, and what was learned.

A paper's file derives from `WeightBasis` or makes a `NewWord` (concept/); `learning.py` trains them.
"""
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..host.sampling import Fingerprint
from .watching import Look

Theta = dict[str, Tensor]
NAME = re.compile(r"[A-Za-z0-9_-]+")  # the host ends an embedding's name at other signs
LONGEST = 100  # of a name, which is a file's too
SLOT = "*"


@dataclass(frozen=True, eq=False)
class Example:
    """A picture to learn from.

    latent: [C,…], as VAE Encode gives it, on the CPU.
    caption: its text, in which * stands for what is learned.
    masks: {a word of the caption, or *: [h,w], where the latent shows it}. All else of the picture is not learned; none
        learns the whole.
    """
    latent: Tensor
    caption: str
    masks: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class ConceptImages:
    """Pictures of a concept, or of its class.

    examples: of any sizes.
    identifier: what * reads as where no new word is learned.
    """
    examples: tuple[Example, ...]
    identifier: str = ""


class WeightBasis:
    """How weights may change: ΔW as a function of θ. A subclass is a frozen dataclass.

    lr: of AdamW.
    text_encoder: whether the text encoder's weights change too.
    beside: whether the host can compute ΔW beside a weight, as it does where the weight is quantised.
    """
    lr: float
    text_encoder: bool = False
    beside = False

    def takes(self, name: str, weight: Tensor) -> bool:
        """Whether a weight of the network changes, by its name there."""
        raise NotImplementedError

    def takes_text(self, weight: Tensor) -> bool:
        """Whether a weight of the text encoder changes, where it takes part."""
        return True

    def start(self, weight: Tensor, generator: torch.Generator) -> Theta:
        """θ at ΔW = 0, on the CPU in fp32. What requires a gradient is trained."""
        raise NotImplementedError

    def delta(self, theta: Theta, weight: Tensor) -> Tensor:
        """ΔW in fp32, of the weight's shape."""
        raise NotImplementedError

    def saved(self, theta: Theta, weight: Tensor) -> Theta:
        """What a LoRA file of the host holds for the weight, by the ends of its names, such as "lora_up.weight"."""
        raise NotImplementedError

    def compact(self, theta: Theta) -> Tensor | None:
        """The few numbers that make θ again beside the weight; None where `saved` is small itself."""
        return None

    def regrown(self, few: Tensor, weight: Tensor) -> Theta:
        """θ of what `compact` gave."""
        raise NotImplementedError


class WholeChange(WeightBasis):
    """ΔW itself learns."""

    def start(self, weight, generator):
        return {"ΔW": torch.zeros(weight.shape, requires_grad=True)}

    def delta(self, theta, weight):
        return theta["ΔW"]

    def saved(self, theta, weight):
        return {"diff": theta["ΔW"]}


def _number(name) -> bool:
    """Whether the host takes a name in brackets, (embedding:NAME), for a weight."""
    try:
        float(name)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class NewWord:
    """A word that the text encoder does not know, as vectors of its token table. Base of the papers' ways to learn one.

    name: embedding:NAME in a prompt.
    like: the words whose vectors it starts from.
    vectors: how many.
    lr: of AdamW.
    """
    name: str
    like: str
    vectors: int
    lr: float

    def __post_init__(self):
        if not NAME.fullmatch(self.name):
            raise ValueError(f"The new word is called {self.name!r}, and ComfyUI reads the name of an embedding up to "
                             "the first sign that is no letter, digit, _ or -: use these alone.")
        if len(self.name) > LONGEST or _number(self.name):
            raise ValueError(f"The new word is called {self.name[:LONGEST]!r}, {len(self.name)} signs, and ComfyUI "
                             "would not find it: give it a name with a letter, of at most "
                             f"{LONGEST} signs.")

    def start(self, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{encoder: [n,D]} to begin with, from the vectors of the words that it is like."""
        for encoder, found in like.items():
            if not len(found) or self.vectors % len(found):
                raise ValueError(f"The new word {self.name} has {self.vectors} vectors, {self.like!r} is {len(found)} "
                                 f"tokens of {encoder}: give it a multiple of them, or start from another word.")
        return {encoder: found.repeat(self.vectors // len(found), 1) for encoder, found in like.items()}

    def begin(self, start: Mapping[str, Tensor], layers: int, generator: torch.Generator) -> Theta:
        """What learns, on the CPU in fp32. layers: of the network."""
        return dict(start)

    def at(self, theta: Theta, stage: int, generator: torch.Generator | None = None) -> "WordAt":
        """What it is in a stage of sampling. generator: while it learns."""
        return WordAt({encoder: v[None] for encoder, v in theta.items()})


class WordAt(NamedTuple):
    """What a word is in a stage of sampling.

    vectors: {encoder: [L,n,D]}, or L = 1 for all layers.
    added: the same, as WordTable has it.
    """
    vectors: dict[str, Tensor]
    added: dict[str, Tensor] = {}


@dataclass(frozen=True, eq=False)
class WordTable:
    """A learned word that is another one in each stage, each layer, or both (word_spaces.py).

    vectors: {encoder: [S,L,n,D]}.
    places: (section, block) of its L layers; none where all have one.
    added: what comes to the encoder's output at the word, before its last normalisation and in shares of its norm,
        where attention takes values from it: of the same shape; or none.
    """
    vectors: Mapping[str, Tensor]
    places: tuple[tuple[str, int], ...] = ()
    added: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def stages(self) -> int:
        return len(next(iter(self.vectors.values())))

    def at(self, stage: int) -> WordAt:
        return WordAt(*({encoder: v[stage if len(v) > 1 else 0] for encoder, v in found.items()}
                        for found in (self.vectors, self.added)))


@dataclass(frozen=True, eq=False)
class PromptRows:
    """An encoded prompt that stands for every caption, whose last rows learn.

    conditioning: a CONDITIONING of one entry.
    lr: of Adam. At 0 the prompt stays as it is.
    last: how many rows learn; 0 lets all learn.
    """
    conditioning: list = field(repr=False)
    lr: float
    last: int = 0

    def start(self) -> Tensor:
        """The rows that learn, [B,n,C]."""
        return self.conditioning[0][0][:, -self.last:].detach().float().cpu().clone()

    def told(self, rows: Tensor) -> list:
        """The CONDITIONING with these in their place."""
        embedding, extras = self.conditioning[0]
        held = embedding[:, :embedding.shape[1] - rows.shape[1]].to(rows)
        return [[torch.cat([held, rows], 1), extras]]


@dataclass(frozen=True)
class Prior:
    """Class-prior preservation: what the loss of the class's pictures counts beside the concept's.

    images: of the class, made by the model before it learns.
    weight: λ. At 0 nothing is drawn of them, and looks alone read them.
    predicted: whether the model keeps to what it predicted of them before it learned, in the place of the pictures
        themselves. They may be any then.
    """
    images: ConceptImages
    weight: float
    predicted: bool = False


class Objective:
    """What the concept's rows lower in the place of their own loss. A subclass is a frozen dataclass.

    reads: what * reads as where that is not the first new word.
    base: what * reads as for the frozen model; None where that is not asked.
    resolution: of the cross-attention whose maps are asked, a share of the latent's side; 0 asks none.
    negative, scale: what * reads as in the caption that a prediction is guided away from, and by how much; None does
        not guide.
    skew: by which noisier levels are drawn more often than clean ones, 0 to 1. 0 draws them as the family was trained.
    pictures: how many it knows more of than their captions say; 0 where none.
    lr: of AdamW, of what it learns of its own.
    """
    reads: str = ""
    base: str | None = None
    resolution: float = 0.0
    negative: str | None = None
    scale: float = 1.0
    skew: float = 0.0
    pictures: int = 0
    lr: float = 0.0

    @property
    def bare(self) -> bool:
        """Whether a model is asked for the captions with nothing for *."""
        return self.base == ""

    def begin(self, generator: torch.Generator) -> Theta:
        """What it learns of its own where it knows pictures, on the CPU in fp32. It is not kept."""
        raise NotImplementedError

    def pictured(self, theta: Theta, number: int, prompt: Tensor) -> Tensor:
        """The rows [1,T,C] of a prompt with what it knows of a picture more, under which that one is shown too."""
        raise NotImplementedError

    def parted(self, pictured: Tensor, alone: Tensor, whole: Tensor, text: Tensor) -> Tensor:
        """[B] losses, of those under the prompt with that and alone, and of the means [B,C] of both prompts' rows."""
        raise NotImplementedError

    def losses(self, errors: Tensor, frozen: Tensor | None) -> Tensor:
        """[B] losses of rows, of their errors ‖c(σ)·(x̂0 - x0)‖² [B] and of the frozen model's errors on them."""
        return errors

    def guided(self, shown: Tensor, negative: Tensor) -> Tensor:
        """The x̂0 that is compared with the picture, of those under the caption and under the negative one."""
        raise NotImplementedError

    def beside(self, caption: str) -> Sequence[str]:
        """Texts under which the model, as far as it has learned, is asked too, without a gradient. Beside no base."""
        return ()

    def compared(self, found: Tensor, others: Sequence[Tensor], noise: Tensor) -> Tensor:
        """What rows' losses are more, [B], of their x̂0 and of those under the texts beside theirs. noise: of each row,
        for a picture of size 1."""
        raise NotImplementedError

    def of_maps(self, maps: Tensor, masks: Tensor) -> Tensor:
        """What a picture's loss is more, of its words' maps [n,h',w'] and their masks [n,h,w]."""
        raise NotImplementedError

    def contrasts(self, caption: str, generator: torch.Generator) -> Sequence[tuple[str, str, str]]:
        """[(a new word's name or *, known words that it is drawn towards, words that it is kept from)] of a row."""
        return ()

    def of_word(self, vectors: Tensor, near: Tensor, far: Tensor) -> Tensor:
        """What a row's loss is more, of a new word's vectors [n,D] and those of its contrast's words."""
        raise NotImplementedError

    def settled(self, vectors: Tensor, start: Tensor) -> Tensor:
        """A new word's vectors [n,D] after a step, of those that it began with."""
        return vectors


@dataclass(frozen=True, eq=False)
class Concept:
    """What was learned, in the forms of the host's own files.

    words: {name: {encoder: [n,D]}}, what an embedding's file holds.
    weights: what a LoRA's file holds.
    fingerprint: of the MODEL that learned.
    losses: of every step.
    notes: for people.
    state: what going on needs, None where nothing may go on.
    looks: what a watch saw up to what is kept (watching.py).
    prompt: the CONDITIONING whose rows learned, or None.
    tables: {name: a word that no embedding's file can hold}.
    compact: {a weight's name in a LoRA's file: the few numbers that make its change again}, or none.
    """
    words: Mapping[str, Mapping[str, Tensor]]
    weights: Mapping[str, Tensor]
    fingerprint: Fingerprint
    losses: tuple[float, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)
    state: Mapping[str, Any] | None = None
    looks: tuple[Look, ...] = ()
    prompt: list | None = None
    tables: Mapping[str, WordTable] = field(default_factory=dict)
    compact: Mapping[str, Tensor] = field(default_factory=dict)
