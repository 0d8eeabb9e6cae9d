"""Every input of Style Aligned, Cross-Image Attention and Attention Reweight acts, and what cannot work is refused."""
import pytest
import torch

from explicit import relative
from style_edits import case, cross, half, style, weigh


def variants(c):
    """{node: [its base settings, and one run per widget or input]}."""
    return {"style": [style(c), style(c, start=0.5), style(c, end=0.5), style(c, shift=0.0), style(c, scale=0.9),
                      style(c, normalise=False), style(c, layers="u2"), style(c, null_too=True), style(c, batch=True)],
            "cross": [cross(c), cross(c, start=0.5), cross(c, end=0.5), cross(c, coarse_end=0.5),
                      cross(c, adain_start=0.5),
                      cross(c, swap_guidance=2.0), cross(c, contrast=1.67), cross(c, layers="u2"),
                      cross(c, appearance=c.inversion), cross(c, adain_start=0.5, structure_mask=half()),
                      cross(c, adain_start=0.5, appearance_mask=half())],
            "weigh": [weigh(c, "cat: 3"), weigh(c, "cat: 2"), weigh(c, "mat: 3"), weigh(c, "cat: 3", start=0.5),
                      weigh(c, "cat: 3", end=0.5), weigh(c, "cat: 3", "blue", mask=half()),
                      weigh(c, restrained="blue", mask=1 - half()), weigh(c, restrained="cat", mask=half()),
                      weigh(c, "", "blue", "cat", 0.9), weigh(c, "", "blue", "cat", 0.98),
                      weigh(c, "", "blue", "mat", 0.98)]}


@pytest.mark.parametrize("node", ["style", "cross", "weigh"])
def test_every_input_acts(node):
    """No two settings give the same picture, and none gives the plain one."""
    c = case()
    starts = torch.cat([c.noise, 1.1 * c.noise])
    with torch.inference_mode():
        found = [c.sample(model, latent=starts) for model in (c.model, *variants(c)[node])]
    for i, a in enumerate(found):
        for j, b in enumerate(found[:i]):
            assert relative(a, b) > 1e-5, (i, j)


def wrong(c):
    return {
        "style that ends first": (lambda: style(c, 0.5, 0.5), "0.5 to 0.5.*paper: 0 and 1"),
        "no such layer": (lambda: style(c, layers="u7"), r"u7.*it has d0 \(1\)"),
        "exchange that ends first": (lambda: cross(c, 0.9, 0.5, 0.7), "0.9 to 0.7.*paper: 0.1 and 0.9"),
        "no object": (lambda: cross(c, adain_start=0.2, structure_mask=0 * half()),
                      "structure_mask has 1 of 1 masks without"),
        "masks without AdaIN": (lambda: cross(c, structure_mask=half()), "adain_start 1.*lower adain_start"),
        "three masks": (lambda: c.sample(cross(c, adain_start=0.2, structure_mask=half().repeat(3, 1, 1))),
                        "3 masks.*1 rows"),
        "nothing to weigh": (lambda: weigh(c, "cat: 1"), "'cat: 1'.*change nothing"),
        "restrained to nowhere": (lambda: weigh(c, restrained="cat"), "restrained words but no region"),
        "a region for no word": (lambda: weigh(c, "cat: 2", mask=half()), "a region but no restrained words"),
        "two regions": (lambda: weigh(c, restrained="cat", region_words="mat", mask=half()), "both a mask and.*'mat'"),
        "unknown word": (lambda: c.sample(weigh(c, "dog: 2")), '"dog" names no word.*blue, cat'),
        "three masks for words": (lambda: c.sample(weigh(c, restrained="cat", mask=half().repeat(3, 1, 1))),
                                  "3 masks.*1 row"),
        "no words": (lambda: c.sample(weigh(c, "cat: 2"), positive=c.null), "carries none.*Prompt Edit"),
        "one row": (lambda: c.sample(style(c, batch=True)), "has 1 row.*Repeat Latent Batch.*INVERSION"),
    }


@pytest.mark.parametrize("mistake", ["style that ends first", "no such layer", "one row", "exchange that ends first",
                                     "no object",
                                     "masks without AdaIN", "three masks", "nothing to weigh", "restrained to nowhere",
                                     "a region for no word", "two regions", "unknown word", "three masks for words",
                                     "no words"])
def test_what_cannot_work_is_refused(mistake):
    with torch.inference_mode():
        make, message = wrong(case())[mistake]
        with pytest.raises(ValueError, match=message):
            make()
