"""Add-it, shown and measured."""
from ...nodes.attention.add_it import PalimpsestExtendedAttention
from ...nodes.attention.store import PalimpsestAttentionStore
from ...nodes.blending.local_blend import PalimpsestLatentBlend
from .. import Example
from ..drawing import CFG, Workflow, inverted
from ..pictures import decoded, scene
from ..rows import SceneRow, as_it_is, fresh, on_inversion, output

STEPS, LATER = 20, 0.9  # of the miniature; the authors begin at step 2 of 30
ANEW = {"only": "flow", "kinds": ("add",), "start": 0.066, "anew": True}
BLEND = 0.5  # where they blend


def begun(c, p):
    """The inversion, and what a sampler takes for structure transfer: the picture's own latent with new noise, at the
    level of a later step."""
    inversion = inverted(c, p, steps=STEPS, scheduler="simple")
    later = c.node("SplitSigmasDenoise", "Start later", sigmas=inversion["sigmas"], denoise=LATER)["low_sigmas"]
    euler = c.node("KSamplerSelect", "Sampler", sampler_name="euler")["SAMPLER"]
    return inversion["inversion"], {"sampler": euler, "sigmas": later, "latent_image": p.encoded["LATENT"],
                                    "add_noise": True, "noise_seed": 0, "cfg": CFG}


def sampled(c, p, model, start):
    return c.node("SamplerCustom", "Sample the edit", 130, model=model, positive=p.words["target"],
                  negative=p.null["CONDITIONING"], **start)["output"]


def extended(c, p, inversion):
    return c.node("PalimpsestExtendedAttention", model=p.loader["MODEL"], inversion=inversion)["MODEL"]


def added(c, p, _):
    """All three parts."""
    inversion, start = begun(c, p)
    c.column(300)
    model = extended(c, p, inversion)
    attention = c.node("PalimpsestAttentionStore", model=p.loader["MODEL"], inversion=inversion,
                       prompt_edit=p.words["prompt edit"])["ATTENTION"]
    c.column(300)
    blended = c.node("PalimpsestLatentBlend", model=model, inversion=inversion, attention=attention,
                     choose_words="auto", start=BLEND)["MODEL"]
    c.column(290)
    return {"LATENT": sampled(c, p, blended, start)}


WORKFLOW = Workflow(
    "Add an object from new noise (Add-it)",
    "2. On Flux: 30 steps, *Split Sigmas Denoise* at 0.93 (0.87 for a photo), CFG 1, a FluxGuidance of 3.5 behind the "
    "target, and of 1 behind a photo's source. For a photo also `weight` 1.1, and *Latent Blend* `start` 0.6.\n\n"
    "The picture's latent gets new noise. Words and picture look up the "
    "source while they are sampled, and *Latent Blend* brings back the rest. Another *noise_seed* draws another "
    "object.",
    added, 68, kind="add", seed=8, invert=None, model="Flux")


def page(c, label):
    p = scene(c, **WORKFLOW.scene, model="Flux")
    inversion, start = begun(c, p)
    decoded(c, "new noise alone", p, sampled(c, p, p.loader["MODEL"], start))
    decoded(c, label, p, sampled(c, p, extended(c, p, inversion), start))


held = on_inversion(PalimpsestExtendedAttention)


def around_words(scenes, model, inversion):
    """Outside the place of the new words."""
    attention = output(PalimpsestAttentionStore, model=model, inversion=inversion, prompt_edit=scenes.edit)
    return output(PalimpsestLatentBlend, model=held(scenes, model, inversion), inversion=inversion, start=BLEND,
                  attention=attention, target_words=", ".join(fresh(scenes, "new")))


EXAMPLE = Example(
    "Add-it",
    workflows=(WORKFLOW,),
    pages={"PalimpsestExtendedAttention": page},
    scenes=(SceneRow("new noise", as_it_is, 92, **ANEW),
            SceneRow("Extended Attention, new noise", held, 93, **ANEW),
            SceneRow("Extended Attention + Latent Blend (words), new noise", around_words, 94, singly=True, **ANEW),
            SceneRow("Extended Attention + Latent Blend (true mask), new noise",
                     on_inversion(PalimpsestLatentBlend, held, True, start=BLEND), 95, **ANEW)))
