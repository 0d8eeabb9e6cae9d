"""Blending on an inversion, shown and measured."""
from ...nodes.attention.store import PalimpsestAttentionStore
from ...nodes.blending.local_blend import PalimpsestLatentBlend
from .. import Example
from ..drawing import CFG, WORDS, inverted
from ..pictures import ALONE, sample, scene, stored
from ..rows import LATER, CostRow, SceneRow, inject, inject_auto, names, on_inversion, output


def page(c, label):
    p = scene(c)
    inversion = inverted(c, p)
    blended = c.node("PalimpsestLatentBlend", model=p.loader["MODEL"], inversion=inversion["inversion"],
                     attention=stored(c, p, resolution=1.0)["ATTENTION"], source_words=WORDS)
    sample(c, ALONE, p, inversion, "target", CFG)
    sample(c, label, p, inversion, "target", CFG, model=blended["MODEL"])


def by_words(b):
    return output(PalimpsestLatentBlend, model=b.injected(), inversion=b.inversion, attention=b.maps, start=0.2,
                  source_words="star", target_words="star", threshold=0.0)


def maps(scenes, inversion):
    return output(PalimpsestAttentionStore, model=scenes.parts[0], inversion=inversion, prompt_edit=scenes.edit)


def of_words(scenes, model, inversion):
    """The words that an edit removes and those that it brings give the mask."""
    change = scenes.changed[0]
    return output(PalimpsestLatentBlend, model=inject(scenes, model, inversion), inversion=inversion,
                  attention=maps(scenes, inversion), source_words=names(*change.old), target_words=names(*change.new))


def auto(scenes, model, inversion):
    return output(PalimpsestLatentBlend, model=inject_auto(scenes, model, inversion), inversion=inversion,
                  attention=maps(scenes, inversion), choose_words="auto")


LOCAL = "object", "add", "delete", "colour", "material", "pose", "background"
EXAMPLE = Example(
    "Blending on an inversion",
    pages={"PalimpsestLatentBlend": page},
    scenes=(SceneRow("Inject + Latent Blend (true mask)", on_inversion(PalimpsestLatentBlend, inject, masked=True), 20,
                     crossed=True),
            SceneRow("Inject + Latent Blend (both auto)", auto, 14, crossed=True),
            SceneRow("Inject (auto) + Latent Blend (true mask)",
                     on_inversion(PalimpsestLatentBlend, inject_auto, masked=True), 16, crossed=True),
            SceneRow("Inject (auto) + Latent Blend (true mask), CFG 2",
                     on_inversion(PalimpsestLatentBlend, inject_auto, masked=True), 18, cfg=2.0),
            SceneRow("Inject (auto) + Latent Blend (true mask), CFG 3",
                     on_inversion(PalimpsestLatentBlend, inject_auto, masked=True), 17, on="FlowEdit, CFG 3", cfg=3.0),
            SceneRow("Inject (auto) + Latent Blend (true mask), CFG 3, start 0.25",
                     on_inversion(PalimpsestLatentBlend, inject_auto, masked=True), 17, on="FlowEdit, CFG 3", cfg=3.0,
                     start=LATER, kinds=("pose",)),
            SceneRow("Inject (auto) + Latent Blend (true mask), CFG 3, start 0.25, n_avg 4",
                     on_inversion(PalimpsestLatentBlend, inject_auto, masked=True), 17, on="FlowEdit, CFG 3, n_avg 4",
                     cfg=3.0, start=LATER, kinds=("pose",)),
            SceneRow("Inject (auto) + Latent Blend (true mask), CFG 2.5, n_avg 4",
                     on_inversion(PalimpsestLatentBlend, inject_auto, masked=True), 17, on="FlowEdit, CFG 2.5, n_avg 4",
                     cfg=2.5, kinds=("material",)),
            SceneRow("Inject + Latent Blend (words)", of_words, 22, kinds=LOCAL, singly=True)),
    costs=(CostRow("Attention Inject, Latent Blend by words", by_words, 30, large=True, joint=True),),
    elsewhere="Change a word, step by step (Prompt-to-Prompt)")
