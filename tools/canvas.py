"""Workflows drawn from code: the canvas's JSON of nodes, groups and notes, and the prompt that a server runs."""
import uuid
from contextlib import contextmanager

WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
CONTROLLED = {"seed", "noise_seed"}  # the frontend adds "control after generate" below these in any case
NEVER, BYPASS = 2, 4  # modes of a node that does not run
TITLE, FRAME, SLOT, WIDGET, TEXT = 30, 40, 28, 33, 110  # heights on the canvas, px
GAP, MARGIN, HEADING = 40, 20, 54


def declared(schema: dict):
    """(name, type, options, optional) of each input of a node in the schema's order, from the host's /object_info."""
    for part in ("required", "optional"):
        for name in schema["input_order"].get(part, ()):
            kind, options = (*schema["input"][part][name], {})[:2]
            yield name, "COMBO" if isinstance(kind, list) else kind, options, part == "optional"


def is_widget(kind: str, options: dict) -> bool:
    return kind in WIDGETS and not options.get("forceInput")


def is_controlled(name: str, kind: str, options: dict) -> bool:
    """Whether the frontend stores a second value after this widget's own."""
    return bool(options.get("control_after_generate")) or (kind == "INT" and name in CONTROLLED)


def first_value(kind: str, options: dict, listed):
    """The value of a widget on a new node."""
    if kind == "COMBO":
        return options.get("default", (listed if isinstance(listed, list) else options["options"])[0])
    return options.get("default", {"STRING": "", "BOOLEAN": False}.get(kind, 0))


class Node:
    """A node on a canvas. `node["IMAGE"]` is its output of that name, to connect to other nodes' inputs."""

    def __init__(self, data: dict):
        self.data = data

    def __getitem__(self, output: str):
        names = [o["name"] for o in self.data["outputs"]]
        if output not in names:
            raise KeyError(f"{self.data['type']} has no output {output!r}, it has {', '.join(names)}")
        return self, names.index(output)


