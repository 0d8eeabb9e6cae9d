"""A user's view: the host's own server runs a graph. Its frontend in a real browser opens every workflow, runs it, and
shows its help and its errors."""
import asyncio
import base64
import io
import json
import re
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from palimpsest.nodes import search
from palimpsest.showcase.folds import CHECKPOINT, EDITED, GUIDANCE, SHOWS, WANTED
from palimpsest.showcase.inversion.flow.flow_edit import FLUX
from palimpsest.showcase.prompt import READER
from PIL import Image

import workflow
from browser import TRY, frontend
from canvas import READABLE, TITLE, declared, is_widget
from comfy_server import Server, free_port
from demo import execute
from environment import SetupError
from in_the_page import DRAWN, FOUND, LINKED, OVERTAKEN, SMALL, THUMBNAILS
from pack import NAME, ROOT, find_host
from searches import BEHIND, FIRST, SEARCHES
from viewing import chromium, view  # noqa: F401  fixtures

TYPED = ("change word", "remove object", "prompt to prompt", "photo to cartoon", "change background", "keep the face",
         "inpaint without model", "rf inversion", "mask from text", "move object")
aliased = pytest.mark.skipif(not search.KNOWN, reason="this host knows no aliases")
OWN, BY_WORDS = "own.safetensors", "Image Edit by Words (SD1.5, SD2, SDXL)"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    base = tmp_path_factory.mktemp("base")
    for model in CHECKPOINT, FLUX, READER:  # templates name them, no test loads them
        place = base / "models" / model["directory"] / model["name"]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    (base / "models" / CHECKPOINT["directory"] / OWN).touch()
    with Server(find_host(), Path(sys.executable), base, free_port(), log=base / "log") as server:
        yield server
    assert server.process.poll() is not None


@pytest.fixture(scope="module")
def info(server):
    return json.loads(server.get("/object_info"))


@pytest.fixture(scope="module")
def opened(chromium, server):  # in this order: no server is started where there is no browser
    with frontend(server, 1280, 800) as view:
        view.set(Comfy__Minimap__Visible=False)
        yield view


def complaint(view):
    """The frontend's message about a workflow above its canvas, "" without one."""
    overlay = view.page.get_by_test_id("error-overlay")
    return overlay.inner_text() if overlay.is_visible() else ""


def take(dialog, name):
    """Clicks a template until it is taken: a list that is still being drawn takes no click."""
    for second in range(120):
        if second % 15 == 0:
            dialog.get_by_test_id(f"template-workflow-{name}").click()
        dialog.page.wait_for_timeout(1000)
        if not dialog.count():
            return
    raise AssertionError(f"{name} was not taken")


def search_nodes(page, text):
    """Types into the node search that a double click on an empty canvas opens."""
    page.evaluate("app.graph.clear()")
    page.wait_for_function("!document.querySelector('[data-node-id]')")
    field = page.get_by_role("dialog").get_by_role("combobox")
    for _ in range(20):  # a canvas that is still being drawn takes no double click
        page.mouse.dblclick(700, 600)
        page.wait_for_timeout(1000)
        if field.count():
            break
    field.last.fill(text)


def load_short(view, name):
    """Loads a workflow and gives its inversion four steps."""
    view.load(name)
    view.page.evaluate("""() => app.graph.nodes.flatMap(node => node.widgets ?? []).forEach(widget => {
        if (widget.name === 'steps') widget.value = 4 })""")


def test_the_demo_runs_a_graph_on_the_real_server_and_words_a_refusal(server):
    """First, before the browser's event loop runs in this thread."""
    graph = {"blank": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 255}},
             "saved": {"class_type": "SaveImage", "inputs": {"images": ["blank", 0], "filename_prefix": "a/b"}}}
    graph = {name: node | {"_meta": {"title": name}} for name, node in graph.items()}
    outputs = asyncio.run(execute(server, graph))
    assert (server.log.parent / "output" / "a" / outputs["saved"]["images"][0]["filename"]).is_file()
    assert (server.log.parent / "custom_nodes" / NAME / "pyproject.toml").samefile(ROOT / "pyproject.toml")
    graph["blank"]["inputs"]["width"] = -8
    with pytest.raises(SetupError, match="refused the workflow: (node )?blank: Value -8 smaller than min of 1"):
        asyncio.run(execute(server, graph))


