"""The documents' tables of techniques, made from the techniques' own files.

Run as a script it writes them again in every document that has their marks. COMFYUI_PATH names the host.
`<!-- techniques -->` to `<!-- /techniques -->`: every technique with its paper, file, nodes and workflow, and what it
    was checked against.
`<!-- tasks -->` to `<!-- /tasks -->`: every workflow, by what it does. `<!-- tasks, in short -->`: by its first word.
`<!-- inversions -->` to `<!-- /inversions -->`: what `dev.py bench inversions` measured.
`<!-- concepts -->`, `<!-- new words -->` and `<!-- dreammatcher -->`: what `dev.py bench` measured under these names.
`<!-- fits -->`: what `dev.py bench fits` counted.
`<!-- scenes -->` and `<!-- hard scenes -->`: what `dev.py bench scenes` measured on the held-out splits.
`<!-- flow scenes -->` and `<!-- flow held-out scenes -->`: what it measured with the flow miniature on those two.
`<!-- best -->` and `<!-- best, hard -->`: the best choice for each kind of edit, chosen on the public split where that
    is measured.
"""
import ast
import json
import logging
import re
import sys
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from urllib.parse import quote

from pack import ROOT, load_pack

ROOMS = ("inversion", "attention", "blending", "guidance", "concept")


@dataclass(frozen=True)
class Paper:
    """A paper's file: one whose header names an arXiv id in its first paragraph. An engine's file names none there.

    path: "attention/masactrl".
    header: the file's docstring.
    """
    path: str
    header: str

    @property
    def cited(self) -> str:
        return " ".join(self.header.split("\n\n")[0].split())

    @property
    def papers(self) -> list:
        """(first author and year, arXiv id) of each paper that the header names. Author and year may be missing."""
        found, before = [], 0
        for known in re.finditer(r"arXiv:(\d{4}\.\d{4,5})", self.cited):
            said, before = self.cited[before:known.start()], known.end()
            authors = re.findall(r"(?:\. |\()([A-Z][^\s,.]*)(?:,| et al)", said)
            years = re.findall(r"\b(?:19|20)\d\d\b", said)
            found.append((" ".join([*authors[:1], *years[-1:]]), known[1]))
        return found

    @property
    def checked(self) -> str:
        """What it was checked against, in short."""
        said = re.search(r"Checked\s+against:?\s+(.+?)(?:[,;:(]|\.(?:\s|\Z)|\n\n|\Z)", self.header, re.DOTALL)
        return " ".join(said[1].split()) if said else ""


def papers() -> list:
    """Every paper's file, room by room."""
    files = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    every = [Paper(path.relative_to(ROOT).with_suffix("").as_posix(),
                   ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "") for path in files]
    return [paper for paper in every if paper.papers]


def nodes() -> dict:
    """{"attention/masactrl": {node id: display name}}."""
    from palimpsest.nodes import found
    places: dict = {}
    for node in found():
        schema = node.GET_SCHEMA()
        path = node.__module__.partition(".nodes.")[2].replace(".", "/")
        places.setdefault(path, {})[schema.node_id] = schema.display_name
    return places


def line(*cells) -> str:
    return "| " + " | ".join(cells) + " |"


def code(text, up) -> str:
    return f"[{text}.py]({up}{text}.py)"


def workflow(title, up) -> str:
    return f"[{title}]({up}workflows/{quote(title)}.jpg)"


def techniques(up: str) -> str:
    """up: the path from the document to the pack's root."""
    from palimpsest import showcase
    shown, known = showcase.found(), nodes()
    titles = {w.title for w in showcase.collected("workflows")}
    lines = [line("technique", "paper", "file", "node", "workflow", "checked against"), "|---" * 6 + "|"]
    for paper in papers():
        example = shown.get(paper.path)
        if example is None and paper.path not in known:
            continue  # a part of a paper whose node is in another file
        own = [w.title for w in example.workflows] or [example.elsewhere] if example else []
        cited = "; ".join(f"{who}, [{number}](https://arxiv.org/abs/{number})".removeprefix(", ")
                          for who, number in paper.papers)
        checked = re.sub(r"\b([\w.-]+/[\w.-]+)@([0-9a-f]{7,40})\b", r"[\1@\2](https://github.com/\1/tree/\2)",
                         paper.checked)
        lines.append(line(example.name if example else paper.path.rsplit("/", 1)[1], cited, code(paper.path, up),
                          ", ".join(known.get(paper.path, {}).values()),
                          ", ".join(workflow(t, up) if t in titles else t for t in own), checked))
    return "\n".join(lines)


