"""DreamBooth, shown."""
from .. import Example
from ..drawing import BLUE, BROWN, CFG, GREEN, Drawing, sampled, subject_given
from ..folds import Blueprint

NOUN, NAME, SCENE = "what it is", "its name in prompts", "a new scene"
SAYS, FILE = "what the pictures show", "name of the file"
SUBJECT, STEPS, PROMPT = 3, 60, "a photo of a sks circle on a brick background"  # of the miniature's
ABOUT = """Press **Run**. The small model learns an object that no word of its prompts describes, from four pictures: \
about two minutes on a processor. It shows itself in the new scene as it learns.

### With your own model and pictures
1. Put **Load Checkpoint** (SD1.x, SD2.x or SDXL) in place of *Load Miniature*, and three to five of your pictures \
in place of *Miniature Subject*: a **Load Image** each, joined by **Batch Images**, \
or a folder by **Load Image (from Folder)**.
2. Say **what it is** in a word. Say what each picture shows, one a line, `a * dog on grass`: what you say is not \
learned with it. Leave it empty if you are in a hurry.
3. In the node: steps 500, learning rate 1e-4, pictures a step 1, pictures of its class 50, guidance 7.5.
4. In *Empty Latent Image*: 512 × 512 (SDXL: 1024 × 1024). In *KSampler*: CFG 7.5. Name your \
subject in its prompt.
5. Its name may be a new word, *embedding:mine*. It keeps more of its looks in new places, and has a second file, in \
output/embeddings. In other workflows write that file's name, *embedding:mine_00001_*.

The LoRA file in output/loras works in every workflow, without this pack."""


def learned(c):
    """Learn a Subject, and its files."""
    with c.group("1  Model and pictures", BLUE):
        model, clip, vae, images = (c.takes(name, kind) for name, kind in (
            ("model", "MODEL"), ("clip", "CLIP"), ("vae", "VAE"), ("images", "IMAGE")))
        c.column(320)
        sized = c.node("PalimpsestModelSize", model=model, image=images)["IMAGE"]
    with c.group("2  Learn", GREEN):
        c.column(340)
        noun, name, says, scene = (c.asks(NOUN, "dog"), c.asks(NAME), c.asks(SAYS, "", multiline=True),
                                   c.asks(SCENE, "", multiline=True))
        subject = c.node("PalimpsestLearnSubject", None, 300, model=model, clip=clip, vae=vae, images=sized, noun=noun,
                         identifier=name, captions=says, new_scene=scene, steps=c.asks("steps"),
                         lr=c.asks("learning rate"), batch=c.asks("pictures a step"),
                         class_count=c.asks("pictures of its class"), cfg=c.asks("guidance"))
        c.column(300)
        files = c.node("PalimpsestSaveConcept", None, 60, concept=subject["concept"], name=c.asks(FILE))["files"]
    for output, end in (("model", subject["MODEL"]), ("clip", subject["CLIP"]), ("concept", subject["concept"]),
                        ("looks", subject["looks"]), ("files", files)):
        c.gives(output, end)


BLUEPRINT = Blueprint(
    "Learn a Subject (SD1.5, SD2, SDXL)",
    "Learn a thing, an animal or a person from a few pictures: a MODEL that knows it, and a LoRA file. For any SD1.x, "
    "SD2.x or SDXL checkpoint.", learned, "Image generation and editing/Text to image", order=50)


def draw(c):
    """Four pictures of an object, what is learned of them, and a new picture of it."""
    with c.group("1  Model and pictures", BLUE):
        c.column(400)
        c.note("How to use it", ABOUT, 420)
        loader = c.node("PalimpsestLoadMiniature")
        given = c.node("PalimpsestMiniatureSubject", None, 180, seed=SUBJECT)
    with c.group("2  Learn", GREEN):
        c.column(420)
        node = c.folded(BLUEPRINT, inputs={
            "model": loader["MODEL"], "clip": loader["CLIP"], "vae": loader["VAE"], "images": given["images"],
            NOUN: given["noun"], SAYS: given["captions"], SCENE: given["new caption"], "steps": STEPS,
            "learning rate": 2e-3, "pictures a step": 4, "pictures of its class": 20, "guidance": CFG})
        c.node("PreviewImage", "As it learned", 240, images=node["looks"])
    with c.group("3  A new picture", BROWN):
        c.column(320)
        words = c.node("CLIPTextEncode", "Its prompt", clip=node["clip"], text=PROMPT)
        null = c.node("CLIPTextEncode", "Null prompt", clip=node["clip"], text="")
        empty = c.node("EmptyLatentImage", width=128, height=128, batch_size=4)
        c.column(300)
        sampled = c.node("KSampler", model=node["model"], positive=words["CONDITIONING"], negative=null["CONDITIONING"],
                         latent_image=empty["LATENT"], seed=0, cfg=CFG, sampler_name="ddim", scheduler="ddim_uniform")
        picture = c.node("VAEDecode", samples=sampled["LATENT"], vae=loader["VAE"])
        c.column(420)
        c.node("SaveImage", "In a new place", 400, images=picture["IMAGE"], filename_prefix="palimpsest/subject")


