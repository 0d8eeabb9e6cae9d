"""Checks that several nodes run before the first model call."""
from ..attention.alignment import PromptEdit
from ..editing.inverting import REFUSED
from ..host.sampling import check_family
from ..host.tokens import require_columns
from ..inversion.trajectory import Inversion


def check_source(inversion: Inversion, edit: PromptEdit, node: str):
    """The INVERSION must come from the source text that PROMPT_EDIT aligned, and from no other text."""
    if inversion.tokens is None:
        raise ValueError(f"{node} needs the source's words, but the INVERSION was made from a CONDITIONING without "
                         "them: connect Prompt Edit's source CONDITIONING to the inversion node.")
    for i, pair in enumerate(edit.pairs):
        held = inversion.tokens[i % inversion.batch % len(inversion.tokens)]
        if held != pair.source:
            raise ValueError(f"The INVERSION was made from {held.text!r}, but Prompt Edit's source is "
                             f"{pair.source.text!r}: connect the same Prompt Edit to both.")
    require_columns(inversion.tokens, *inversion.conditioning[0])


def check_attention(attention, inversion):
    """ATTENTION and INVERSION must show the same pictures."""
    def describe(prompts, pictures, size):
        return f"{pictures} pictures on a latent of {size[0]} × {size[1]} ({', '.join(repr(t.text) for t in prompts)})"
    shown = attention.tokens if attention.source is None else attention.source
    mine, theirs = (describe(tokens or (), pictures, size) for tokens, pictures, size in (
        (dict.fromkeys(shown), len(attention.maps), attention.latent),
        (dict.fromkeys(inversion.tokens or ()), inversion.batch, inversion.shape[-2:])))
    if mine != theirs:
        raise ValueError(f"The ATTENTION is of {mine}, but the INVERSION of {theirs}: connect the same INVERSION to "
                         "Attention Store.")


def check_trajectory(model, inversion, name):
    """The INVERSION must fit the model's family and hold the source's latents."""
    check_family(model, inversion)
    if inversion.latents is None:
        raise ValueError(f"{name} needs the source's latents, but the {inversion.method} INVERSION has none: invert "
                         "with a method that keeps its trajectory, such as DDIM Invert.")


def check_span(node, start, end, paper):
    if start >= end:
        raise ValueError(f"{node} runs from {start} to {end} of the schedule, so it would change nothing: set its end "
                         f"above its start (paper: {paper}).")


def check_words(node, words, attention):
    """Words need an ATTENTION, and an ATTENTION needs words."""
    if bool(words.strip()) != (attention is not None):
        has, lacks = ("words of the source", "ATTENTION") if words.strip() else ("ATTENTION", "words of the source")
        raise ValueError(f"{node} has {has} but no {lacks}: connect Attention Store and name the words, or do neither.")


def check_some(node, what, mask):
    """A mask [B, h, w] must not be empty for any picture."""
    if not mask.flatten(1).any(1).all():
        empty = int((~mask.flatten(1).any(1)).sum())
        raise ValueError(f"{node} finds no {what} in {empty} of {len(mask)} masks: paint it, choose other words, or "
                         "change the threshold.")


def check_prompt_alone(whose, conditioning, hooks=True):
    """ValueError on what an editor's own prompt cannot have. Hooks of weights may stay where it has a forward of its
    own."""
    wrong = [k for k in REFUSED if k != "hooks" or not hooks]
    kept = next((k for _, extras in conditioning for k in wrong if extras.get(k) is not None), None)
    if kept:
        raise ValueError(f"{whose} carries {kept!r}, but must be a plain prompt: remove {REFUSED[kept]} from it.")


def check_concept(name, scale, warmup, cooldown):
    if not scale:
        raise ValueError(f"{name} at scale 0 would change nothing: raise it (paper: 5), or remove the node.")
    if warmup >= cooldown:
        raise ValueError(f"{name} warms up until {warmup:g} and cools down from {cooldown:g}, so no step is left: "
                         "lower warmup or raise cooldown (paper: 0.2 and 1).")
