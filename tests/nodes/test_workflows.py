"""The shipped workflows on the host's own executor, and the names on which saved workflows depend."""
import asyncio
import json
import shutil
from itertools import combinations
from pathlib import Path

import comfy.model_base
import comfy.model_management
import comfy.utils
import execution
import folder_paths
import numpy as np
import palimpsest
import pytest
from comfy.utils import common_upscale
from comfy_execution.utils import get_executing_context
from palimpsest.host.sizes import fitted
from palimpsest.miniature import SCENE
from palimpsest.miniature.hard import an_edit
from palimpsest.miniature.scenes import EDIT_KINDS, held_out_edit, parse_caption
from palimpsest.showcase.attention.concept_attention import TITLE as CONCEPTS
from palimpsest.showcase.attention.dreammatcher import TITLE as MATCHED
from palimpsest.showcase.attention.feature_share import BLUEPRINT as PAINTED_OVER
from palimpsest.showcase.concept.dreambooth import TITLE as LEARNED
from palimpsest.showcase.drawing import CFG, SEEN, WORDS
from palimpsest.showcase.folds import PAINTED, PHOTO, Start
from palimpsest.showcase.inversion.flow.flow_edit import BLUEPRINT as BY_WORDS
from palimpsest.showcase.prompt import TITLE as WRITTEN
from PIL import Image

import demo
import frozen
import workflow
from canvas import CORNER, READABLE, TITLE, WINDOW, declared, is_widget, to_api
from environment import host_version
from headless import Executor
from locales import infos
from nodes import LoadImage
from pack import ROOT, find_host
from serving import server  # noqa: F401

NOTES = {"MarkdownNote", "Note"}
STEPS, SHEET = 2, "Two settings side by side (Settings Sheet)"
SCENES = "PalimpsestMiniatureScene", "PalimpsestMiniatureSubject"
DRAWN = workflow.drawings()
named = pytest.mark.parametrize("name", DRAWN)


def test_every_node_has_a_help_page_that_the_host_serves():
    """The frontend asks for docs/<node id>.md in the pack's web folder."""
    pages = Path(palimpsest.__file__).parent / palimpsest.WEB_DIRECTORY / "docs"
    assert {page.stem for page in pages.glob("*.md")} == frozen.contracts().keys()


@pytest.fixture(scope="module")
def info(server):
    return workflow.object_info()


