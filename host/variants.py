"""Variants of a prompt: settings of the nodes before a picture changed, and what they reach made again.

A node that no changed setting reaches is not made again, so the variants share it with the prompt. The host caches each
new node by its inputs, as it caches every node.
"""
import csv
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any

from comfy_execution.graph_utils import is_link

SWITCH = {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


@dataclass(frozen=True)
class Setting:
    """A widget of a node of the prompt.

    node: the node's number.
    input: the widget's name.
    called: both, as people name them.
    kind: one of WIDGETS.
    options: what the node's class says of it.
    present: its value in the prompt.
    """
    node: str
    input: str
    called: str
    kind: str
    options: dict
    present: Any

    def values(self, text: str) -> dict[str, Any]:
        """{as written: value}. Texts stand one a line. Others may also stand between commas, and in quotes, as in CSV,
        where they have commas themselves."""
        lines = text.splitlines()
        items = lines if self.kind == "STRING" else chain(*csv.reader(lines, skipinitialspace=True))
        written = filter(None, map(str.strip, items))
        found = {one: self._value(one) for one in written}
        if not found:
            raise ValueError(f"{self.called} has no values to try: write some, "
                             f"{'one a line' if self.kind == 'STRING' else 'separated by commas'}. It is now "
                             f"{_short(self.present)}.")
        return found

    def _value(self, written):
        if self.kind == "STRING":
            return written
        if self.kind == "COMBO":
            known = self.options.get("options", [written])
            found = [one for one in known if str(one).strip() == written]
            listed = ", ".join(f'"{one}"' if "," in str(one) else str(one) for one in known)
            return found[0] if found else self._refuse(written, f"is one of {listed}")
        if self.kind == "BOOLEAN":
            found = SWITCH.get(written.lower())
            return self._refuse(written, "is true or false") if found is None else found
        try:
            value = (int if self.kind == "INT" else float)(written)
        except ValueError:
            return self._refuse(written, "is a whole number" if self.kind == "INT" else "is a number")
        least, most = (bound if (bound := self.options.get(name)) is not None else none
                       for name, none in (("min", -float("inf")), ("max", float("inf"))))
        return value if least <= value <= most else self._refuse(written, f"goes from {least:g} to {most:g}")

    def _refuse(self, written, rule):
        raise ValueError(f"{written!r} is no value of {self.called}, which {rule}: change it.")


def settings(prompt, last: str) -> list[Setting]:
    """All settings of a node and of those before it, the nearest first. prompt: the host's DynamicPrompt.

    A node is called by its title, or by its number where two have the same.
    """
    import nodes  # the host's

    before = [last]
    for name in before:
        before += [new for new in dict.fromkeys(link[0] for link in _links(prompt.get_node(name))) if new not in before]
    titles = {name: _titles(prompt.get_node(name))[0] for name in before}
    found = []
    for name in before:
        node = prompt.get_node(name)
        declared = nodes.NODE_CLASS_MAPPINGS[node["class_type"]].INPUT_TYPES()
        called = titles[name] if [*titles.values()].count(titles[name]) == 1 else name
        for widget, (kind, *options) in {**declared.get("required", {}), **declared.get("optional", {})}.items():
            if isinstance(kind, (list, tuple)):  # how older nodes declare a COMBO
                kind, options = "COMBO", [{"options": list(kind)}]
            if kind in WIDGETS and widget in node["inputs"] and not is_link(node["inputs"][widget]):
                found.append(Setting(name, widget, f"{called}.{widget}", kind, {**options[0]} if options else {},
                                     node["inputs"][widget]))
    return found


def find(prompt, last: str, called: str) -> Setting:
    """The setting that people call by a node and a widget, such as "Attention Inject.cross_end".

    A node answers to its title, else to its display name, else to its number. ValueError lists what there is.
    """
    known = settings(prompt, last)
    name, _, widget = (part.strip().casefold() for part in called.rpartition("."))
    of_node = []
    for answers in (lambda s: _titles(prompt.get_node(s.node))[0], lambda s: _titles(prompt.get_node(s.node))[1],
                    lambda s: s.node):
        of_node = of_node or [s for s in known if answers(s).casefold() == name]
    found = [s for s in of_node if s.input.casefold() == widget]
    if len(found) == 1:
        return found[0]
    listed = "".join(f"\n{s.called} ({_short(s.present)})" for s in found or of_node or known)
    if found:
        raise ValueError(f"{called!r} names {len(found)} settings, since nodes share that title: rename one of the "
                         f"nodes, or write its number for the title.{listed}")
    raise ValueError(f"{called!r} names no setting of the nodes before the picture: write a node's title, a point and "
                     f"one of its inputs. There are, with their present values:{listed}")


def varied(prompt, last: list, changes: list[tuple[Setting, list]], cells: list[tuple[int, ...]], prefix: str
           ) -> tuple[dict, list]:
    """(the new nodes, a link for each cell).

    last: the link whose value is wanted.
    changes: settings and the values of each.
    cells: for each variant the number of each setting's value.
    prefix: of the new nodes' ids.
    """
    made: dict[str, dict] = {}

    @cache
    def reached(node, slot):
        """Numbers of the settings that the output reads."""
        own = {i for i, (s, _) in enumerate(changes) if s.node == node and s.input not in _unread(prompt, node, slot)}
        return frozenset(own).union(*(reached(*one) for one in _links(prompt.get_node(node))))

    def link(node, slot, cell):
        moved = sorted(i for i in reached(node, slot) if changes[i][1][cell[i]] != changes[i][0].present)
        if not moved:
            return [node, slot]
        name = prefix + node + "".join(f"/{'xy'[i]}{cell[i]}" for i in moved)
        if name not in made:
            old = prompt.get_node(node)
            inputs = {key: link(value[0], value[1], cell) if is_link(value) else value
                      for key, value in old["inputs"].items()}
            own = {changes[i][0].input: changes[i][1][cell[i]] for i in moved if changes[i][0].node == node}
            made[name] = {"class_type": old["class_type"], "inputs": {**inputs, **own}}
        return [name, slot]

    return made, [link(last[0], last[1], cell) for cell in cells]


def _unread(prompt, node, slot):
    """Inputs that an output of a node does not read, where its class says so."""
    import nodes
    kind = nodes.NODE_CLASS_MAPPINGS[prompt.get_node(node)["class_type"]]
    return getattr(kind, "UNREAD", {}).get(slot, ())


def _links(node):
    return [value for value in node["inputs"].values() if is_link(value)]


def _titles(node):
    """What a node is called on the canvas: its title, where the prompt tells it, and its display name."""
    import nodes
    kind = node["class_type"]
    display = nodes.NODE_DISPLAY_NAME_MAPPINGS.get(kind) or kind
    return node.get("_meta", {}).get("title", display), display


def _short(value):
    text = repr(value)
    return text if len(text) < 50 else f"{text[:40]}…"
