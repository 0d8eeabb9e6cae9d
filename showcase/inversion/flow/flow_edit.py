"""FlowEdit, shown and measured."""
from ....inversion.flow.flow_edit import METHOD
from ....nodes.blending.local_blend import PalimpsestLatentBlend
from ... import Example
from ...pictures import both
from ...rows import InversionRow, SceneRow, as_it_is, on_inversion

ON = {"on": "FlowEdit", "cfg": 2.3}

EXAMPLE = Example(
    "FlowEdit",
    pages={"PalimpsestFlowEditInvert": both("PalimpsestFlowEditInvert", 20, 2.3, 0.0)},
    inversions=(InversionRow("FlowEdit", METHOD, 182, {"cfg": 1.0}),),
    scenes=(SceneRow("direct path, CFG 2.3", as_it_is, 162, **ON),
            SceneRow("direct path + Latent Blend (true mask), CFG 2.3",
                     on_inversion(PalimpsestLatentBlend, masked=True), 163, **ON)),
    elsewhere="Change an object (Edit-Friendly DDPM)")