BLUE_ONE = "a photo of a blue circle on a sand background"
TEMPLATES = "\n".join(("a photo of a * on a wall background", *(
    f"a photo of a {colour} * on a {ground} background" for colour, ground in (
        ("red", "grass"), ("green", "sand"), ("purple", "wall"), ("blue", "brick"), ("yellow", "sky")))))
BEFORE, WITHOUT, WITH = "Before", "Without its class", "With its class"
KEEPS = """Press **Run**. The small model learns an object twice, three minutes on a processor. The first time other \
circles take on stripes of that object. The second time pictures of circles, which the model made before, are learned \
along, and a blue circle stays a blue circle.

### With your own model and pictures
1. Put **Load Checkpoint** (SD1.x, SD2.x or SDXL) in place of *Load Miniature*, and three to five of your pictures in \
place of *Miniature Subject*.
2. In *Class Images*: what it is, `templates` empty, 100 pictures of the model's size, CFG 7.5. They are made once, \
however often you learn.
3. In *LoRA Weights*: learning rate 1e-4. In *Learn Concept*: 500 steps, batch 1. Keep one of the two rows.
4. In *Empty Latent Image*: 512 × 512 (SDXL: 1024 × 1024). In *KSampler*: CFG 7.5, and your own prompts.

**Custom Diffusion (K, V)**, **SVDiff** and **DreamBooth (All Weights)** stand in the place of *LoRA Weights*. \
**Direct Consistency (DCO)** and **SuDe** stand in the place of *Prior Preservation*, without class pictures."""


def draw_class(c):
    """An object learned without and with its class, and pictures of both."""
    with c.group("1  Model and pictures", BLUE):
        loader, given, images = subject_given(c, KEEPS, 640, SUBJECT)
        weights = c.node("PalimpsestLearnLoRA", lr=4e-3, rank=8, layers="all", text_encoder=True)["trainable"]
    with c.group("2  Its class", GREEN):
        c.column(340)
        others = c.node("PalimpsestClassImages", None, 200, model=loader["MODEL"], clip=loader["CLIP"],
                        vae=loader["VAE"], noun=given["noun"], templates=TEMPLATES, count=20, width=128, height=128,
                        cfg=CFG)
        prior = c.node("PalimpsestPriorPreservation", class_images=others["class images"], predicted=True)["objective"]
        c.column(300)
        null = c.node("CLIPTextEncode", "Null prompt", clip=loader["CLIP"], text="")
        empty = c.node("EmptyLatentImage", width=128, height=128)
        blue = c.node("CLIPTextEncode", "A blue circle", clip=loader["CLIP"], text=BLUE_ONE)["CONDITIONING"]
        c.column(300)
        sampled(c, f"{BEFORE}: a blue circle", loader["MODEL"], blue, null, empty["LATENT"], loader["VAE"], "class")
    for title, objective in ((WITHOUT, {}), (WITH, {"objective": prior})):
        c.row()
        with c.group(title, BROWN):
            c.column(320)
            learned = c.node("PalimpsestLearnConcept", model=loader["MODEL"], clip=loader["CLIP"], images=images,
                             trainable=weights, steps=150, batch=4, **objective)
            for shows, text in (("the subject", PROMPT), ("a blue circle", BLUE_ONE)):
                c.column(300)
                prompt = c.node("CLIPTextEncode", shows.capitalize(), clip=learned["CLIP"], text=text)["CONDITIONING"]
                sampled(c, f"{title}: {shows}", learned["MODEL"], prompt, null, empty["LATENT"], loader["VAE"],
                        "class")


TITLE = "Learn a subject from four pictures (DreamBooth)"
KEPT = Drawing("Keep the class as a subject is learned (DreamBooth)", draw_class, 401, shows=(
    "Miniature Subject", f"{BEFORE}: a blue circle",
    *(f"{row}: {shows}" for row in (WITHOUT, WITH) for shows in ("the subject", "a blue circle"))))
EXAMPLE = Example("DreamBooth", workflows=(Drawing(TITLE, draw, 400), KEPT), blueprints=(BLUEPRINT,))