def tasks(up: str) -> str:
    from palimpsest import showcase
    known, files = nodes(), {paper.path for paper in papers()}
    where = {w.title: path for path, example in showcase.found().items() for w in example.workflows}
    lines = [line("workflow", "nodes", "file"), "|---" * 3 + "|"]
    for w in showcase.collected("workflows"):
        path = where[w.title]
        lines.append(line(workflow(w.title, up), ", ".join(known.get(path, {}).values()),
                          code(path, up) if path in files else ""))
    return "\n".join(lines)


def tasks_in_short(up: str) -> str:
    """A row for each first word that two workflows or more share."""
    from palimpsest import showcase
    titles = [w.title for w in showcase.collected("workflows")]
    first = {title: "Start here" if title.startswith("Start here - ") else title.split()[0] for title in titles}
    groups = {}
    for title in titles:
        many = list(first.values()).count(first[title]) > 1
        short = title.removeprefix(first[title]).lstrip(" -") if many else title
        groups.setdefault(first[title] if many else "More", []).append(
            workflow(title, up).replace(f"[{title}]", f"[{short}]"))
    groups["More"] = groups.pop("More", [])  # at the end
    count = f"{len(titles)} workflows of {sum(map(len, nodes().values()))} nodes"
    return "\n".join([line("", count), "|---" * 2 + "|",
                      *(line(f"**{name}**", " · ".join(links)) for name, links in groups.items())])


def inversions(up: str) -> str:
    from palimpsest.bench.inversions import RESULTS, table
    return table(json.loads(RESULTS.read_text(encoding="utf-8")))


def measured(up: str, bench: str) -> str:
    """The table of a benchmark."""
    made = import_module(f"palimpsest.bench.{bench}")
    return made.table(json.loads(made.RESULTS.read_text(encoding="utf-8"))["measured"])


def fits(up: str) -> str:
    from palimpsest.bench.fits import RESULTS, table
    return table(json.loads(RESULTS.read_text(encoding="utf-8"))["rows"])


def scenes(up: str, split: str, model: str = "sd") -> str:
    from palimpsest.bench.scenes import results, tables
    return tables(results(split, model=model))


def best(up: str, splits: tuple) -> str:
    from palimpsest import showcase
    from palimpsest.bench.scenes import best_table, editor_of, results
    shown = {row.name: [w.title for w in example.workflows] or [example.elsewhere]
             for example in showcase.found().values() for row in example.scenes}

    own = {row: w.title for example in showcase.found().values() for w in example.workflows
           for row in getattr(w, "rows", ())}

    def linked(name):
        titles = [own[name]] if name in own else shown.get(editor_of(name), ())
        return workflow(titles[0], up).replace(f"[{titles[0]}]", f"[{name}]") if titles else name

    public, held_out = map(results, splits)
    return best_table((public or held_out)["measured"], held_out["measured"], linked)


TABLES = {"techniques": techniques, "tasks": tasks, "tasks, in short": tasks_in_short,
          "inversions": inversions, "fits": fits,
          "concepts": partial(measured, bench="concepts"), "new words": partial(measured, bench="new_words"),
          "dreammatcher": partial(measured, bench="dreammatcher"),
          "scenes": partial(scenes, split="held-out"), "hard scenes": partial(scenes, split="hard-held-out"),
          "flow scenes": partial(scenes, split="public", model="flow"),
          "flow held-out scenes": partial(scenes, split="held-out", model="flow"),
          "best": partial(best, splits=("public", "held-out")),
          "best, hard": partial(best, splits=("hard-public", "hard-held-out"))}


def documents() -> dict:
    """{path: text with current tables} of every document with a table's marks."""
    found = {}
    for path in (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))):
        text = path.read_text(encoding="utf-8")
        for name, table in TABLES.items():
            begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
            if begin in text and end in text:
                before, _, rest = text.partition(begin)
                made = table("../" * (len(path.relative_to(ROOT).parts) - 1))
                text = f"{before}{begin}\n{made}\n\n{end}{rest.partition(end)[2]}"
                found[path] = text
    return found


def main() -> int:
    logging.disable(logging.WARNING)
    load_pack()
    for path, text in documents().items():
        path.write_text(text, encoding="utf-8")
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
