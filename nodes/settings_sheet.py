"""Settings Sheet."""
import math
from itertools import product

from comfy_api.latest import io, ui
from comfy_execution.graph_utils import GraphBuilder

from ..host.variants import find, varied
from ..metrics.drawing import grid
from .search import aliases

MOST = 64  # cells
HOW = "A node's title, a point and its input: Attention Inject.cross_end. A name that is not there lists all that are."
WHICH = "Numbers and choices with commas between them; texts such as prompts one a line."


class PalimpsestSettingsSheet(io.ComfyNode):
    """It executes twice: on the canvas, where it gives the graph of all cells and of one more sheet, and as that sheet,
    which takes the cells' pictures."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestSettingsSheet",
            display_name="Settings Sheet",
            category="palimpsest/report",
            description="Tries the values of one or two settings and shows the pictures on a labelled sheet. Nodes "
                        "that no setting reaches, such as an inversion, run once for all cells.",
            **aliases("XY plot", "XYZ grid", "compare settings", "try values", "parameter sweep", "contact sheet"),
            inputs=[
                io.Image.Input("image", lazy=True, tooltip="The edited picture, from VAE Decode or after it."),
                io.String.Input("x", default="", tooltip=f"The setting of the columns. {HOW}"),
                io.String.Input("x_values", default="", multiline=True, tooltip=WHICH),
                io.String.Input("y", default="", tooltip="The setting of the rows, or empty for one row."),
                io.String.Input("y_values", default="", multiline=True, tooltip=WHICH),
            ],
            outputs=[io.Image.Output(display_name="sheet")],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
            is_output_node=True,
            enable_expand=True,
        )

    @classmethod
    def execute(cls, x, x_values, y, y_values, image=None, **cells) -> io.NodeOutput:
        if cells:
            page = grid(list(cells.values()), x_values.split("\n"), y_values.split("\n"))
            return io.NodeOutput(page, ui=ui.PreviewImage(page, cls=cls))
        prompt = cls.hidden.dynprompt
        me = prompt.get_node(cls.hidden.unique_id)
        picture = me["inputs"]["image"]
        tried = _tried(prompt, picture[0], x, x_values, y, y_values)
        places = [place[::-1] for place in product(*(range(len(values)) for _, values in reversed(tried)))]
        changes = [(setting, list(values.values())) for setting, values in tried]
        prefix = GraphBuilder.alloc_prefix()
        graph, links = varied(prompt, picture, changes, places, prefix)
        labels = ["\n".join(f"{setting.input} {one}" for one in values) for setting, values in tried]
        graph[f"{prefix}sheet"] = {"class_type": me["class_type"], "inputs": {
            "x": x, "x_values": labels[0], "y": y, "y_values": "".join(labels[1:]),
            **{f"cell {i}": link for i, link in enumerate(links)}}}
        return io.NodeOutput([f"{prefix}sheet", 0], expand=graph)


def _tried(prompt, last, x, x_values, y, y_values) -> list:
    """[(Setting, {as written: value})] of the columns and, where there are any, of the rows."""
    if bool(y.strip()) != bool(y_values.strip()):
        raise ValueError(f"The rows have the setting {y!r} and the values {y_values!r}: write both, or neither.")
    asked = [(x, x_values), (y, y_values)][:2 if y.strip() else 1]
    found = [(find(prompt, last, called), text) for called, text in asked]
    if len({setting.called for setting, _ in found}) < len(found):
        raise ValueError(f"Columns and rows both set {found[0][0].called}: choose another setting for one, or leave y "
                         "and its values empty.")
    tried = [(setting, setting.values(text)) for setting, text in found]
    counts = [len(values) for _, values in tried]
    if math.prod(counts) > MOST:
        raise ValueError(f"{' × '.join(map(str, counts))} values are {math.prod(counts)} cells, and a sheet has at "
                         f"most {MOST}: try fewer.")
    return tried
