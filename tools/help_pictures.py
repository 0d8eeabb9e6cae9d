"""The pictures of the nodes' help pages, before and after, each made by this pack on the miniature:
web/docs/<node>/example.jpg.

COMFYUI_PATH names the host. Give ids of nodes to draw these only, with or without their "Palimpsest".
"""
import logging
import sys
import tempfile
from dataclasses import replace
from types import SimpleNamespace

from canvas import Canvas, declared, to_api
from pack import ROOT, load_pack
from parts import CFG, picture_and_words, replay
from techniques import TABLE, ddim, encoded, injected, inverted
from workflow import WORDS, host_nodes, object_info

PLACE = ROOT / "web" / "docs"
WIDE, REDUCED = 640, .75  # px of a page at most, and what is left of a tile's size
HIGH = 7.5  # the papers' CFG
ALONE = "target prompt alone"
STRUCTURE, APPEARANCE = (9, "style"), (12, "colour")
CAPTIONS = {"photo": "a photo of a red striped star on a grass background",
            "sketch": "a sketch of a blue heart on a brick background",
            "mosaic": "a mosaic of a yellow ring and a cyan square on a grass background"}


class Sketch(Canvas):
    """A canvas whose shown pictures are the tiles of a page, in their order."""

    def scene(self, seed=12, kind="colour", source="source"):
        """The miniature, a scene and its words, as the techniques take them."""
        p = picture_and_words(self, "", 0, {"seed": seed, "kind": kind})
        p.null = encoded(self, p, "Null prompt", "")
        if source:
            self.show(source, p.picture)
        return p

    def show(self, label, image):
        self.node("PreviewImage", label, images=image)

    def decoded(self, label, p, latent):
        self.show(label, self.node("VAEDecode", samples=latent, vae=p.loader["VAE"])["IMAGE"])

    def mask(self, label, mask):
        self.show(label, self.node("MaskToImage", mask=mask)["IMAGE"])

    def sample(self, label, p, inversion, words="source", cfg=1.0, start=0.0, model=None):
        """What Replay Inversion and the host's sampler make of an inversion."""
        positive = p.words[words] if isinstance(words, str) else words
        sampled = replay(self, label, model or p.loader["MODEL"], inversion, positive, p.null["CONDITIONING"], cfg,
                         start)
        self.decoded(label, p, sampled["output"])


def technique(name, without=ALONE, **changed):
    """A workflow's run: source, the same words from the same inversion without the editor, and with it."""
    def draw(c, label):
        t = replace(TABLE[name], **changed)
        p = c.scene(t.seed, t.kind)
        inversion = t.invert(c, p)
        words = encoded(c, p, "Prompt", t.prompt)["CONDITIONING"] if t.prompt else t.target
        if without:
            c.sample(without, p, inversion, words, t.cfg, t.start)
        c.sample(label, p, inversion, words, t.cfg, t.start, t.edit(c, p, inversion)["MODEL"])
    return draw


def returns(kind, steps, at=1.0, schedule={}, **settings):
    """The source prompt replayed from DDIM's inversion and from this one, both on the same schedule."""
    def draw(c, label):
        p = c.scene()
        c.sample("DDIM Invert", p, inverted(c, p, "PalimpsestDDIMInvert", steps=steps, **schedule), cfg=at)
        c.sample(label, p, invert(c, p, kind, steps, **schedule, **settings), cfg=at)
    return draw


def edits(kind, steps=10, at=HIGH, seed=12, edit="colour", **settings):
    """The target prompt alone from DDIM's inversion and from this one."""
    def draw(c, label):
        p = c.scene(seed, edit)
        c.sample("from DDIM Invert", p, inverted(c, p, "PalimpsestDDIMInvert", steps=steps), "target", at)
        c.sample(label, p, invert(c, p, kind, steps, **settings), "target", at)
    return draw


def both(kind, steps, at, start, **settings):
    """Source and target prompt replayed from one inversion."""
    def draw(c, label):
        p = c.scene()
        inversion = invert(c, p, kind, steps, **settings)
        c.sample("back", p, inversion)
        c.sample("target prompt", p, inversion, "target", at, start)
    return draw


def invert(c, p, kind, steps, **settings):
    """An inversion, or one learned along DDIM's; its negative is the null prompt where it is guided."""
    if "cfg" in settings and kind != "PalimpsestNullTextOptimize":  # which starts from the source prompt
        settings["negative"] = p.null["CONDITIONING"]
    if "inversion" in {name for name, *_ in declared(c.info[kind])}:
        along = inverted(c, p, "PalimpsestDDIMInvert", steps=steps)
        return c.node(kind, model=p.loader["MODEL"], inversion=along["inversion"], **settings)
    return inverted(c, p, kind, steps=steps, **settings)