def drawn(name):
    return json.loads((workflow.FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def known(name, info):
    ui = drawn(name)
    if name == WRITTEN and "TextGenerate" not in info:
        pytest.skip("this host has no node that writes text")
    return ui


def prompt(name, info, steps=STEPS, cfg=CFG):
    """The prompt of a workflow, with few steps, and with the miniature in the place of a checkpoint.

    What a vision-language model would write is given.
    """
    graph = to_api(known(name, info), info)
    for node in graph.values():
        if node["class_type"] == "CheckpointLoaderSimple":
            small = getattr(DRAWN[name], "miniature", "SD")
            node |= {"class_type": "PalimpsestLoadMiniature", "inputs": {"model": small}}
        elif node["class_type"] == "TextGenerate":
            node |= {"class_type": "PrimitiveString", "inputs": {"value": "a photo of a red apple and a white cup"}}
        node["inputs"].update({"steps": steps} if "steps" in node["inputs"] else {})
        node["inputs"].update({name: 1 for name in ("iterations", "prompt_steps") if name in node["inputs"]})
        node["inputs"].update({"batch": 1} if "batch" in node["inputs"] else {})
        if "class_count" in node["inputs"]:
            node["inputs"].update(class_count=2, steps=1)
    if name == workflow.MAIN:
        graph[demo.titled(graph, "Sample the edit")]["inputs"]["cfg"] = cfg
    return graph


@pytest.fixture(scope="module")
def done(server, info):
    """(an executor that has run the main workflow once, the prompt, the picture that it saved)."""
    run, graph = Executor(server), prompt(workflow.MAIN, info)
    assert run(graph), run.host.status_messages[-1]
    return run, graph, run.pictures(graph)


def same(a, b):
    return len(a) == len(b) and all(map(np.array_equal, a, b))


@named
def test_the_files_are_what_the_code_draws(name, info):
    if not host_version(find_host()).startswith("0.30."):
        pytest.skip("they are drawn with the nodes of ComfyUI 0.30")
    assert (workflow.FOLDER / f"{name}.json").read_text(encoding="utf-8") == workflow.drawn(DRAWN[name], info)


@named
def test_every_workflow_has_a_thumbnail_that_the_template_browser_can_show(name):
    path = workflow.FOLDER / f"{name}.jpg"
    with Image.open(path) as picture:
        assert picture.format == "JPEG" and 500 <= picture.width <= 800
    assert path.stat().st_size < 100_000


@named
def test_nothing_overlaps_on_the_canvas_and_every_node_stands_in_one_group(name):
    ui = drawn(name)
    boxes = {n["id"]: (n["pos"][0], n["pos"][1] - TITLE, n["pos"][0] + n["size"][0], n["pos"][1] + n["size"][1])
             for n in ui["nodes"]}
    frames = [(x, y, x + w, y + h) for x, y, w, h in (g["bounding"] for g in ui["groups"])]
    for a, b in [*combinations(boxes.values(), 2), *combinations(frames, 2)]:
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (a, b)
    for box in boxes.values():
        assert sum(f[0] < box[0] and f[1] < box[1] and f[2] > box[2] and f[3] > box[3] for f in frames) == 1


@named
def test_it_opens_large_enough_for_texts_with_its_first_group_whole(name):
    ui = drawn(name)
    scale, (x, y), (left, top, wide, high) = *ui["extra"]["ds"].values(), ui["groups"][0]["bounding"]
    right, bottom = (corner + side for corner, side in zip(CORNER, WINDOW))
    assert scale >= READABLE and left + x > 0 and top + y > 0
    assert scale * (left + x + wide) <= right and scale * (top + y + high) <= bottom + 1


@named
def test_it_opens_with_every_node_known_and_every_wire_where_the_host_expects_it(name, info):
    ui = known(name, info)
    nodes = {n["id"]: n for n in ui["nodes"]}
    outputs = {name: node["output_name"] for name, node in info.items()}
    inputs = {name: [entry for entry, *_ in declared(node)] for name, node in info.items()}
    for fold in ui.get("definitions", {}).get("subgraphs", ()):
        for ends, end in (outputs, "outputs"), (inputs, "inputs"):
            ends[fold["id"]] = [entry["name"] for entry in fold[end]]
    assert {n["type"] for n in ui["nodes"]} - NOTES <= outputs.keys()
    for number, source, slot, target, place, kind in ui["links"]:
        output, entry = nodes[source]["outputs"][slot], nodes[target]["inputs"][place]
        assert number in output["links"] and entry["link"] == number and output["type"] == kind
        assert output["name"] == outputs[nodes[source]["type"]][slot]
        assert kind == entry["type"] or {kind, entry["type"]} & {"*"}
        assert entry["name"] in inputs[nodes[target]["type"]]


def test_whatever_stands_on_a_flow_model_has_the_schedule_simple(info):
    """As the papers have it. ddim_uniform makes 29 steps of 28 there, the last one next to nothing."""
    graphs = {name: to_api(drawn(name), info) for name in DRAWN if name != WRITTEN}
    graphs |= {name: to_api(json.loads((workflow.FOLDED / f"{name}.json").read_text(encoding="utf-8")), info)
               for name in workflow.blueprints()}
    found = {name: {node["inputs"]["scheduler"] for node in graph.values() if "scheduler" in node["inputs"]}
             for name, graph in graphs.items() if any(node["class_type"] == "FluxGuidance" or node["inputs"].get(
                 "model") == "Flux" for node in graph.values())}
    assert {BY_WORDS.title, PAINTED_OVER.title} < found.keys()
    assert not {name: schedulers for name, schedulers in found.items() if schedulers != {"simple"}}


@pytest.fixture
def photo(tmp_path, monkeypatch):
    """The example pictures among the host's inputs, where web/example.js puts them."""
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path))
    for name in PHOTO, PAINTED:
        shutil.copy(ROOT / "web" / name.removeprefix("palimpsest_"), tmp_path / name)


@named
def test_it_runs_as_it_is_and_ends_in_pictures(name, server, info, done, photo):
    run, graph = done[:2] if name == workflow.MAIN else (Executor(server), prompt(name, info))
    assert run(graph), run.host.status_messages[-1]
    shown = run.pictures(graph)
    words = "Attention Heatmap", "Attention Mask"
    ends = {workflow.MAIN: (*words, "Save Image", *demo.REPORTS.values()), workflow.MAPS: (*words, "The mask"),
            SHEET: ("Settings Sheet",), WRITTEN: ("Edited", "Report"), LEARNED: ("As it learned", "In a new place"),
            CONCEPTS: DRAWN[CONCEPTS].shows[1:]}
    usual = ("Edited", "Report") if isinstance(DRAWN[name], Start) else ("Save Image", "Edit Report")
    usual = getattr(DRAWN[name], "shows", ()) or usual
    for title in ends.get(name, usual):
        assert shown[title] and all(picture.std() > 1 for picture in shown[title])


@pytest.mark.parametrize("name", [name for name, drawing in DRAWN.items()
                                  if not isinstance(drawing, Start) and name not in (WRITTEN, LEARNED, MATCHED)])
