"""DreamMatcher, shown."""
from .. import Example
from ..drawing import BROWN, CFG, VIOLET, Drawing, subject_learned

SUBJECT = 0  # of the miniature's
SHOWN, PROMPT = "a photo of a sks star on a wall background", "a photo of a sks star on a brick background"
REFERENCE, ALONE, MATCHED = "The reference", "The learned model alone", "With DreamMatcher"
ABOUT = """Press **Run**. The small model learns an object from four pictures, one to two minutes on a processor. Then \
it draws it in a new place, alone and with *DreamMatcher*, which takes the object's looks from one of the pictures.

### With your own model and pictures
1. Put **Load Checkpoint** (SD1.x, SD2.x or SDXL) in place of *Load Miniature*, and three to five of your pictures \
in place of *Miniature Subject*. Or leave learning out: a LoRA that knows the subject, by **Load LoRA**, gives MODEL \
and CLIP as well.
2. Say in *Concept Images* what each picture shows, one a line, * for your subject. In *LoRA Weights*: learning \
rate 1e-4. In *Learn Concept*: 500 steps, batch 1.
3. In *Prompt Edit*, the source says what the reference shows and the target the new picture. In *DreamMatcher*, \
**words** names the subject in the target.
4. Sample as many steps as you invert, at CFG 7.5, in an *Empty Latent Image* of the reference's size."""


def draw(c):
    """Four pictures of an object, what is learned of them, and a new picture of it without and with one of them."""
    loader, sized, learned = subject_learned(c, ABOUT, 560, SUBJECT, 200)
    with c.group("3  The reference", VIOLET):
        c.column(320)
        one = c.node("ImageFromBatch", "One of the pictures", image=sized, batch_index=0, length=1)["IMAGE"]
        c.node("PreviewImage", REFERENCE, 240, images=one)
        c.column(320)
        words = c.node("PalimpsestPromptEdit", clip=learned["CLIP"], source=SHOWN, target=PROMPT)
        latent = c.node("VAEEncode", pixels=one, vae=loader["VAE"])["LATENT"]
        inversion = c.node("PalimpsestDDIMInvert", model=learned["MODEL"], source=words["source"], latent=latent,
                           steps=20)["inversion"]
    with c.group("4  A new picture", BROWN):
        c.column(320)
        null = c.node("CLIPTextEncode", "Null prompt", clip=learned["CLIP"], text="")["CONDITIONING"]
        empty = c.node("EmptyLatentImage", width=128, height=128)["LATENT"]
        matched = c.node("PalimpsestDreamMatcher", model=learned["MODEL"], inversion=inversion, words="sks, star")
        for title, model in ((ALONE, learned["MODEL"]), (MATCHED, matched["MODEL"])):
            c.column(300)
            made = c.node("KSampler", model=model, positive=words["target"], negative=null, latent_image=empty, seed=0,
                          steps=20, cfg=CFG, sampler_name="ddim", scheduler="ddim_uniform")["LATENT"]
            picture = c.node("VAEDecode", samples=made, vae=loader["VAE"])["IMAGE"]
            c.node("SaveImage", title, 280, images=picture, filename_prefix="palimpsest/matched")


TITLE = "Keep a learned subject's looks (DreamMatcher)"
EXAMPLE = Example(
    "DreamMatcher",
    workflows=(Drawing(TITLE, draw, 405, shows=(REFERENCE, ALONE, MATCHED)),),
    unmeasured="It draws a learned subject, which SceneBench has none of; `bench dreammatcher` measures it.")
