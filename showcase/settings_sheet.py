"""Settings Sheet, shown."""
from . import Example
from .drawing import (
    BLUE,
    BOTH,
    BROWN,
    CFG,
    GREEN,
    YELLOW,
    Drawing,
    encoded,
    injected,
    inverted,
    picture_and_words,
    replay,
)
from .pictures import scene

ABOUT = BOTH + """2. On SD: CFG 7.5, `self_resolution` 0.5 in *Attention Inject*. In *Settings Sheet*, `x` and `y` \
name settings by a node's title and its input. A name that is not there lists all that are. Write the values to try \
below them.
3. Run. The inversion runs once for all cells. A second run makes only cells that are new. A cancelled run keeps the \
cells that are done."""
SHAPE = {"seed": 12, "kind": "object"}
SHEET = {"x": "Attention Inject.self_end", "x_values": "0.2, 0.6, 0.8, 1", "y": "Sample the edit.cfg",
         "y_values": "1.5, 3, 7.5"}


def edit(c, p, inversion):
    """The picture of Attention Inject's edit."""
    latent = replay(c, "Sample the edit", injected(c, p, inversion)["MODEL"], inversion, p.words["target"],
                    p.null["CONDITIONING"], CFG)["output"]
    return c.node("VAEDecode", "Edited", samples=latent, vae=p.loader["VAE"])["IMAGE"]


def compared(c, edited):
    c.node("PalimpsestSettingsSheet", None, 440, image=edited, **SHEET)


def draw(c):
    """Try the values of two settings and see all pictures on one sheet."""
    with c.group("1  Picture and words", BLUE):
        p = picture_and_words(c, ABOUT, 370, SHAPE)
        p.null = encoded(c, p, "Null prompt", "")
    c.row()
    with c.group("2  Invert", GREEN):
        c.column(300)
        inversion = inverted(c, p, steps=20)
    with c.group("3  Edit", BROWN):
        c.column(320)
        edited = edit(c, p, inversion)
    c.beside()
    with c.group("4  Compare settings", YELLOW):
        c.column(760)
        compared(c, edited)


def page(c, label):
    p = scene(c, **SHAPE, source=None)
    compared(c, edit(c, p, inverted(c, p, steps=20)))


WORKFLOW = Drawing("Two settings side by side (Settings Sheet)", draw, 15, shows=("Settings Sheet",))
EXAMPLE = Example("Settings Sheet", workflows=(WORKFLOW,), pages={"PalimpsestSettingsSheet": page})