def test_nothing_takes_a_picture_that_was_not_brought_to_the_models_size(name, info):
    """VAE Encode would crop the picture, and it would no longer match what it is compared with or pasted into."""
    graph = to_api(drawn(name), info)
    scenes = [n for n, node in graph.items() if node["class_type"] in SCENES]
    taken = {(node["class_type"], entry) for node in graph.values() for entry, value in node["inputs"].items()
             if isinstance(value, list) and value[0] in scenes
             and info[graph[value[0]]["class_type"]]["output"][value[1]] in ("IMAGE", "MASK")}
    sized = {("PalimpsestModelSize", "image"), ("PalimpsestModelSize", "mask"), ("ImageScale", "image"),
             ("MaskToImage", "mask")}  # before ImageScale
    # only the miniature's pictures have these
    truth = {("PalimpsestEditReport", "target"), ("PalimpsestEditReport", "mask")}
    assert taken & sized and taken <= sized | truth


@pytest.mark.parametrize("name", [workflow.MAIN, "Change only what you paint (Object-Aware Blend)",
                                  "Insert another picture's object (TF-ICON)"])
def test_it_takes_photos_of_any_size(name, server, info, tmp_path, monkeypatch):
    """No side is a multiple of 8, and no two photos have the same shape."""
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path))
    graph, texts, drawing = prompt(name, info), {}, np.zeros((150, 203), np.uint8)
    drawing[40:100, 60:123] = 255
    for i, (number, node) in enumerate(graph.items()):
        if node["class_type"] == "PalimpsestMiniatureScene":
            edit = an_edit(**node["inputs"])
            texts[number] = {1: edit.source_text, 2: edit.target_text}
            photo = Image.fromarray((edit.source_image * 255).round().astype(np.uint8))
            photo = photo.resize((203, 150 + i), Image.Resampling.BICUBIC)
            photo.putalpha(Image.fromarray(255 - np.pad(drawing, ((0, i), (0, 0)))))
            photo.save(tmp_path / f"{number}.png")
            node |= {"class_type": "LoadImage", "inputs": {"image": f"{number}.png"}}
    for node in graph.values():
        for entry, value in list(node["inputs"].items()):
            if isinstance(value, list) and value[0] in texts:
                number, slot = value
                if slot in texts[number]:
                    node["inputs"][entry] = texts[number][slot]
                elif node["class_type"] == "PalimpsestEditReport":
                    del node["inputs"][entry]
                else:
                    node["inputs"][entry] = [number, {0: 0, 4: 1}[slot]]
    run = Executor(server)
    assert run(graph), run.host.status_messages[-1]
    shown = run.pictures(graph)
    photo, drawing = LoadImage().load_image(f"{next(iter(texts))}.png")
    high, wide = fitted(150, 203, 128)
    wanted = (common_upscale(photo.movedim(-1, 1), wide, high, "area", "disabled")[0].movedim(0, -1) * 255).numpy()
    if name == workflow.MAIN:
        outside = shown["Attention Mask"][0][..., 0] == 0
        assert 0.05 < outside.mean() < 1 and np.abs(shown["Save Image"][0] - wanted)[outside].max() < 1.01
    report = next(n for n, node in graph.items() if node["class_type"] == "PalimpsestEditReport")
    numbers = dict(line.split(": ") for line in run.host.history_result["outputs"][report]["text"][0].splitlines())
    if "edit_share" in numbers:
        share = common_upscale(drawing[:, None], wide, high, "area", "disabled").mean()
        assert float(numbers["edit_share"].split()[0]) == pytest.approx(100 * share.item(), abs=0.06)
    assert ("edit_share" in numbers) == name.startswith("Change only")  # its report takes the mask


def test_where_a_model_writes_the_sentence_only_files_of_weights_are_missing(server, info, photo):
    """No weights of a vision-language model are here: the host checks every other value and wire."""
    graph = to_api(known(WRITTEN, info), info)
    errors = asyncio.run(execution.validate_prompt("test", graph, None))[3]
    assert {(graph[node]["class_type"], error["extra_info"]["input_name"])
            for node, found in errors.items() for error in found["errors"]} == {
        ("CheckpointLoaderSimple", "ckpt_name"), ("CLIPLoader", "clip_name")}


