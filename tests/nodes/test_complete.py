"""Everything that belongs to a technique exists, in its place."""
import re

import pytest
from comfy_api.latest import io
from palimpsest import showcase
from palimpsest.nodes import found

import editors
import tables
from pack import ROOT

PAPERS, NODES, SHOWN = tables.papers(), tables.nodes(), showcase.found()
TITLES = {workflow.title for workflow in showcase.collected("workflows")}
GIVE_A_MODEL = {schema.node_id for schema in (node.GET_SCHEMA() for node in found())
                if any(isinstance(output, io.Model.Output) for output in schema.outputs)}


def is_part(paper):
    """Whether it holds a part of a paper whose node is in another file, like Prompt-to-Prompt's alignment."""
    others = {number for other in PAPERS if other.path in NODES for _, number in other.papers}
    return paper.path not in NODES and {number for _, number in paper.papers} <= others


def is_editor(paper):
    """Whether its node puts an editor on a MODEL. A mask or a pass over a picture gives none."""
    elsewhere = paper.path.startswith(("inversion/", "concept/"))
    return not elsewhere and not GIVE_A_MODEL.isdisjoint(NODES.get(paper.path, ()))


def lacking(paper):
    """What a technique lacks, of what it is to have."""
    room, name = paper.path.rsplit("/", 1)
    if not (ROOT / "tests" / room / f"test_{name}.py").is_file():
        yield f"its test, tests/{room}/test_{name}.py"
    if not re.search(r"^Checked against: \S", paper.header, re.MULTILINE):
        yield "a line of its header that begins with `Checked against:`"
    if is_part(paper):
        return
    if paper.path not in NODES:
        yield f"its node, nodes/{paper.path}.py"
    for node in NODES.get(paper.path, ()):
        if not (ROOT / "web" / "docs" / f"{node}.md").is_file():
            yield f"its help page, web/docs/{node}.md"
    if is_editor(paper) and not editors.found().get(paper.path):
        yield f"its case for the tests of all editors, tests/editors/{paper.path}.py"
    example = SHOWN.get(paper.path)
    if example is None:
        yield f"its example, showcase/{paper.path}.py"
        return
    if not example.workflows and not example.elsewhere:
        yield "a workflow in its example, or in `elsewhere` the title of one that shows it or why there is none"
    if (is_editor(paper) or room == "guidance") and not example.scenes and not example.unmeasured:
        yield "a row of SceneBench in its example, or in `unmeasured` why there is none"


@pytest.mark.parametrize("paper", PAPERS, ids=[paper.path for paper in PAPERS])
def test_a_technique_has_all_that_belongs_to_it(paper):
    missing = list(lacking(paper))
    assert not missing, f"{paper.path} lacks " + "; ".join(missing)


def test_examples_stand_beside_nodes_and_name_workflows_that_there_are():
    assert SHOWN.keys() <= NODES.keys()
    assert not {path: example.elsewhere for path, example in SHOWN.items()
                if example.elsewhere not in TITLES and not re.fullmatch(r"|.+\.", example.elsewhere)}


def test_the_tables_of_the_documents_are_what_the_files_say():
    """`python tools/tables.py` writes them again."""
    made = tables.documents()
    assert made and not [path.name for path, text in made.items() if path.read_text(encoding="utf-8") != text]
