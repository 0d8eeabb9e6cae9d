"""SEGA, shown and measured."""
from ...nodes.guidance.sega import PalimpsestSEGAGuidance
from .. import Example
from ..drawing import Workflow, encoded, inverted
from ..pictures import before_and_after, scene
from ..rows import CostRow, SceneRow, output
from ..rows import concept as brought


def concept(c, p, inversion=None):
    added = encoded(c, p, "Concept", "a photo of a blue dotted circle")
    return c.node("PalimpsestSEGAGuidance", model=p.loader["MODEL"], concept=added["CONDITIONING"], threshold=0.75,
                  warmup=0.4)


def concept_and_regions(c, p, inversion):
    guided = concept(c, p)
    c.column(400)
    c.node("PalimpsestSEGARegions", None, 260, model=guided["MODEL"], inversion=inversion["inversion"],
           negative=p.null["CONDITIONING"], image=p.picture)
    return guided


WORKFLOW = Workflow(
    "Add a concept (SEGA)",
    "2. *Concept* is what to add or remove. Chain one *SEGA Guidance* per concept. On SD: CFG 7.5, threshold "
    "0.9, warmup 0.2.\n\nThe source prompt is sampled. The concept acts only where the model sees it.",
    concept_and_regions, 150, seed=1, target="source")


def regions(c, label):
    p = scene(c, **WORKFLOW.scene, source=None)
    concept_and_regions(c, p, inverted(c, p))


def edit(scenes, model, inversion):
    texts, direction = brought(scenes)
    return output(PalimpsestSEGAGuidance, model=model, concept=scenes.encoded(texts), direction=direction,
                  threshold=0.75)  # for the miniature's scenes


def concepts(count):
    """A CostRow's edit: `count` concepts."""
    def edit(b):
        model = b.model
        for _ in range(count):
            model = output(PalimpsestSEGAGuidance, model=model, concept=b.target, warmup=0.0)
        return model
    return edit


EXAMPLE = Example(
    "SEGA",
    workflows=(WORKFLOW,),
    pages={"PalimpsestSEGAGuidance": before_and_after(WORKFLOW, "source prompt alone", edit=concept),
           "PalimpsestSEGARegions": regions},
    scenes=(SceneRow("SEGA", edit, 140, samples="source"),),
    costs=(CostRow("SEGA, one concept", concepts(1), 160, large=True),
           CostRow("SEGA, three concepts", concepts(3), 170)))