def test_a_prompt_has_the_values_that_the_canvas_shows(info):
    graph, ui = to_api(drawn(workflow.MAIN), info), drawn(workflow.MAIN)
    sampled = graph[demo.titled(graph, "Sample the edit")]["inputs"]
    assert (sampled["add_noise"], sampled["noise_seed"], sampled["cfg"]) == (False, 0, CFG)
    scene = demo.titled(graph, "Miniature Scene")
    assert graph[scene]["inputs"] == SCENE | {"hard": False}
    assert graph[demo.titled(graph, "Prompt Edit")]["inputs"]["source"] == [scene, 1]
    muted = next(n for n in ui["nodes"] if n["id"] == int(scene))
    muted["mode"] = 2
    graph = to_api(ui, info)
    assert scene not in graph and isinstance(graph[demo.titled(graph, "Prompt Edit")]["inputs"]["source"], str)
    muted["mode"], muted["type"] = 0, "Elsewhere"
    with pytest.raises(ValueError, match="not Elsewhere"):
        to_api(ui, info)


def test_the_words_on_the_canvas_are_those_of_its_scene():
    edit = held_out_edit(**SCENE)
    assert WORDS == demo.changed_words(edit) and SEEN == demo.shown_words(edit.source_text)


@pytest.mark.parametrize("kind", EDIT_KINDS)
def test_the_demo_finds_words_for_every_kind_of_edit(kind):
    for seed in range(8):
        edit = held_out_edit(seed, kind)
        said = parse_caption(edit.source_text)
        known = {said["ground"], "background"} | {o["shape"] for o in said["objects"]}
        words = demo.changed_words(edit).split(", ")
        assert words and {w.partition("#")[0] for w in words} <= known
        assert set(demo.shown_words(edit.source_text).split(", ")) <= set(edit.source_text.split())


def test_the_demo_counts_the_rows_that_go_through_the_network(server, info, monkeypatch):
    rows, apply_model = [], comfy.model_base.BaseModel.apply_model
    monkeypatch.setattr(comfy.model_base.BaseModel, "apply_model",
                        lambda self, x, *args, **kwargs: rows.append(len(x)) or apply_model(self, x, *args, **kwargs))
    run, steps = Executor(server), 5
    for cfg, parts in ((4.0, ("all",)), (1.0, ("edit", "reference"))):  # the second run's other nodes are cached
        graph = prompt(workflow.MAIN, info, steps, cfg)
        rows.clear()
        assert run(graph)
        counted = demo.evaluations(graph[demo.titled(graph, "Attention Inject")]["inputs"], steps, cfg)
        assert sum(counted[part] for part in parts) == sum(rows) and 0 < counted["reference"] < steps


def test_equal_inputs_give_equal_bytes_with_cached_nodes_and_in_a_fresh_executor(server, info, done):
    run, graph, first = done
    other = prompt(workflow.MAIN, info, cfg=2.0)
    assert run(other) and not same(first["Save Image"], run.pictures(other)["Save Image"])
    assert run(graph)
    assert {demo.titled(graph, t) for t in ("Load Miniature", "DDIM Invert", "Attention Inject")} <= run.cached()
    assert demo.titled(graph, "Sample the edit") not in run.cached()
    assert same(first["Save Image"], run.pictures(graph)["Save Image"])
    fresh = Executor(server)
    assert fresh(graph)
    found = fresh.pictures(graph)
    assert first.keys() == found.keys() and all(same(first[title], found[title]) for title in first)


@pytest.mark.parametrize("title", ["DDIM Invert", "Attention Store", "Sample the edit"])
def test_a_cancelled_run_leaves_the_model_as_it_was(info, done, title):
    run, graph, first = done
    longer, stopped = prompt(workflow.MAIN, info, STEPS + 1), []

    def cancel(*args, **kwargs):
        if get_executing_context().node_id == demo.titled(graph, title):
            stopped.append(title)
            comfy.model_management.interrupt_current_processing()

    comfy.utils.set_progress_bar_global_hook(cancel)
    try:
        assert not run(longer) and stopped
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
        comfy.model_management.interrupt_current_processing(False)
    assert run.host.status_messages[-1][0] == "execution_interrupted"
    assert run(graph) and demo.titled(graph, "Load Miniature") in run.cached()
    assert demo.titled(graph, "DDIM Invert") not in run.cached()
    assert same(first["Save Image"], run.pictures(graph)["Save Image"])


def test_ids_inputs_and_outputs_are_those_that_saved_workflows_name():
    """Only ever append to a node's file: a saved workflow holds widgets by their order and outputs by their number."""
    now, then = frozen.contracts(), frozen.frozen()
    assert not now.keys() - then.keys(), "without a file: python tools/frozen.py writes it"
    assert not then.keys() - now.keys(), "with a file, but gone"
    assert not {node: (then[node], contract) for node, contract in now.items() if then[node] != contract}


def test_every_widget_has_a_tooltip():
    bare = [f"{node['name']}.{entry}" for node in infos() for entry, kind, options, _ in declared(node)
            if is_widget(kind, options) and not options.get("tooltip")]
    assert not bare