def test_the_template_browser_shows_every_workflow_and_a_click_opens_it(view):
    view.page.get_by_role("button", name="Templates").first.click()
    dialog = view.page.get_by_role("dialog")
    dialog.get_by_text(NAME, exact=True).first.click()
    widths = view.page.evaluate(THUMBNAILS, [*workflow.drawings()])
    assert all(width >= 500 for width in widths.values()), widths
    take(dialog, workflow.MAIN)
    saved = json.loads((workflow.FOLDER / f"{workflow.MAIN}.json").read_text(encoding="utf-8"))
    view.page.wait_for_function("([count, zoom]) => app.graph.nodes.length === count && app.canvas.ds.scale >= zoom",
                                arg=[len(saved["nodes"]), READABLE])
    assert complaint(view) == ""
    saved["extra"]["ds"]["scale"] = 0.4  # a copy of one's own opens as it was saved
    view.page.evaluate("graph => app.loadGraphData(graph)", saved)
    assert view.page.evaluate("app.canvas.ds.scale") == 0.4


@pytest.mark.parametrize("name", workflow.drawings())
def test_every_workflow_is_drawn_whole(name, view, info):
    """Every node is known and titled, nothing is cut off, and every required input is connected."""
    view.set(Comfy__VueNodes__Enabled=True)
    saved = json.loads((workflow.FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    view.load(name)
    view.page.wait_for_function("count => document.querySelectorAll('[data-node-id] [data-testid=node-title]').length "
                                "=== count", arg=len(saved["nodes"]))
    view.page.wait_for_timeout(300)
    assert complaint(view) == ""
    drawn = {node["id"]: node for node in view.page.evaluate(DRAWN)}
    for node in saved["nodes"]:
        seen = drawn[node["id"]]
        assert seen["title"] == (node.get("title") or info[node["type"]]["display_name"])
        assert not seen["cut"] and not seen["scrolled"], seen
        assert seen["size"] == [node["size"][0], node["size"][1] + TITLE], "it grew over its neighbours"
    for node in view.page.evaluate(LINKED):
        needed = {name for name, kind, options, optional in declared(info.get(node["type"], {"input_order": {}}))
                  if not optional and not is_widget(kind, options)}
        assert not node["errors"] and not needed & set(node["open"]), node


def test_a_node_that_the_host_lacks_is_told(view):
    """The test above would see this."""
    graph = json.loads((workflow.FOLDER / f"{workflow.MAPS}.json").read_text(encoding="utf-8"))
    graph["nodes"][1]["type"] = "PalimpsestElsewhere"
    view.page.evaluate("graph => app.loadGraphData(graph)", graph)
    view.page.get_by_test_id("error-overlay").wait_for()
    assert "missing" in complaint(view).lower()


def test_the_run_button_ends_in_a_picture_on_the_canvas(view):
    view.set(Comfy__VueNodes__Enabled=True)
    load_short(view, workflow.MAIN)
    assert view.run()["kind"] == "execution_success"
    for title in "Save Image", "Miniature Scene":
        picture = view.page.locator("[data-node-id]").filter(has_text=title).locator("img").last
        view.page.wait_for_function("picture => picture.naturalWidth === 128", arg=picture.element_handle())
        shown = view.page.request.get(picture.evaluate("picture => picture.src"))
        assert np.asarray(Image.open(io.BytesIO(shown.body()))).std() > 10, title


def shown_size(view, title):
    """[width, height] of the picture that a node shows."""
    node = view.page.locator("[data-node-id]").filter(has=view.page.get_by_text(title, exact=True))
    picture = node.locator("img").last
    view.page.wait_for_function("picture => picture.naturalWidth > 0", arg=picture.element_handle())
    return picture.evaluate("picture => [picture.naturalWidth, picture.naturalHeight]")


def test_ones_own_photo_is_edited_in_eight_gestures(view, server):
    view.set(Comfy__VueNodes__Enabled=True)
    view.page.evaluate("app.graph.clear()")
    photo = server.log.parent / "photo.png"
    Image.effect_noise((300, 211), 80).convert("RGB").save(photo)
    page, dialog, gestures = view.page, view.page.get_by_role("dialog"), []

    def gesture(act, *given):  # a click that only opens a box to choose in belongs to the choice
        gestures.append(act)
        return act(*given)

    def node(title):
        return page.locator("[data-node-id]").filter(has=page.get_by_text(title, exact=True))

    gesture(page.get_by_role("button", name="Templates").first.click)
    gesture(dialog.get_by_text(NAME, exact=True).first.click)
    gesture(take, dialog, "Start here - Change a word")
    node("Load Checkpoint").get_by_role("combobox").click()
    gesture(page.get_by_role("option", name=OWN).click)
    with page.expect_file_chooser() as chooser:
        node("Load Image").locator("input[type=file]").locator("xpath=..").click()
    gesture(chooser.value.set_files, photo)
    sentences = node(BY_WORDS).locator("textarea")
    gesture(sentences.nth(0).fill, "a photo of a red star on a wall background")
    gesture(sentences.nth(1).fill, "a photo of a blue star on a wall background")
    page.wait_for_function("app.graph.nodes.some(node => node.widgets?.some(widget => widget.value === 'photo.png'))")
    assert complaint(view) == ""
    assert page.evaluate("app.graph.nodes.find(node => node.type.startsWith('Checkpoint')).widgets[0].value") == OWN
    page.evaluate(SMALL)
    assert gesture(view.run)["kind"] == "execution_success" and len(gestures) <= 8
    assert shown_size(view, EDITED) == [300, 211]


@contextmanager
def app_mode(page, name):
    """The workflow shown as a form, and its fields' names."""
    toggle = "app.extensionManager.command.execute('Comfy.ToggleLinear')"
    page.evaluate(toggle)
    try:
        page.get_by_test_id("linear-workflow-info").filter(has_text=name).wait_for()  # numbered if opened before
        yield page.get_by_test_id("builder-widget-label").all_inner_texts()
    finally:
        page.evaluate(toggle)


@pytest.mark.parametrize("name", [name for name in workflow.drawings() if name.startswith("Start here")])
def test_app_mode_asks_for_model_picture_and_words(name, view):
    saved = json.loads((workflow.FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    view.load(name)
    with app_mode(view.page, name) as fields:
        assert fields == [field for _, field in saved["extra"]["linearData"]["inputs"]]
        assert fields[:2] == ["ckpt_name", "image"] and len(fields) > 2


def test_app_modes_run_button_ends_in_pictures(view):
    view.load(TRY)
    view.page.evaluate(SMALL)
    with app_mode(view.page, TRY) as fields:
        assert fields == [SHOWS, WANTED, GUIDANCE]
        run = view.page.get_by_test_id("linear-run-button").get_by_role("button", name="Run", exact=True)
        assert view.run(run)["kind"] == "execution_success"
        view.page.wait_for_function("""() => {
            const widths = [...document.images].filter(image => image.offsetParent).map(image => image.naturalWidth)
            return widths.includes(128) && widths.some(width => width > 800)  // the edit, and its report
        }""")


def test_a_blueprint_is_found_placed_and_run(view):
    view.set(Comfy__VueNodes__Enabled=True)
    page = view.page
    search_nodes(page, "image edit by words")
    page.get_by_test_id("result-item").filter(has_text=BY_WORDS).first.click()
    page.wait_for_function("app.graph.nodes.some(node => node.isSubgraphNode?.())")
    for _ in range(20):  # it hangs on the pointer until a click is taken
        page.mouse.click(500, 200)
        page.wait_for_timeout(500)
        if page.evaluate("app.canvas.state.ghostNodeId == null"):
            break
    fold = page.evaluate(SMALL)
    page.evaluate("""fold => {
        const graph = app.graph, node = graph.getNodeById(fold)
        const scene = graph.add(LiteGraph.createNode('PalimpsestMiniatureScene'))
        const seen = graph.add(LiteGraph.createNode('PreviewImage'))
        const input = name => node.inputs.findIndex(entry => entry.name === name)
        scene.connect(0, node, input('image'))
        scene.connect(1, node, input('what the picture shows'))
        scene.connect(2, node, input('what it should show'))
        node.connect(0, seen, 0) }""", fold)
    assert view.run()["kind"] == "execution_success"
    assert shown_size(view, "Preview Image") == [128, 128]
    saved = json.loads((workflow.FOLDED / f"{BY_WORDS}.json").read_text(encoding="utf-8"))
    assert page.evaluate("fold => app.graph.getNodeById(fold).subgraph.nodes.map(node => node.type)", fold) == [
        node["type"] for node in saved["definitions"]["subgraphs"][0]["nodes"]]


def test_a_warning_stands_on_its_node_as_long_as_it_holds(view):
    """The texts of a run, and of editors whose MODEL nobody samples, which the host does not execute."""
    view.set(Comfy__VueNodes__Enabled=True)
    load_short(view, workflow.MAIN)

    def run(change):
        view.page.evaluate(f"""() => {{
            const titled = title => app.graph.nodes.find(node => node.title === title || node.type === title)
            const sampler = titled('Sample the edit'); {change} }}""")
        assert view.run()["kind"] == "execution_success"

    def text(title, words):
        return view.page.locator("[data-node-id]").filter(has_text=title).filter(has_text=words)

    run("sampler.widgets.find(widget => widget.name === 'cfg').value = 0")
    text("Sample the edit", "CFG 0 samples the negative prompt alone").wait_for()
    run("titled('PalimpsestLoadMiniature').connect(0, sampler, 'model')")
    for title in "Attention Inject", "Latent Blend", "Replay Inversion":
        text(title, "No sampler takes the MODEL").first.wait_for()
    text("Sample the edit", "CFG 0 samples").wait_for(state="detached")  # no editor is left
    run("titled('PalimpsestLatentBlend').connect(0, sampler, 'model')")
    text("Attention Inject", "No sampler takes the MODEL").wait_for(state="detached")
    text("Latent Blend", "No sampler takes the MODEL").wait_for(state="detached")


def test_an_error_of_the_packs_is_shown_with_its_remedy(view):
    """A word that the prompt does not have."""
    load_short(view, workflow.MAPS)
    view.page.evaluate("""() => { const node = app.graph.nodes.find(node => node.type === 'PalimpsestAttentionHeatmap')
        node.widgets.find(widget => widget.name === 'words').value = 'horse' }""")
    assert view.run()["kind"] == "execution_error"
    view.page.get_by_test_id("error-overlay").wait_for()
    view.page.get_by_test_id("error-overlay-see-errors").click()
    view.page.get_by_text('"horse"').first.wait_for()


@pytest.mark.parametrize("vue", [True, False])
def test_a_word_is_seen_on_the_picture_and_chosen_by_mouse_and_keyboard(vue, view):
    """Attention Heatmap's view, in both of the frontend's ways to draw nodes. Its words go on to Attention Mask."""
    view.set(Comfy__VueNodes__Enabled=vue)
    load_short(view, workflow.MAPS)
    assert view.run()["kind"] == "execution_success"
    page, canvas = view.page, view.page.locator(".palimpsest-words canvas")
    page.evaluate("""() => { const node = app.graph.nodes.find(node => node.type === 'PalimpsestAttentionHeatmap')
        app.canvas.ds.scale = 1
        app.canvas.ds.offset = [100 - node.pos[0], 100 - node.pos[1]]
        app.canvas.setDirty(true, true) }""")

    def word(text):
        return page.locator(".palimpsest-words button").get_by_text(text, exact=True)

    def drawn():
        png = page.evaluate("document.querySelector('.palimpsest-words canvas').toDataURL().split(',')[1]")
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")).astype(float)

    def field():
        return page.evaluate("""() => app.graph.nodes.find(node => node.type === 'PalimpsestAttentionHeatmap')
            .widgets.find(widget => widget.name === 'words').value""")

    word("star").wait_for()
    names = "a#1 photo of a#2 green dotted star on a#3 sky background"
    assert page.locator(".palimpsest-words button").all_inner_texts() == names.split()
    picture = drawn()
    word("star").hover()
    assert canvas.get_attribute("data-word") == "star"
    seen = drawn()[..., 0] - drawn()[..., 2]  # warm where the word is
    assert seen[48:80, 32:64].mean() > seen[:16, :16].mean() + 50
    word("star").click()
    assert field() == "" and word("star").get_attribute("aria-pressed") == "false"
    word("sky").press("Enter")
    assert canvas.get_attribute("data-word") == "sky" and not np.array_equal(drawn()[..., 0] - drawn()[..., 2], seen)
    word("background").press("Space")
    assert field() == "sky, background" and word("sky").get_attribute("aria-pressed") == "true"
    page.evaluate("document.activeElement.blur()")
    page.mouse.move(0, 0)
    assert np.array_equal(drawn(), picture)
    page.evaluate("""() => { const node = app.graph.nodes.find(node => node.type === 'PalimpsestAttentionHeatmap')
        const text = LiteGraph.createNode('PrimitiveString')
        app.graph.add(text)
        text.connect(0, node, 'words') }""")
    word("star").click()
    assert page.evaluate("app.graph.nodes.find(node => node.type === 'PrimitiveString').widgets[0].value") == "star"
    assert view.run()["kind"] == "execution_success"
    assert field() == "sky, background"
    assert page.evaluate(OVERTAKEN) == names.split()


@pytest.mark.parametrize("locale, words", [("en", "Turns a picture into noise"), ("zh", "把图像变成噪声")])
def test_a_nodes_help_page_opens_in_the_users_language(locale, words, view):
    view.set(Comfy__Locale=locale, Comfy__VueNodes__Enabled=True)
    view.load(workflow.MAPS)
    page = view.page
    x, y = page.evaluate("""() => { const node = app.graph.nodes.find(node => node.type === 'PalimpsestDDIMInvert')
        app.canvas.ds.scale = 1
        app.canvas.ds.offset = [300 - node.pos[0], 300 - node.pos[1]]
        app.canvas.setDirty(true, true)
        return [340, 285] }""")
    for _ in range(20):  # a change of language draws the nodes again, with none selected
        page.mouse.click(x, y)
        page.wait_for_timeout(500)
        page.get_by_test_id("info-button").evaluate_all("buttons => buttons[0]?.click()")
        page.wait_for_timeout(1000)
        if page.get_by_text(words).count():
            break
    page.get_by_text(words).wait_for()
    page.get_by_text("2010.02502").wait_for()


@aliased
def test_everyday_words_find_a_node_among_the_first(view):
    found = view.page.evaluate(FOUND, [*SEARCHES, *BEHIND])
    for searches, limit in (SEARCHES, FIRST), (BEHIND, None):
        assert not {text: found[text] for text, nodes in searches.items()
                    if not {f"Palimpsest{node}" for node in nodes.split()} & {*found[text][:limit]}}


@aliased
def test_a_double_click_and_everyday_words_show_the_node(view, info):
    view.set(Comfy__Locale="en")
    search_nodes(view.page, "")
    for text in TYPED:
        view.page.get_by_role("combobox").last.fill(text)
        wanted = re.compile("|".join(re.escape(info[f"Palimpsest{node}"]["display_name"])
                                     for node in SEARCHES[text].split()))
        view.page.get_by_test_id("result-item").filter(has_text=wanted).first.wait_for()
    view.page.keyboard.press("Escape")
