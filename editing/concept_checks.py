"""What cannot be learned, said before anything is computed."""
import hashlib
import re

import torch

from ..host.canvas import log
from ..host.concept_files import carries, encoder_lora_names, lora_names, takes_words, word_exists
from ..host.gradients import require_weights_in_place
from ..host.memory import total_bytes
from ..host.network import require_unet
from ..host.sampling import check_family, fingerprint, prediction_type
from ..host.weights import plain, quantised
from .concepts import SLOT, NewWord, PromptRows, WeightBasis, WholeChange
from .editor import require_plain
from .inverting import source_latent
from .word_spaces import WordSpace

NODE = "Learn Concept"
OF = {"MODEL": "lora_unet_", "CLIP": "lora_te"}  # the first letters of a LoRA's names
WORD = re.compile(r"embedding:([A-Za-z0-9_-]+)")
WHOLE = 4 * 4  # bytes a number that learns: in fp32 itself, its gradient and AdamW's two means


def text_learns(clip) -> bool:
    """Whether a LoRA file can hold what the text encoder learns."""
    encoders = _encoders(clip)
    return bool(encoders) and all(name.startswith("clip") for name in encoders)


def _encoders(clip) -> set:
    return {name.split(".")[0] for name in encoder_lora_names(clip)}


def check(model, clip, images, trained, prior, concept, notes, objective=None):
    """ValueError on what cannot be learned, before anything is computed."""
    require_plain(model, NODE)
    require_weights_in_place(model)
    prediction_type(model)
    if not trained:
        raise ValueError(f"{NODE} has {len(images.examples)} pictures and nothing to train: connect a TRAINABLE, such "
                         "as LoRA Weights.")
    if not images.examples:
        raise ValueError(f"{NODE} has {len(trained)} things to train and no picture: connect Concept Images with "
                         "three to five of them.")
    words = [one for one in trained if isinstance(one, NewWord)]
    for one in trained:
        if one.lr <= 0 and (len(trained) == 1 or not isinstance(one, PromptRows)):
            raise ValueError(f"The learning rate of {type(one).__name__} is {one.lr:g}, with which it stays as it is: "
                             "set it above 0.")
    told = [one for one in trained if isinstance(one, PromptRows)]
    if told and (len(told) > 1 or words or prior or any(getattr(one, "text_encoder", False) for one in trained)):
        raise ValueError("An encoded prompt stands for every caption, so no word, no text encoder, no second prompt "
                         "and no class can learn beside it: train weights of the network alone.")
    if prior and not prior.images.examples:
        raise ValueError(f"Prior Preservation has weight {prior.weight:g} and no picture of the class: connect Class "
                         "Images to it, or leave it out.")
    strange = sum(SLOT in e.caption for e in prior.images.examples) if prior else 0
    if strange:
        raise ValueError(f"{strange} of {len(prior.images.examples)} class pictures have * in their caption, which "
                         "stands for the concept: connect Class Images to Prior Preservation.")
    if not told and not images.identifier and not any(SLOT in e.caption or e.masks for e in images.examples):
        raise ValueError(f"None of the {len(images.examples)} captions has a *, which stands for the concept, as where "
                         "Class Images are learned from: connect Concept Images.")
    starred, named = any(SLOT in e.caption for e in images.examples), images.identifier.removeprefix("embedding:")
    if not told and not words and starred and (not named.strip() or named != images.identifier
                                               and not word_exists(clip, named)):
        raise ValueError(f"* reads as {images.identifier!r} in the captions, which says nothing, so that the rest of "
                         "them would come to mean the concept: give the identifier a rare token (sks), or connect a "
                         "New Word.")
    if objective and objective.pictures and objective.pictures != len(images.examples):
        raise ValueError(f"{type(objective).__name__} knows {objective.pictures} pictures, Concept Images has "
                         f"{len(images.examples)}: give both the same pictures in one order.")
    captions = [e.caption for e in images.examples]
    if objective and objective.reads:
        captions = [caption.replace(SLOT, objective.reads) for caption in captions]
    if objective:
        _check_connected(clip, words, objective)
    _check_words(words, captions, objective.negative if objective else None)
    _check_base(captions, objective)
    nameless = [c for c in captions if SLOT not in c and images.identifier not in c]
    if nameless and images.identifier and not words and not told and (objective is None or objective.base is None):
        log.warning("%s of %s captions have neither * nor %s, so what they say comes to mean these pictures itself: "
                    "write * where the concept stands. The first is %r.", len(nameless), len(captions),
                    images.identifier, nameless[0])
    _check_masks(model, images, told, objective)
    _check_contrasts(words, captions, objective)
    if words and not takes_words(clip):
        found = ", ".join(sorted(_encoders(clip))) or "none that is known"
        raise ValueError(f"ComfyUI takes no embedding in prompts of this text encoder ({found}), so that "
                         f"embedding:{words[0].name} could not be written there: train LoRA Weights, in Learn a "
                         "Subject with a rare token as identifier.")
    for word in words:
        if getattr(word, "in_layers", False):
            require_unet(model, type(word).__name__)
        if word_exists(clip, word.name):
            raise ValueError(f"The CLIP knows an embedding called {word.name}, from your embeddings folder or from an "
                             "earlier Learn Concept, and the new word has this name too: choose another name, or "
                             "connect the CLIP as it was.")
    if concept and concept.state is None:
        raise ValueError(f"The CONCEPT of {len(concept.losses)} steps holds nothing to go on from, as those of Imagic, "
                         "of Forgedit and of a word's file do: learn on from its MODEL without it.")
    for what, patcher in (("MODEL", model), ("CLIP", getattr(clip, "patcher", None))):
        weights = {n: w for n, w in concept.weights.items() if n.startswith(OF[what])} if concept else {}
        if patcher and weights and carries(patcher, weights):
            raise ValueError(f"The {what} has the {len(weights)} weights of the CONCEPT on it, which would be "
                             f"learned on top of themselves: connect the {what} that it was learned on.")
    kept = {name: concept.notes.get(name) for name in notes} if concept else notes
    if kept != notes:
        raise ValueError(f"The CONCEPT was learned by {kept}, this node trains {notes}: go on with the same, or learn "
                         "anew.")
    names, changed = lora_names(model), {}
    weights = dict(model.model.diffusion_model.named_parameters())
    for basis in (one for one in trained if isinstance(one, WeightBasis)):
        taken = [n for n, w in weights.items() if n in names and basis.takes(n, w)]
        if not taken:
            raise ValueError(f"{type(basis).__name__} finds none of its weights among the {len(names)} of this "
                             f"{type(model.model).__name__} MODEL: train LoRA Weights of attention or of all "
                             "layers, which every family has.")
        twice = next((n for n in taken if n in changed), None)
        if twice:
            raise ValueError(f"{changed[twice]} and {type(basis).__name__} both train {twice}, and a LoRA file holds "
                             "one change of a weight: keep one of them.")
        changed |= dict.fromkeys(taken, type(basis).__name__)
        _check_bits("MODEL", {n: weights[n] for n in taken if not basis.beside or not quantised(weights[n])},
                    f"{'' if basis.beside else 'train LoRA Weights, or '}load a checkpoint of fp8, fp16, bf16 or fp32")
        if basis.text_encoder and not text_learns(clip):
            raise ValueError(f"{type(basis).__name__} trains the text encoder, and of this one "
                             f"({', '.join(sorted(_encoders(clip))) or 'no weights'}) only CLIP can learn into a LoRA "
                             "file: turn text_encoder off.")
        if basis.text_encoder:
            inside = dict(clip.cond_stage_model.named_parameters())
            _check_bits("CLIP", {n: inside[n] for n in encoder_lora_names(clip) if n in inside},
                        "turn text_encoder off, or load one of fp8, fp16, bf16 or fp32")
        if isinstance(basis, WholeChange):
            numbers = sum(weights[n].numel() for n in taken)
            needed, has = WHOLE * numbers, total_bytes(model)
            if needed > has:
                raise ValueError(f"{type(basis).__name__} trains {numbers / 1e9:.2g} billion numbers, with their "
                                 f"gradients and AdamW's means {needed / 2 ** 30:.0f} GB, and this device has "
                                 f"{has / 2 ** 30:.0f}: train LoRA Weights.")
    twice = [type(basis).__name__ for basis in trained if getattr(basis, "text_encoder", False)]
    if len(twice) > 1:
        raise ValueError(f"{' and '.join(twice)} both train the text encoder, and a LoRA file holds one change of a "
                         "weight: turn text_encoder off in one of them.")
    if concept:
        check_family(model, concept, "CONCEPT", "learn")
    for whose, given in (("picture", images), ("class picture", prior and prior.images)):
        for number, e in enumerate(given.examples if given else ()):
            source_latent(model, {"samples": e.latent[None]}, f"The latent of {whose} {number + 1}")
    _check_widths(model, clip, told, objective)


