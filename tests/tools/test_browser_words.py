"""What the pack's scripts show again or tell elsewhere: Attention Heatmap's words, and warnings of folded nodes."""
import sys
from pathlib import Path

import pytest
from palimpsest.nodes import search

import workflow
from browser import TRY, frontend
from comfy_server import Server, free_port
from in_the_page import SMALL
from pack import find_host
from viewing import chromium, view  # noqa: F401  fixtures

# the page of 0.3.64 does not answer where it runs Attention Heatmap's workflow
pytestmark = pytest.mark.skipif(not search.KNOWN, reason="an older frontend")
HEATMAP = "app.graph.nodes.find(node => node.type === 'PalimpsestAttentionHeatmap')"
WORDS = "() => [...document.querySelectorAll('.palimpsest-words button')].map(button => button.textContent)"
# Moves the node and takes it back.
UNDO = """async () => {
    const node = app.graph.nodes[0], tracker = app.extensionManager.workflow.activeWorkflow.changeTracker
    node.pos = [node.pos[0] + 50, node.pos[1]];
    (tracker.captureCanvasState ?? tracker.checkState).call(tracker)
    await app.extensionManager.command.execute('Comfy.Undo') }"""


@pytest.fixture(scope="module")
def opened(chromium, tmp_path_factory):
    base = tmp_path_factory.mktemp("base")
    with Server(find_host(), Path(sys.executable), base, free_port(), log=base / "log") as server, \
            frontend(server, 1280, 800) as view:
        view.set(Comfy__Minimap__Visible=False, Comfy__VueNodes__Enabled=True)
        yield view


def load_short(view, name):
    view.load(name)
    view.page.evaluate("""() => app.graph.nodes.flatMap(node => node.widgets ?? []).forEach(widget => {
        if (widget.name === 'steps') widget.value = 4 })""")


@pytest.fixture
def heatmap(view):
    """The page, after a run of the workflow with Attention Heatmap, which stands in the window."""
    load_short(view, workflow.MAPS)
    assert view.run()["kind"] == "execution_success"
    view.page.evaluate(f"""() => {{ const node = {HEATMAP}
        app.canvas.ds.scale = 1
        app.canvas.ds.offset = [100 - node.pos[0], 100 - node.pos[1]]
        app.canvas.setDirty(true, true) }}""")
    view.page.locator(".palimpsest-words button").first.wait_for()
    return view.page


def test_the_words_stay_after_an_undo(heatmap):
    words, node = heatmap.evaluate(WORDS), heatmap.evaluate_handle(HEATMAP)
    heatmap.evaluate(UNDO)
    heatmap.locator(".palimpsest-words button").first.wait_for()
    assert heatmap.evaluate(WORDS) == words
    assert heatmap.evaluate(f"old => old !== {HEATMAP}", node)


@pytest.mark.parametrize("kind, linked", [("TextToLowercase", False), ("PrimitiveString", True)])
def test_a_click_writes_into_no_field_that_is_not_the_text(kind, linked, heatmap):
    before = heatmap.evaluate(f"""([kind, linked]) => {{
        const source = window.source = app.graph.add(LiteGraph.createNode(kind))
        source.connect(0, {HEATMAP}, 'words')
        if (linked) app.graph.add(LiteGraph.createNode('PrimitiveString')).connect(0, source, 0)
        return source.widgets.map(widget => widget.value) }}""", [kind, linked])
    toasts = heatmap.get_by_text("The words come from another node")
    seen = toasts.count()
    heatmap.locator(".palimpsest-words button").get_by_text("sky", exact=True).click()
    heatmap.wait_for_function("count => document.querySelectorAll('.p-toast-message').length > count", arg=seen)
    assert heatmap.evaluate("source.widgets.map(widget => widget.value)") == before


def test_a_warning_in_a_folded_blueprint_is_told_and_stands_in_it_as_long_as_it_holds(view):
    view.load(TRY)
    page = view.page
    page.evaluate(SMALL)
    page.evaluate("""() => { window.fold = app.graph.nodes.find(node => node.isSubgraphNode?.())
        window.cfg = fold.widgets.find(widget => /guidance/i.test(widget.name))
        cfg.value = 0
        window.sentences = fold.widgets.slice(0, 2)
        window.changed = sentences[1].value
        sentences[1].value = sentences[0].value }""")
    assert view.run()["kind"] == "execution_success"
    toast = page.locator(".p-toast-message").filter(has_text="CFG 0 samples the negative prompt alone")
    toast.wait_for()
    told = toast.inner_text()  # three nodes say it
    assert told.count("auto finds no change") == told.count("mask: the whole picture") == 1
    standing = page.locator("[data-node-id]").filter(has_text="CFG 0 samples the negative prompt alone")
    opened = "app.canvas.openSubgraph(fold.subgraph, fold)"
    page.evaluate(opened)
    standing.wait_for()
    page.evaluate("app.canvas.setGraph(app.graph)")
    page.evaluate("() => { cfg.value = 3; sentences[1].value = changed }")
    assert view.run()["kind"] == "execution_success"
    page.evaluate(opened)
    page.locator("[data-node-id]").filter(has_text="Attention Inject").first.wait_for()
    standing.wait_for(state="detached")
    page.evaluate("app.canvas.setGraph(app.graph)")


def test_a_warning_shows_a_prompt_as_typed_and_comes_back_after_an_undo(view):
    load_short(view, workflow.MAPS)
    page, typed = view.page, "a <img src=x onerror=alert()> photo of a <new1> cat & dog"
    page.evaluate("""typed => {
        const texts = { source: typed, target: 'blue sky there', words: 'cat' }
        for (const node of app.graph.nodes.filter(node => node.type.startsWith('Palimpsest')))
            for (const widget of (node.widgets ?? []).filter(widget => widget.name in texts)) {
                const slot = node.inputs.findIndex(input => input.name === widget.name)
                if (node.inputs[slot]?.link != null) node.disconnectInput(slot)
                widget.value = texts[widget.name]
            } }""", typed)
    warned = page.locator("[data-node-id]").filter(has_text="shares no word").filter(has_text=typed)
    assert view.run()["kind"] == "execution_success"
    warned.first.wait_for()
    page.evaluate(UNDO)
    warned.first.wait_for(state="detached")
    assert view.run()["kind"] == "execution_success"
    warned.first.wait_for()
