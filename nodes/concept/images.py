"""Concept Images and Class Images."""
import re
from collections.abc import Sequence
from typing import NamedTuple

import comfy.samplers
import torch
import torch.nn.functional as F
from comfy_api.latest import io, ui

import nodes

from ...concept.custom_diffusion import at_a_random_size
from ...concept.dreambooth import RARE
from ...editing.concepts import SLOT, ConceptImages, Example
from ...host.canvas import log
from ...host.distilled import reads_guidance
from ...host.sampling import latent_of
from ..inversion.report import decode
from ..search import aliases
from .widgets import ConceptImagesType

NODE = "Concept Images"
SHOTS = "a photo of a *", "a close photo of a *", "a photo of a * from afar", "a picture of a * in soft light"
PLACES = ("in a room", "on a table", "on a street", "in a garden", "in a forest", "on a beach", "in the snow",
          "by a window", "in front of a wall", "at night")
RICH = [f"{shot} {place}" for place in PLACES for shot in SHOTS]  # as He et al. 2023 have a language model write them
AT_ONCE = 4  # pictures of the class that are sampled together


def lines(text: str) -> list[str]:
    return [line for line in map(str.strip, text.splitlines()) if line]


def captions_of(given: Sequence[str]) -> list[str]:
    """The lines of one text, or each of several texts."""
    return lines(given[0]) if len(given) == 1 else [" ".join(lines(text)) for text in given]


def once(node: str, **given) -> dict:
    """The values of inputs that are asked once, of a node that takes lists."""
    many = next((name for name, values in given.items() if len(values) != 1), None)
    if many:
        raise ValueError(f"{node} takes all its pictures at once, and '{many}' has {len(given[many])} values for them: "
                         "give it one. Only pictures, their captions and masks may be lists.")
    return {name: value for name, (value,) in given.items()}


def require_one_size(mask, images):
    if mask.shape[1:] != images.shape[1:3]:
        raise ValueError(f"The masks have {mask.shape[2]} × {mask.shape[1]} pixels, the pictures {images.shape[2]} × "
                         f"{images.shape[1]}: paint them on the pictures as they are here, after resizing.")


def on_latents(mask, images, vae, latents):
    """Masks [N,H,W] of pictures [B,H,W,3] on the cells of their latents, cropped as the VAE crops what it encodes."""
    require_one_size(mask, images)
    seen = vae.vae_encode_crop_pixels(mask[..., None].expand(-1, -1, -1, 3))[..., 0]
    return F.interpolate(seen[:, None].float().cpu(), size=latents.shape[-2:])[:, 0]


class Shot(NamedTuple):
    """A picture [1,H,W,3], its caption, and where it is learned [1,H,W]."""
    picture: torch.Tensor
    caption: str
    area: torch.Tensor | None


def shots(node: str, images: Sequence, vae, captions: Sequence[str], masks: Sequence) -> list[Shot]:
    """Those of a list of batches of pictures [B,H,W,C]. captions, masks: one for all, or one each."""
    pictures = [picture[None] for batch in images for picture in batch]
    areas = [area for mask in masks if mask is not None for area in mask.reshape(-1, 1, *mask.shape[-2:])]
    count, least = len(pictures), vae.spacial_compression_encode()
    if not pictures:
        raise ValueError(f"{node} has {len(captions)} captions and no picture: connect three to five pictures "
                         "of the concept, or one.")
    if len(captions) not in (1, count):
        raise ValueError(f"{node} has {count} pictures and {len(captions)} captions: write one line for all, or one "
                         "line for each.")
    if len(areas) not in (0, 1, count):
        raise ValueError(f"{node} has {count} pictures and {len(areas)} masks: connect one for all, or one for each.")
    tiny = next((p for p in pictures if min(p.shape[1:3]) < least), None)
    if tiny is not None:
        raise ValueError(f"A picture is {tiny.shape[2]} × {tiny.shape[1]} pixels, and the VAE makes one cell of "
                         f"{least} × {least}: connect pictures of about the model's size, through Size for the Model.")
    captions, areas = (list(given) * count if len(given) == 1 else list(given) for given in (captions, areas or [None]))
    for area, picture in zip(areas, pictures):
        if area is not None:
            require_one_size(area, picture)
    return [Shot(p[..., :3].expand(-1, -1, -1, 3), text, area) for p, text, area in zip(pictures, captions, areas)]


def mirrored(shot: Shot) -> Shot:
    return Shot(shot.picture.flip(2), shot.caption, None if shot.area is None else shot.area.flip(-1))