def ddim_invert(c, label):
    p = c.scene()
    inversion = ddim(c, p)
    c.decoded("its noise", p, inversion["noise"])
    c.sample("back again", p, inversion)


def replayed(c, label):
    p = c.scene()
    inversion = ddim(c, p)
    c.sample("source prompt, CFG 1", p, inversion)
    c.sample("target prompt, CFG 3", p, inversion, "target", CFG)


def regularized(c, label):
    p = c.scene(5)
    c.decoded("DDIM Invert's noise", p, ddim(c, p)["noise"])
    c.decoded("its noise", p, inverted(c, p, "PalimpsestRegularizedInvert", lambda_ac=2, lambda_kl=2)["noise"])


def samples(c, label):
    p = SimpleNamespace(loader=c.node("PalimpsestLoadMiniature"))
    p.null = encoded(c, p, "Null prompt", "")
    for label, text in CAPTIONS.items():
        drawn(c, p, label, p.loader["MODEL"], text)


def drawn(c, p, label, model, text):
    """Text to image."""
    empty = c.node("EmptyLatentImage", width=128, height=128, batch_size=1)
    words = encoded(c, p, label, text)
    sampled = c.node("KSampler", model=model, positive=words["CONDITIONING"], negative=p.null["CONDITIONING"], seed=0,
                     cfg=CFG,
                     latent_image=empty["LATENT"])
    c.decoded(label, p, sampled["LATENT"])


def scene(c, label):
    p = c.scene()
    c.show("exact target", p.scene["exact target"])
    c.mask("edit mask", p.mask)


def stored(c, p, **settings):
    return c.node("PalimpsestAttentionStore", model=p.loader["MODEL"], inversion=ddim(c, p)["inversion"],
                  prompt_edit=p.words["prompt edit"], **settings)


def store(c, label):
    heatmap(c, label, resolution=1.0)


def heatmap(c, label, **settings):
    p = c.scene(source=None)
    c.node("PalimpsestAttentionHeatmap", attention=stored(c, p, **settings)["ATTENTION"], image=p.picture,
           words="green, star, background")


def masked(c, label):
    p = c.scene()
    attention = stored(c, p, resolution=1.0)["ATTENTION"]
    mask = c.node("PalimpsestAttentionMask", attention=attention, words=WORDS, image=p.picture)
    c.mask(f"mask of “{WORDS}”", mask["MASK"])


def blend(c, label):
    p = c.scene()
    inversion = ddim(c, p)
    blended = c.node("PalimpsestLatentBlend", model=p.loader["MODEL"], inversion=inversion["inversion"],
                     attention=stored(c, p, resolution=1.0)["ATTENTION"], source_words=WORDS)
    c.sample(ALONE, p, inversion, "target", CFG)
    c.sample(label, p, inversion, "target", CFG, model=blended["MODEL"])


def diffedit(c, label):
    p = c.scene(4)
    mask = c.node("PalimpsestDiffEditMask", model=p.loader["MODEL"], source=p.words["source"], target=p.words["target"],
                  latent=p.encoded["LATENT"])
    c.mask("its mask", mask["MASK"])
    inversion = ddim(c, p)
    blended = c.node("PalimpsestLatentBlend", model=p.loader["MODEL"], inversion=inversion["inversion"],
                     mask=mask["MASK"])
    c.sample("edit within the mask", p, inversion, "target", CFG, model=blended["MODEL"])


def read(c, p, text, seed, kind, part="source"):
    """A second picture, shown, and its inversion under a text of its own."""
    scene = c.node("PalimpsestMiniatureScene", seed=seed, kind=kind)
    text = text or scene["target text"]
    words = c.node("PalimpsestPromptEdit", clip=p.loader["CLIP"], source=text, target=text)
    latent = c.node("VAEEncode", pixels=scene[part], vae=p.loader["VAE"])
    made = c.node("PalimpsestDDIMInvert", model=p.loader["MODEL"], source=words["source"], latent=latent["LATENT"])
    return scene, words, made


def cross_image(c, label):
    p = c.scene(source=None)
    text = "a photo of a star on a background"
    structure, words, inversion = read(c, p, text, *STRUCTURE)
    appearance, _, other = read(c, p, text, *APPEARANCE)
    editor = c.node("PalimpsestCrossImageAttention", model=p.loader["MODEL"], appearance=other["inversion"])
    c.show("structure", structure["source"])
    c.show("appearance", appearance["source"])
    c.sample(label, p, inversion, words["source"], 1.0, model=editor["MODEL"])


def reweighted(c, label):
    p = c.scene()
    inversion = ddim(c, p)
    c.sample("source prompt", p, inversion, cfg=CFG)
    for weight in ("dotted: 4", "dotted: -1"):
        editor = c.node("PalimpsestAttentionReweight", model=p.loader["MODEL"], word_weights=weight)
        c.sample(weight, p, inversion, cfg=CFG, model=editor["MODEL"])