def material(images, prior) -> dict:
    """What is learned from, as a CONCEPT's notes have it: texts, and digests of what is shown."""
    counted = prior if prior and prior.weight else None
    return {"captions": [e.caption for e in images.examples], "identifier": images.identifier,
            "pictures": _digest(images), "prior": counted.weight if counted else 0.0,
            "class pictures": _digest(counted.images, repr(counted.predicted)) if counted else ""}


def _digest(images, *more) -> str:
    """Short, of latents and masks, and of the captions where the notes do not have them."""
    found = hashlib.sha256("".join(more).encode())
    for e in images.examples:
        found.update((repr(sorted(e.masks)) + e.caption * bool(more)).encode())
        for t in (e.latent, *(e.masks[word] for word in sorted(e.masks))):
            found.update(repr(tuple(t.shape)).encode() + t.detach().cpu().float().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def say_other_material(concept, given) -> bool:
    """Says where a run that goes on learns from something else than it began with. Returns whether its looks may be
    compared with those before."""
    other = [name for name, value in given.items() if concept.notes[name] != value]
    if other:
        log.warning("Learning goes on from a CONCEPT with another choice of %s (%s pictures now, %s before), so it is "
                    "not what one longer run learns: connect what it began with, unless you mean to change it.",
                    ", ".join(other), len(given["captions"]), len(concept.notes["captions"]))
    return not {*other} - {"batch"}


def _check_widths(model, clip, told, objective):
    """ValueError where prompts, or what an objective adds to them, are not as wide as the MODEL reads them."""
    width = fingerprint(model).context_width
    prompt = told[0].conditioning[0][0] if told else clip.encode_from_tokens(
        clip.tokenize(""), return_pooled=True, return_dict=True)["cond"]
    found = prompt.shape[-1]
    if width not in (None, found):
        raise ValueError(f"The CLIP's prompts have rows of {found} numbers, and this {type(model.model).__name__} "
                         f"MODEL reads rows of {width}: connect the checkpoint's own CLIP.")
    if objective and objective.pictures and width:
        objective.pictured(objective.begin(torch.Generator()), 0, torch.zeros(1, 1, width))


def _check_bits(whose, weights, cure):
    """ValueError on weights that nothing can be added to."""
    name = next((n for n, w in weights.items() if not plain(w)), None)
    if name:
        raise ValueError(f"The {whose}'s weight {name} is {type(weights[name]).__name__} of {weights[name].dtype}, and "
                         f"learning adds to plain numbers: {cure}.")


def _check_base(captions, objective):
    """ValueError where the frozen model would be asked for a caption that ends in the middle."""
    bare = re.compile(rf"{re.escape(SLOT)}(?!\s*[^\s.,;:!?])")
    lacking = [c for c in captions if bare.search(c)] if objective and objective.bare else ()
    if lacking:
        raise ValueError(f"{type(objective).__name__} asks the model for the captions without *, and in "
                         f"{len(lacking)} of {len(captions)} no noun is left, as in {lacking[0]!r}: write it after * "
                         "('a photo of a * dog'), or in base or noun.")


def _check_connected(clip, words, objective):
    """ValueError where an objective has words that do not learn, as where one of a node's two outputs is connected."""
    names = {word.name for word in words}
    known = {name for name in WORD.findall(objective.negative or "") if word_exists(clip, name)}
    lacking = sorted({*WORD.findall(f"{objective.reads} {objective.negative}")} - names - known)
    if lacking:
        raise ValueError(f"{type(objective).__name__} learns by the words {', '.join(lacking)}, and what learns are "
                         f"the words {', '.join(sorted(names)) or 'of no node'}: connect also the trainable of the "
                         "node that gave this objective.")


def _check_words(words, captions, negative):
    """ValueError where new words are not in the captions, or in those with another text for *."""
    names = [word.name.lower() for word in words]  # as files and words of a prompt are found
    same = next((word.name for n, word in enumerate(words) if names[n] in names[:n]), None)
    if same:
        raise ValueError(f"Two of the {len(words)} new words are called {same}: give each a name of its own, or one of "
                         "them more vectors.")
    if negative:
        captions = [*captions, *(c.replace(SLOT, negative) for c in captions)]
    elif len(words) > 1 and (any(isinstance(word, WordSpace) for word in words) or any(SLOT in c for c in captions)):
        raise ValueError(f"{NODE} has {len(words)} new words ({', '.join(word.name for word in words)}), and a caption "
                         "one * for one of them: connect also the objective of the node that gave both, learn them "
                         "one after the other, give one word more vectors, or write embedding:NAME for each in the "
                         "captions, as Break-A-Scene Parts does with New Words.")
    lacking = [c for c in captions if SLOT not in c and not any(_has(c, word.name) for word in words)]
    if words and lacking:
        raise ValueError(f"{len(lacking)} of {len(captions)} captions have no *, which stands for the new "
                         f"word {words[0].name}; the first is {lacking[0]!r}: write it there.")
    # * reads as the first of them
    read = [c.replace(SLOT, f" embedding:{words[0].name} ") for c in captions] if words else ()
    unused = [word.name for word in words if not any(_has(c, word.name) for c in read)]
    if unused:
        raise ValueError(f"The new word {unused[0]} is in none of the {len(captions)} captions, the first of which is "
                         f"{captions[0]!r}: write embedding:{unused[0]} there, or give it the name that stands there.")


def _has(caption, name) -> bool:
    return re.search(rf"embedding:{name}(?![A-Za-z0-9_-])", caption) is not None


def _check_contrasts(words, captions, objective):
    """ValueError where an objective compares a new word with others, and one of both lacks."""
    for caption in captions if objective else ():
        for name, near, far in objective.contrasts(caption, torch.Generator()):
            kind = type(objective).__name__
            if not words or name not in (SLOT, *(word.name for word in words)):
                raise ValueError(f"{kind} compares the new word {name} with known ones, and what learns are the words "
                                 f"{', '.join(word.name for word in words) or 'of no node'}: connect New Word, under "
                                 "the same name.")
            if not near or not far:
                raise ValueError(f"{kind} draws a new word towards {near or 'no words'!r} and away from "
                                 f"{far or 'no words'!r} for the caption {caption!r}: give both, as the things that a "
                                 "relation joins in 'cat * stone'.")


def _check_masks(model, images, told, objective):
    """ValueError where masks show nothing, or lack where an objective compares maps with them."""
    for number, e in enumerate(images.examples):
        for word, mask in e.masks.items():
            if mask.shape != e.latent.shape[-2:] or not mask.any():
                raise ValueError(f"The mask of {word} in picture {number + 1} is {tuple(mask.shape)} and has "
                                 f"{int(mask.sum())} cells of the latent, which is {tuple(e.latent.shape[-2:])}: paint "
                                 "a mask of the picture's size, larger than a few pixels.")
    if objective and objective.resolution:
        name, bare = type(objective).__name__, sum(not e.masks for e in images.examples)
        require_unet(model, name)
        if bare or told:
            raise ValueError(f"{name} compares words' attention with masks, and {bare} of {len(images.examples)} "
                             f"pictures have no mask{' and captions no words' * bool(told)}: connect masks to Concept "
                             "Images or Break-A-Scene Parts.")