def resized(shot: Shot, vae, generator) -> Shot:
    whole = shot.picture.new_ones(shot.picture.shape[:3])
    picture, area, words = at_a_random_size(shot.picture[0], (whole if shot.area is None else shot.area.to(whole))[0],
                                            vae.spacial_compression_encode(), generator)
    rest = re.sub(r"^(an?|the)\s+", "", shot.caption, flags=re.IGNORECASE)  # "a far away photo of"
    return Shot(picture[None], f"{words} {rest}", area[None]) if words else shot


def encoded(vae, shown: Sequence[Shot]) -> list[Example]:
    found = []
    for picture, text, area in shown:
        latent = vae.encode(picture).cpu()
        masks = {} if area is None else {SLOT: on_latents(area, picture, vae, latent)[0]}
        found.append(Example(latent[0], text, masks))
    return found


def named(nouns: str) -> list[str]:
    """Nouns with commas between."""
    return [" ".join(noun.split()) for noun in nouns.split(",") if noun.strip()]


def class_prompts(templates, nouns, count) -> list[str]:
    """Prompts of the first noun, and every third one of the others, each with the templates in turn. ValueError where
    one of them has none."""
    first, *others = nouns
    of_others = count // 3 if others else 0
    if of_others < len(others):
        raise ValueError(f"Of {count} class pictures {of_others} are of other things, and {len(others)} of these are "
                         f"named: make {3 * len(others)} pictures or more, or name fewer.")
    found = [templates[i % len(templates)].replace(SLOT, first) for i in range(count - of_others)]
    return found + [templates[i // len(others) % len(templates)].replace(SLOT, others[i % len(others)])
                    for i in range(of_others)]


def say_guidance(model, cfg):
    """Warns of a guidance upon another."""
    if cfg > 1 and reads_guidance(model):
        log.warning("The %s MODEL is told its guidance and was distilled to it, and CFG %g upon it burns the pictures: "
                    "set cfg to 1.", type(model.model).__name__, cfg)


class PalimpsestConceptImages(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestConceptImages", display_name=NODE, category="palimpsest/concept",
            **aliases("training images", "dataset", "my photos", "captions"),
            description="Pictures to learn a concept from, with a caption for each. Three to five are usual.",
            is_input_list=True,
            inputs=[
                io.Image.Input("images", tooltip=(
                    "A batch, or a list of pictures of any sizes, as loaders of a folder give it.")),
                io.Vae.Input("vae"),
                io.String.Input("captions", multiline=True, default="a photo of *", tooltip=(
                    "What the pictures show, one line for all or one line a picture, or a list of texts. * stands for "
                    "what is learned: 'a photo of a * dog on the beach'. Say what is not part of it, such as the "
                    "place.")),
                io.String.Input("identifier", default=RARE, tooltip=(
                    "What * reads as in the captions, where no new word is learned. Use it in prompts later. A rare "
                    f"token. diffusers: {RARE}.")),
                ConceptImagesType.Input("more", optional=True, tooltip="More pictures of the same concept."),
                io.Mask.Input("mask", optional=True, tooltip=(
                    "Where the concept is, one for all pictures or one each. Nothing else of them is learned. Without "
                    "it the whole picture is.")),
                io.Boolean.Input("flip", default=False, optional=True, tooltip=(
                    "Whether the mirrored pictures are learned too. Leave it off for lettering and faces.")),
                io.Int.Input("sizes", default=0, min=0, max=100, optional=True, tooltip=(
                    "How many times more each picture is learned, at sizes as Custom Diffusion draws them: of ten, "
                    "three are smaller, with 'a far away' or 'very small' before the caption, three larger, with "
                    "'zoomed in' or 'close up', and four as it is. So a concept that its pictures show large can be "
                    "drawn small.")),
                io.Int.Input("seed", default=0, min=0, max=2 ** 64 - 1, optional=True, tooltip="Of the random sizes.")
            ],
            outputs=[ConceptImagesType.Output(display_name="concept images")])

    @classmethod
    def execute(cls, images, vae, captions, identifier, more=(), mask=(), flip=(False,), sizes=(0,),
                seed=(0,)) -> io.NodeOutput:
        vae, identifier, flip, sizes, seed = once(NODE, vae=vae, identifier=identifier, flip=flip, sizes=sizes,
                                                  seed=seed).values()
        examples = [example for part in more for example in part.examples]
        strange = next((part.identifier for part in more if part.identifier != identifier), None)
        if strange is not None:
            raise ValueError(f"The pictures of 'more' call the concept {strange!r}, these {identifier!r}: give both "
                             "one identifier.")
        shown = shots(NODE, images, vae, captions_of(captions), mask)
        shown += [mirrored(shot) for shot in shown] if flip else []
        generator = torch.Generator().manual_seed(seed)
        more_sizes = encoded(vae, [resized(shot, vae, generator) for shot in shown for _ in range(sizes)])
        examples += encoded(vae, shown)
        # a crop may show nothing that is learned
        examples += [e for e in more_sizes if not e.masks or e.masks[SLOT].any()]
        return io.NodeOutput(ConceptImages(tuple(examples), identifier))


class PalimpsestClassImages(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestClassImages", display_name="Class Images", category="palimpsest/concept",
            **aliases("regularization images", "regularisation images", "class pictures", "prior"),
            description="Pictures of a concept's class, made by the model before it learns. For Prior Preservation.",
            inputs=[
                io.Model.Input("model"), io.Clip.Input("clip"), io.Vae.Input("vae"),
                io.String.Input("noun", default="", tooltip=(
                    "The class: 'dog' for your dog. Other things that should stay as they are may follow, with commas "
                    "between: 'dog, cat, person'. Every third picture is then of them.")),
                io.String.Input("templates", multiline=True, default="a photo of a *", tooltip=(
                    "Prompts, one a line, used in turn. * stands for the noun. Paper: 'a *'. Many different lines "
                    "keep more of the class, among them one with the noun alone. Empty: forty that say shot and "
                    "place (He et al. 2023), and the plain one.")),
                io.Int.Input("count", default=100, min=1, max=10_000, tooltip=(
                    "How many pictures. Paper: 200 for each of the concept's. diffusers: 100.")),
                io.Int.Input("width", default=512, min=16, max=16_384, step=8, tooltip="In pixels, the model's size."),
                io.Int.Input("height", default=512, min=16, max=16_384, step=8, tooltip="In pixels, the model's size."),
                io.Int.Input("steps", default=20, min=1, max=10_000, tooltip="Of sampling. diffusers: 50."),
                io.Float.Input("cfg", default=7.5, min=0.0, max=100.0, step=0.1, tooltip="diffusers: 7.5. The "
                                                                                         "miniature: 3."),
                io.Combo.Input("sampler_name", options=comfy.samplers.SAMPLER_NAMES, default="ddim",
                               tooltip="ComfyUI's sampler."),
                io.Combo.Input("scheduler", options=comfy.samplers.SCHEDULER_NAMES, default="ddim_uniform",
                               tooltip="ComfyUI's schedule."),
                io.Int.Input("seed", default=0, min=0, max=2 ** 64 - 1, control_after_generate=True,
                             tooltip="Of the first pictures' noise. Each call of the sampler has its own."),
            ],
            outputs=[ConceptImagesType.Output(display_name="class images"), io.Image.Output()])

    @classmethod
    def execute(cls, model, clip, vae, noun, templates, count, width, height, steps, cfg, sampler_name, scheduler,
                seed) -> io.NodeOutput:
        texts, nouns = lines(templates) or ["a photo of a *", *RICH], named(noun)
        if not nouns or SLOT in noun or not all(SLOT in text for text in texts):
            raise ValueError(f"Class Images has the noun {noun!r} and the templates {texts}: give a noun, and write "
                             f"{SLOT} in each template alone, where it stands.")
        prompts = class_prompts(texts, nouns, count)
        say_guidance(model, cfg)
        conditionings = {text: clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in {"", *prompts}}
        ratio = vae.spacial_compression_encode()
        empty = torch.zeros(1, 4, height // ratio, width // ratio)
        latents = []
        # one prompt a call of the sampler; equal ones share it
        for text in dict.fromkeys(prompts):
            for start in range(0, prompts.count(text), AT_ONCE):
                many = min(AT_ONCE, prompts.count(text) - start)
                latent = {"samples": latent_of(model, empty.repeat(many, 1, 1, 1))}
                own = (seed + len(latents)) % (2 ** 64 - 1)  # the host's ddim adds 1
                made, = nodes.common_ksampler(model, own, steps, cfg, sampler_name, scheduler, conditionings[text],
                                              conditionings[""], latent)
                latents += [(z, text) for z in made["samples"].cpu()]
        pictures = torch.cat([decode(vae, z[None]) for z, _ in latents])
        examples = tuple(Example(z, text) for z, text in latents)
        return io.NodeOutput(ConceptImages(examples), pictures, ui=ui.PreviewImage(pictures[:16], cls=cls))
