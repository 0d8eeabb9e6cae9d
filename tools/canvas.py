"""Workflows drawn from code: the canvas's JSON of nodes, groups and notes, and the prompt that a server runs."""
import uuid
from contextlib import contextmanager

WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3"}
CONTROLLED = {"seed", "noise_seed"}  # the frontend adds "control after generate" below these in any case
NEVER, BYPASS = 2, 4  # modes of a node that does not run
TITLE, FRAME, SLOT, WIDGET, TEXT = 30, 40, 28, 33, 110  # heights on the canvas, px
GAP, MARGIN, HEADING = 40, 20, 54
CORNER, WINDOW = (80, 110), (1400, 780)  # where a workflow opens, px
READABLE = 0.6  # below this zoom a canvas draws no text
ENTRANCE, EXIT, AISLE = -10, -20, 200  # a subgraph's own numbers for its inputs and outputs, and the room before them


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
    every_input = False  # whether a node's file names the widgets too that nothing is connected to

    def __init__(self, info: dict, name: str):
        self.info, self.name, self.nodes, self.links, self.groups = info, name, [], [], []
        self.folds, self.extra, self.before = [], {}, 0
        self.x = self.y = self.top = self.width = 0

    def column(self, width: int = 300):
        """Begin the next column to the right."""
        if self.nodes and self.y > self.top:
            self.x += self.width + GAP
        self.y, self.width = self.top, width

    def row(self):
        """Begin the next row of groups, below all the others."""
        bottom = max(y + height for _, y, _, height in (group["bounding"] for group in self.groups))
        self.x, self.width, self.top = -GAP - 2 * MARGIN, 0, bottom + GAP + MARGIN + HEADING

    def beside(self):
        """Begin at the top again, to the right of all groups."""
        right = max(x + width for x, _, width, _ in (group["bounding"] for group in self.groups))
        self.x, self.width, self.top = right - MARGIN, 0, 0

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
        number, slots, linked, values = self._number(), [], [], []
        high = tall
        for name, type_, options, optional in declared(schema):
            given, widget = inputs.pop(name, None), is_widget(type_, options)
            if widget:
                listed = schema["input"]["optional" if optional else "required"][name][0]
                if given is None or isinstance(given, tuple):
                    new = first_value(type_, options, listed)
                    values.append(self._asked(given, type_, new) if given else new)
                else:
                    values.append(given)
                values += ["fixed"] * is_controlled(name, type_, options)
                high += (TEXT if options.get("multiline") else WIDGET) * (1 + is_controlled(name, type_, options))
            if not widget or isinstance(given, tuple) or self.every_input:
                slot = {"name": name, "type": type_, "link": None} | ({"shape": 7} if optional else {})
                given = given if isinstance(given, tuple) else None
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
        self._place({"id": self._number(), "type": "MarkdownNote", "pos": [], "size": [], "flags": {},
                     "order": len(self.nodes), "mode": 0, "inputs": [], "outputs": [], "title": title, "properties": {},
                     "widgets_values": [text], "color": "#222", "bgcolor": "#000"}, height)

    def folded(self, blueprint, title: "str | None" = None, tall: int = 0, inputs: "dict | None" = None) -> Node:
        """Place a blueprint at the column's end, as one node.

        blueprint: showcase.drawing.Blueprint.
        inputs: a widget's value or another node's output, by input name.
        """
        given = dict(inputs or {})
        inside = Fold(self, blueprint, {name: value for name, value in given.items() if not isinstance(value, tuple)})
        node = Node(inside.outside(title or blueprint.title, self._number(), len(self.nodes)))
        for place, slot in enumerate(node.data["inputs"]):
            if isinstance(given.get(slot["name"]), tuple):
                slot["link"] = self._link(*given[slot["name"]], node, place)
        if given.keys() - {slot["name"] for slot in node.data["inputs"]}:
            raise KeyError(f"{blueprint.title} has the inputs {[slot['name'] for slot in node.data['inputs']]}")
        self.folds.append(inside)
        self._place(node.data, inside.height + tall)
        return node

    def _number(self) -> int:
        return self.before + len(self.nodes) + 1

    def _asked(self, given: tuple, kind: str, new):
        """The value of a widget that takes another node's output. new: its value on a new node."""
        return new

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
        inside = {"definitions": {"subgraphs": [fold.json() for fold in self.folds]}} if self.folds else {}
        return {"id": made_id(self.name), "revision": 0,
                "last_node_id": max([len(self.nodes), *(fold.before + len(fold.nodes) for fold in self.folds)]),
                "last_link_id": len(self.links), "nodes": self.nodes, "links": self.links, "groups": self.groups,
                **inside, "config": {}, "version": .4,
                "extra": {"ds": self._view(), "readableFrom": READABLE} | self.extra}

    def _view(self) -> dict:
        """The zoom and the corner with which it opens, by web/view.js where the frontend chooses an unreadable one."""
        frames = [group["bounding"] for group in self.groups] or [[0, 0, 400, 400]]
        left, top = min(x for x, *_ in frames), min(y for _, y, *_ in frames)
        wide = max(x + width for x, _, width, _ in frames) - left
        high = max(y + height for _, y, _, height in frames) - top
        scale = max(min(WINDOW[0] / wide, WINDOW[1] / high, 1) // .01 / 100, READABLE)
        return {"scale": scale, "offset": [round(CORNER[0] / scale - left), round(CORNER[1] / scale - top)]}


class Fold(Canvas):
    """The canvas inside a blueprint. `takes` and `asks` give its inputs, `gives` names its outputs.

    around: the canvas on which it is one node.
    values: of its widgets, instead of the blueprint's own.
    """
    every_input = True  # frontends before 1.28 find what a wire inside leads to by its number among all of them

    def __init__(self, around: Canvas, blueprint, values: dict):
        super().__init__(around.info, f"{around.name}/{blueprint.title}")
        self.blueprint, self.values, self.outputs = blueprint, values, []
        self.before = 100 * (len(around.folds) + 1)  # no two nodes of a workflow have one number
        self.entrance = Node({"id": ENTRANCE, "type": blueprint.title, "outputs": []})
        blueprint.draw(self)

    @property
    def height(self) -> int:
        """Of its node, px."""
        asked = [entry for entry in self.entrance.data["outputs"] if "value" in entry]
        sockets = max(len(self.entrance.data["outputs"]) - len(asked), len(self.outputs))
        return FRAME + SLOT * sockets + sum(TEXT if entry["multiline"] else WIDGET for entry in asked)

    def takes(self, name: str, kind: str) -> tuple:
        """An input for another node's output."""
        self.entrance.data["outputs"].append({"name": name, "type": kind, "links": []})
        return self.entrance, len(self.entrance.data["outputs"]) - 1

    def asks(self, name: str, value=None, multiline: bool = False) -> tuple:
        """A widget of the blueprint, for widgets inside. value: its own, or None for that of the first one inside."""
        taken = self.takes(name, "")
        self.entrance.data["outputs"][-1] |= {"value": self.values.get(name, value), "multiline": multiline}
        return taken

    def gives(self, name: str, output: tuple):
        node, slot = output
        number, end = len(self.links) + 1, node.data["outputs"][slot]
        self.links.append([number, node.data["id"], slot, EXIT, len(self.outputs), end["type"]])
        end["links"] = [*(end["links"] or ()), number]
        self.outputs.append({"name": name, "type": end["type"], "linkIds": [number]})

    def _asked(self, given, kind, new):
        entry = given[0].data["outputs"][given[1]]
        if "value" not in entry:
            return new
        entry |= {"type": kind, "value": new if entry["value"] is None else entry["value"]}
        return entry["value"]

    def outside(self, title: str, number: int, order: int) -> dict:
        """Its node on the canvas around it. Frontends before 1.28 find the values inside alone, later ones here too."""
        taken = [{"name": entry["name"], "type": entry["type"], "link": None}
                 | ({"widget": {"name": entry["name"]}} if "value" in entry else {})
                 for entry in self.entrance.data["outputs"]]
        asked = [entry["value"] for entry in self.entrance.data["outputs"] if "value" in entry]
        given = [{"name": entry["name"], "type": entry["type"], "links": None} for entry in self.outputs]
        return {"id": number, "type": made_id(self.name), "pos": [], "size": [], "flags": {}, "order": order, "mode": 0,
                "inputs": taken, "outputs": given, "properties": {}, "widgets_values": asked, "title": title}

    def json(self) -> dict:
        """Its definition among the subgraphs of the workflow around it."""
        left, right = min(n["pos"][0] for n in self.nodes), max(n["pos"][0] + n["size"][0] for n in self.nodes)
        ends = {"inputs": (left - AISLE, self.entrance.data["outputs"], "links"),
                "outputs": (right + AISLE, self.outputs, "linkIds")}
        slots = {kind: [{"id": made_id(f"{self.name}/{kind}/{entry['name']}"), "name": entry["name"],
                         "type": entry["type"], "linkIds": entry[links], "pos": [x, SLOT * place]}
                        for place, entry in enumerate(entries)] for kind, (x, entries, links) in ends.items()}
        links = [dict(zip(("id", "origin_id", "origin_slot", "target_id", "target_slot", "type"), link))
                 for link in self.links]
        counts = {"lastGroupId": len(self.groups), "lastNodeId": self.before + len(self.nodes),
                  "lastLinkId": len(links), "lastRerouteId": 0}
        return {"id": made_id(self.name), "version": 1, "state": counts, "revision": 0, "config": {},
                "name": self.blueprint.title, "category": self.blueprint.category,
                "description": self.blueprint.description, **slots, "widgets": [], "nodes": self.nodes,
                "inputNode": _end(ENTRANCE, left - AISLE - 200, slots["inputs"]),
                "outputNode": _end(EXIT, right + AISLE, slots["outputs"]),
                "groups": self.groups, "links": links, "extra": {}}


def _end(number: int, x: float, slots: list) -> dict:
    return {"id": number, "bounding": [x, -SLOT, 200, SLOT * (len(slots) + 1)]}


def made_id(name: str) -> str:
    """An id that is the same whenever the file is drawn."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, name))


def to_api(ui: dict, info: dict) -> dict:
    """The prompt of a workflow: {node id: {class_type, inputs, _meta.title}}. ValueError on a node the host lacks.

    Notes are left out, and muted and bypassed nodes with the links from them. Blueprints are unfolded.
    ui: the canvas's JSON.
    info: the host's /object_info.
    """
    found = [*_unfolded(ui)]
    unknown = sorted({node["type"] for _, node, _ in found} - info.keys())
    if unknown:
        raise ValueError(f"the host has {len(info)} nodes, but not {', '.join(unknown)}: update it, or install the "
                         "pack that brings them")
    return {number: _entry(node, info[node["type"]], links) for number, node, links in found}


def _unfolded(ui: dict):
    """(number, node, {input: the number of the node that gives it, and which output}) of every node that runs."""
    folds = {fold["id"]: fold for fold in ui.get("definitions", {}).get("subgraphs", ())}
    running = [n for n in ui["nodes"] if n["mode"] not in (NEVER, BYPASS) and n["type"] not in ("Note", "MarkdownNote")]
    ends = {(n["id"], link["target_slot"]): [f"{n['id']}:{link['origin_id']}", link["origin_slot"]]
            for n in running if n["type"] in folds for link in folds[n["type"]]["links"] if link["target_id"] == EXIT}
    ids = {n["id"] for n in running}
    sources = {number: ends.get((node, slot), [str(node), slot]) for number, node, slot, *_ in ui["links"]
               if node in ids}
    for n in running:
        if n["type"] not in folds:
            yield str(n["id"]), n, _linked(n, sources)
            continue
        given, fold = _linked(n, sources), folds[n["type"]]
        entered = [given.get(slot["name"]) for slot in n["inputs"]]
        inner = {link["id"]: entered[link["origin_slot"]] if link["origin_id"] == ENTRANCE else
                 [f"{n['id']}:{link['origin_id']}", link["origin_slot"]] for link in fold["links"]}
        for inside in fold["nodes"]:
            yield f"{n['id']}:{inside['id']}", inside, _linked(inside, inner)


def _linked(node: dict, sources: dict) -> dict:
    return {i["name"]: sources[i["link"]] for i in node["inputs"] if sources.get(i.get("link"))}


def _entry(node: dict, schema: dict, links: dict) -> dict:
    values, inputs = iter(node["widgets_values"]), {}
    for name, kind, options, _ in declared(schema):
        if is_widget(kind, options):
            inputs[name] = next(values)
            if is_controlled(name, kind, options):
                next(values)
        if name in links:
            inputs[name] = links[name]
    return {"class_type": node["type"], "inputs": inputs,
            "_meta": {"title": node.get("title") or schema["display_name"]}}