def style_aligned(c, label):
    t = TABLE["In the style of another picture (Style Aligned)"]
    p = c.scene(t.seed, t.kind)
    reference, _, other = read(c, p, None, 2, "style", "exact target")
    editor = c.node("PalimpsestStyleAligned", model=p.loader["MODEL"], inversion=other["inversion"])
    c.show("reference", reference["exact target"])
    c.sample(label, p, ddim(c, p), t.target, t.cfg, model=editor["MODEL"])


def composite(c, label):
    p = c.scene(14, "add")
    scene, _, reference = read(c, p, None, 2, "add", "exact target")
    inversion = ddim(c, p)
    editor = c.node("PalimpsestInjectComposite", model=p.loader["MODEL"], inversion=inversion["inversion"],
                    reference=reference["inversion"], mask=scene["edit mask"])
    c.show("reference", scene["exact target"])
    whole = encoded(c, p, "whole", "a photo of a yellow star and a white circle on a brick background")
    c.sample(label, p, inversion, whole["CONDITIONING"], 2.5, model=editor["MODEL"])


def delta(c, label):
    t = TABLE["No inversion at all (Delta Denoising Score)"]
    p = c.scene(t.seed, t.kind)
    c.decoded(label, p, t.edit(c, p, None)["LATENT"])


def proximal(c, label):
    p = c.scene()
    inversion = inverted(c, p, "PalimpsestNegativePromptInvert")
    kept = injected(c, p, inversion)
    near = c.node("PalimpsestProximalGuidance", model=kept["MODEL"], inversion=inversion["inversion"])
    c.sample("Attention Inject", p, inversion, "target", HIGH, model=kept["MODEL"])
    c.sample(label, p, inversion, "target", HIGH, model=near["MODEL"])


def direction(c, label):
    p = c.scene(12)
    inversion = ddim(c, p)
    sentences = ["\n".join(f"a photo of a {colour} dotted {shape} on a {ground} background"
                           for shape in ("star", "circle", "heart") for ground in ("sky", "sand"))
                 for colour in ("green", "blue")]
    moved = c.node("PalimpsestEditDirection", clip=p.loader["CLIP"], source_sentences=sentences[0],
                   target_sentences=sentences[1],
                   conditioning=p.words["source"])
    c.sample("source prompt", p, inversion, "source", CFG)
    c.sample("with the direction", p, inversion, moved["CONDITIONING"], CFG)


def report(c, label):
    p = c.scene(source=None)
    inversion = ddim(c, p)
    model = injected(c, p, inversion)["MODEL"]
    sampled = replay(c, "Sample the edit", model, inversion, p.words["target"], p.null["CONDITIONING"], CFG)
    edited = c.node("VAEDecode", samples=sampled["output"], vae=p.loader["VAE"])
    c.node("PalimpsestEditReport", source=p.picture, edited=edited["IMAGE"], mask=p.mask)


def inversion_report(c, label):
    p = c.scene(source=None)
    c.node("PalimpsestInversionReport", model=p.loader["MODEL"], inversion=ddim(c, p)["inversion"], vae=p.loader["VAE"],
           image=p.picture, cfg=HIGH, negative=p.null["CONDITIONING"])


def saved(c, label):
    """What the node itself shows stands after the source."""
    p = c.scene()
    c.node("PalimpsestSaveInversion", label, inversion=ddim(c, p)["inversion"])


def regions(c, label):
    t = TABLE["Add a concept (SEGA)"]
    p = c.scene(t.seed, t.kind, source=None)
    t.edit(c, p, ddim(c, p))


def touched(c, p, inversion):
    concept = encoded(c, p, "Concept", "a photo of a blue star")
    return c.node("PalimpsestSEGAGuidance", model=p.loader["MODEL"], concept=concept["CONDITIONING"], scale=3,
                  threshold=0.75)


