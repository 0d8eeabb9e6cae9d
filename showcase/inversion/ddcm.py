"""DDCM and virtual inversion, shown and measured."""
from ...inversion.ddcm import METHOD
from ...nodes.blending.local_blend import PalimpsestLatentBlend
from .. import Example
from ..pictures import both
from ..rows import InversionRow, SceneRow, as_it_is, on_inversion

ON = {"on": "DDCM, one noise", "cfg": 2.3}

EXAMPLE = Example(
    "DDCM (virtual inversion)",
    pages={"PalimpsestDDCMInvert": both("PalimpsestDDCMInvert", 20, 2.3, 0.0, eta=0.0)},
    inversions=(InversionRow("DDCM", METHOD, 180), InversionRow("DDCM, one noise", METHOD, 181, {"eta": 0.0})),
    scenes=(SceneRow("virtual inversion, CFG 2.3", as_it_is, 160, **ON),
            SceneRow("virtual inversion + Latent Blend (true mask), CFG 2.3",
                     on_inversion(PalimpsestLatentBlend, masked=True), 161, **ON)),
    elsewhere="Change an object (Edit-Friendly DDPM)")