class Canvas:
    """Nodes in columns from left to right, each below the one before it, in titled groups.

    info: the host's /object_info.
    name: the workflow's name, from which its id is made.
    """

    def __init__(self, info: dict, name: str):
        self.info, self.name, self.nodes, self.links, self.groups = info, name, [], [], []
        self.x = self.y = self.top = self.width = 0

    def column(self, width: int = 300):
        """Begin the next column to the right."""
        if self.nodes and self.y > self.top:
            self.x += self.width + GAP
        self.y, self.width = self.top, width

    @contextmanager
    def group(self, title: str, colour: str):
        """A titled frame around the nodes placed inside it, to the right of everything before it."""
        first, self.x = len(self.nodes), self.x + (self.width + GAP + 2 * MARGIN if self.nodes else 0)
        self.y, self.width = self.top, 0
        yield
        inside = self.nodes[first:]
        left, right = min(n["pos"][0] for n in inside), max(n["pos"][0] + n["size"][0] for n in inside)
        bottom = max(n["pos"][1] + n["size"][1] for n in inside)
        top = self.top - HEADING - MARGIN
        self.groups.append({"id": len(self.groups) + 1, "title": title, "color": colour, "font_size": 24, "flags": {},
                            "bounding": [left - MARGIN, top, right - left + 2 * MARGIN, bottom - top + MARGIN]})

    def node(self, kind: str, title: "str | None" = None, tall: int = 0, /, **inputs) -> Node:
        """Place a node at the column's end.

        tall: room for what the node shows below its widgets, px.
        inputs: a widget's value or another node's output, by input name.
        """
        schema = self.info[kind]
        number, slots, linked, values = len(self.nodes) + 1, [], [], []
        high = tall
        for name, type_, options, optional in declared(schema):
            given, widget = inputs.pop(name, None), is_widget(type_, options)
            if widget:
                listed = schema["input"]["optional" if optional else "required"][name][0]
                unset = given is None or isinstance(given, tuple)
                values.append(first_value(type_, options, listed) if unset else given)
                values += ["fixed"] * is_controlled(name, type_, options)
                high += (TEXT if options.get("multiline") else WIDGET) * (1 + is_controlled(name, type_, options))
            if not widget or isinstance(given, tuple):
                slot = {"name": name, "type": type_, "link": None} | ({"shape": 7} if optional else {})
                (linked if widget else slots).append((slot | ({"widget": {"name": name}} if widget else {}), given))
        if inputs:
            raise KeyError(f"{kind} has no input {', '.join(inputs)}")
        outputs = [{"name": n, "type": t, "links": None} for n, t in zip(schema["output_name"], schema["output"])]
        node = Node({"id": number, "type": kind, "pos": [], "size": [], "flags": {}, "order": number - 1, "mode": 0,
                     "inputs": [slot for slot, _ in slots + linked], "outputs": outputs,
                     "properties": {"Node name for S&R": kind}, "widgets_values": values})
        if title:
            node.data["title"] = title
        for place, (slot, given) in enumerate(slots + linked):
            if given is not None:
                slot["link"] = self._link(*given, node, place)
        self._place(node.data, FRAME + SLOT * max(len(slots), len(outputs)) + high)
        return node

    def note(self, title: str, text: str, height: int):
        """Place a text in Markdown at the column's end."""
        self._place({"id": len(self.nodes) + 1, "type": "MarkdownNote", "pos": [], "size": [], "flags": {},
                     "order": len(self.nodes), "mode": 0, "inputs": [], "outputs": [], "title": title, "properties": {},
                     "widgets_values": [text], "color": "#222", "bgcolor": "#000"}, height)

    def _place(self, data: dict, height: int):
        data["pos"], data["size"] = [self.x, self.y], [self.width, height]
        self.y += height + TITLE + GAP
        self.nodes.append(data)

    def _link(self, source: Node, output: int, target: Node, place: int) -> int:
        number, end = len(self.links) + 1, source.data["outputs"][output]
        self.links.append([number, source.data["id"], output, target.data["id"], place, end["type"]])
        end["links"] = [*(end["links"] or ()), number]
        return number

    def json(self) -> dict:
        """The workflow as the frontend saves it."""
        return {"id": str(uuid.uuid5(uuid.NAMESPACE_URL, self.name)), "revision": 0, "last_node_id": len(self.nodes),
                "last_link_id": len(self.links), "nodes": self.nodes, "links": self.links, "groups": self.groups,
                "config": {}, "extra": {"ds": {"scale": .5, "offset": [60, 140]}}, "version": .4}


def to_api(ui: dict, info: dict) -> dict:
    """The prompt of a workflow: {node id: {class_type, inputs, _meta.title}}. ValueError on a node the host lacks.

    Notes are left out, and muted and bypassed nodes with the links from them.
    ui: the canvas's JSON.
    info: the host's /object_info.
    """
    running = [n for n in ui["nodes"] if n["mode"] not in (NEVER, BYPASS) and n["type"] not in ("Note", "MarkdownNote")]
    unknown = sorted({n["type"] for n in running} - info.keys())
    if unknown:
        raise ValueError(f"the host has {len(info)} nodes, but not {', '.join(unknown)}: update it, or install the "
                         "pack that brings them")
    ids = {n["id"] for n in running}
    sources = {number: [str(node), slot] for number, node, slot, *_ in ui["links"] if node in ids}
    return {str(n["id"]): _entry(n, info[n["type"]], sources) for n in running}


def _entry(node: dict, schema: dict, sources: dict) -> dict:
    values, inputs = iter(node["widgets_values"]), {}
    links = {i["name"]: sources[i["link"]] for i in node["inputs"] if i.get("link") in sources}
    for name, kind, options, _ in declared(schema):
        if is_widget(kind, options):
            inputs[name] = next(values)
            if is_controlled(name, kind, options):
                next(values)
        if name in links:
            inputs[name] = links[name]
    return {"class_type": node["type"], "inputs": inputs,
            "_meta": {"title": node.get("title") or schema["display_name"]}}