SHEETS = {"PalimpsestAttentionHeatmap", "PalimpsestEditReport", "PalimpsestInversionReport", "PalimpsestSEGARegions"}
PAGES = {
    "LoadMiniature": samples,
    "MiniatureScene": scene,
    "DDIMInvert": ddim_invert,
    "Replay": replayed,
    "FixedPointInvert": returns("PalimpsestFixedPointInvert", 10),
    "ReNoiseInvert": returns("PalimpsestReNoiseInvert", 4, schedule={"scheduler": "simple"}),
    "EDICTInvert": returns("PalimpsestEDICTInvert", 20, CFG, cfg=CFG),
    "BDIAInvert": returns("PalimpsestBDIAInvert", 10, gamma=0.5),
    "DirectInvert": returns("PalimpsestDirectInvert", 20, HIGH, cfg=HIGH),
    "NegativePromptInvert": returns("PalimpsestNegativePromptInvert", 20, HIGH),
    "NullTextOptimize": returns("PalimpsestNullTextOptimize", 10, HIGH, cfg=HIGH),
    "PromptTuningInvert": edits("PalimpsestPromptTuningInvert", cfg=HIGH),
    "StyleDiffusionInvert": edits("PalimpsestStyleDiffusionInvert", cfg=HIGH),
    "KVInvert": edits("PalimpsestKVInvert", edit="pose", seed=0, cfg=HIGH),
    "DDPMInvert": both("PalimpsestDDPMInvert", 50, HIGH, 0.36),
    "CycleDiffusionInvert": both("PalimpsestCycleDiffusionInvert", 50, CFG, 0.15),
    "LEDITSInvert": both("PalimpsestLEDITSInvert", 30, CFG, 0.15),
    "RegularizedInvert": regularized,
    "InversionReport": inversion_report,
    "SaveInversion": saved,
    "AttentionStore": store,
    "AttentionHeatmap": heatmap,
    "AttentionMask": masked,
    "AttentionInject": technique("Edit at high guidance (null-text)", invert=ddim, cfg=CFG),
    "MutualSelfAttention": technique("Another pose, the same looks (MasaCtrl)"),
    "PlugAndPlay": technique("The same layout, repainted (Plug-and-Play)", seed=3),
    "FreePromptEdit": technique("Keep the geometry, no source prompt (Free-Prompt Edit)"),
    "PromptMixing": technique("Variations of an object's shape (Prompt Mixing)", "source prompt alone"),
    "CrossImageAttention": cross_image,
    "InjectComposite": composite,
    "LatentBlend": blend,
    "BlendedLatent": technique("A mask that shrinks (Blended Latent)", kind="colour", seed=12),
    "NoiseMask": technique("A mask found on the way (Noise Mask)", seed=12),
    "ObjectAwareBlend": technique("An object with its own step (Object-Aware Blend)", seed=12),
    "DiffEditMask": diffedit,
    "ProximalGuidance": proximal,
    "SEGAGuidance": technique("Add a concept (SEGA)", "source prompt alone", edit=touched),
    "SEGARegions": regions,
    "LEDITS": technique("Add a concept to a picture (LEDITS++)", "source prompt alone"),
    "CrossAttentionGuidance": technique("Held by its attention maps (pix2pix-zero)"),
    "EditDirection": direction,
    "DeltaDenoise": delta,
    "AttendExcite": technique("Nothing left out (Attend-and-Excite)"),
    "AttentionReweight": reweighted,
    "MagicRemover": technique("Take an object away (MagicRemover)", "the prompt alone"),
    "NoiseMapGuidance": technique("Kept by the noise map (Noise Map Guidance)"),
    "SelfGuidance": technique("Move an object (Self-Guidance)", "source prompt alone"),
    "StyleAligned": style_aligned,
    "PromptEdit": replayed,
    "EditReport": report,
}


def page(run, node, draw, info):
    """The page of a node: its own sheet where it draws one, else the sketch's tiles."""
    import numpy as np
    import torch
    from palimpsest.metrics.drawing import sheet, tile
    from PIL import Image

    from headless import place
    c = Sketch(info, node)
    draw(c, info[node]["display_name"].split(" (")[0])
    graph = to_api(c.json(), info)
    if not run(graph):
        raise SystemExit(f"{node}: {run.host.status_messages[-1][1]['exception_message']}")
    images = {key: [np.asarray(Image.open(place(image))) for image in shown["images"]]
              for key, shown in run.host.history_result["outputs"].items() if "images" in shown}
    tiles = [tile(torch.from_numpy(images[key][0] / 255), n["_meta"]["title"])
             for key, n in graph.items() if n["class_type"] in ("PreviewImage", "PalimpsestSaveInversion")]
    whole = (sheet([tiles])[0].numpy() * 255).round().astype(np.uint8) if tiles else \
        next(images[key][0] for key, n in graph.items() if n["class_type"] in SHEETS)
    share = min(REDUCED, WIDE / whole.shape[1])
    return Image.fromarray(whole).resize([round(share * s) for s in whole.shape[1::-1]], Image.Resampling.LANCZOS)


def main(names) -> int:
    logging.disable(logging.WARNING)
    load_pack()
    server = host_nodes()
    server.client_id, server.send_sync = None, lambda *args: None  # nobody is connected
    import folder_paths

    from headless import Executor
    info, run = object_info(), Executor(server)
    with tempfile.TemporaryDirectory() as folder:
        folder_paths.set_output_directory(folder)
        folder_paths.set_temp_directory(folder)
        for name in [n.removeprefix("Palimpsest") for n in names] or PAGES:
            file = PLACE / f"Palimpsest{name}" / "example.jpg"
            page(run, f"Palimpsest{name}", PAGES[name], info).save(file, quality=85)
            print(file, file.stat().st_size, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
