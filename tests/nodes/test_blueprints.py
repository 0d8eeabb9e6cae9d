"""The blueprints: workflows for one's own picture, folded into one node.

They run on the miniature, unfolded as the frontend unfolds them.
"""
import json
from itertools import combinations

import numpy as np
import pytest
from comfy.ldm.flux.model import Flux
from comfy_api.latest import io
from palimpsest.miniature import SCENE
from palimpsest.miniature.scenes import held_out_edit
from palimpsest.nodes.miniature import PalimpsestLoadMiniature
from palimpsest.showcase.attention import concept_attention, feature_share, p2p
from palimpsest.showcase.drawing import WORDS
from palimpsest.showcase.inversion.flow import flow_edit

import tiny
import workflow
from canvas import ENTRANCE, EXIT, TITLE, Canvas, declared, is_widget, to_api
from environment import host_version
from headless import Executor
from pack import find_host
from serving import server  # noqa: F401

WIDTH, HEIGHT = 300, 211  # no multiple of the latent's cells, and larger than the miniature's pictures
BLUEPRINTS, FORWARD = workflow.blueprints(), Flux.forward
named = pytest.mark.parametrize("name", BLUEPRINTS)
EDIT = held_out_edit(**SCENE)
ASKED = {"what the picture shows": EDIT.source_text, "what it should show": EDIT.target_text, "steps": 2,
         "what lies behind it": "a photo of a sky background", "words that stay as they are": WORDS,
         "words that may change": "", "words to remove": WORDS, "words to find": WORDS,
         "things in it": f"{WORDS}, background", "which to mask": WORDS}


@pytest.fixture(scope="module")
def info(server):
    return workflow.object_info()


def saved(name):
    return json.loads((workflow.FOLDED / f"{name}.json").read_text(encoding="utf-8"))


@named
def test_the_files_are_what_the_code_draws(name, info):
    if not host_version(find_host()).startswith("0.30."):
        pytest.skip("they are drawn with the nodes of ComfyUI 0.30")
    assert (workflow.FOLDED / f"{name}.json").read_text(encoding="utf-8") == workflow.folded(BLUEPRINTS[name], info)
    assert not set(name) & set('<>:"/\\|?*'), "Windows has no such file names"


@named
def test_every_wire_inside_is_where_the_host_expects_it(name, info):
    (outer,), (fold,) = saved(name)["nodes"], saved(name)["definitions"]["subgraphs"]
    nodes = {n["id"]: n for n in fold["nodes"]}
    assert outer["type"] == fold["id"] and outer["id"] not in nodes
    assert {n["type"] for n in nodes.values()} <= info.keys()
    assert [(i["name"], i["type"]) for i in outer["inputs"]] == [(i["name"], i["type"]) for i in fold["inputs"]]
    assert [(o["name"], o["type"]) for o in outer["outputs"]] == [(o["name"], o["type"]) for o in fold["outputs"]]
    ends = {(ENTRANCE, place): entry["linkIds"] for place, entry in enumerate(fold["inputs"])}
    for link in fold["links"]:
        number, source, slot = link["id"], link["origin_id"], link["origin_slot"]
        given = ends[source, slot] if source == ENTRANCE else nodes[source]["outputs"][slot]["links"]
        kind = fold["inputs"][slot]["type"] if source == ENTRANCE else nodes[source]["outputs"][slot]["type"]
        taken = fold["outputs"] if link["target_id"] == EXIT else nodes[link["target_id"]]["inputs"]
        entry = taken[link["target_slot"]]
        assert number in given and number in (entry.get("linkIds") or [entry.get("link")])
        assert link["type"] == kind and (kind == entry["type"] or {kind, entry["type"]} & {"*"})
    assert all(entry["linkIds"] for entry in fold["inputs"] + fold["outputs"])
    for node in nodes.values():  # nothing that a node needs is left open
        linked = {entry["name"] for entry in node["inputs"] if entry["link"]}
        needed = {entry for entry, kind, options, optional in declared(info[node["type"]])
                  if not optional and not is_widget(kind, options)}
        assert needed <= linked


@named
def test_it_opens_up_with_nothing_over_another(name):
    fold = saved(name)["definitions"]["subgraphs"][0]
    boxes = [(n["pos"][0], n["pos"][1] - TITLE, n["pos"][0] + n["size"][0], n["pos"][1] + n["size"][1])
             for n in fold["nodes"]]
    frames = [(x, y, x + w, y + h) for x, y, w, h in (g["bounding"] for g in fold["groups"])]
    ends = [(x, y, x + w, y + h) for x, y, w, h in (fold[end]["bounding"] for end in ("inputNode", "outputNode"))]
    for a, b in [*combinations(boxes, 2), *combinations(frames + ends, 2)]:
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (a, b)
    for box in boxes:
        assert sum(f[0] < box[0] and f[1] < box[1] and f[2] > box[2] and f[3] > box[3] for f in frames) == 1


@pytest.mark.parametrize("name", [flow_edit.BLUEPRINT.title, p2p.BY_WORDS.title, p2p.BACKGROUND.title])
def test_its_report_says_what_auto_chose(name, info):
    graph = to_api(saved(name), info)
    report, = (node["inputs"] for node in graph.values() if node["class_type"] == "PalimpsestEditReport")
    assert "auto" in graph[report["about"][0]]["inputs"].values()
    assert info[graph[report["about"][0]]["class_type"]]["output_name"][report["about"][1]] == "settings"


def on_the_miniature(name, info):
    """The prompt of a blueprint on the miniature, with a scene at another size in the place of a photo."""
    c = Canvas(info, "a test")
    c.column(300)
    flow = name == concept_attention.BLUEPRINT.title
    loader = c.node("PalimpsestLoadMiniature", model="Flux" if flow else "SD")
    scene = c.node("PalimpsestMiniatureScene", **SCENE)
    photo = c.node("ImageScale", image=scene["source"], upscale_method="bicubic", width=WIDTH, height=HEIGHT,
                   crop="disabled")
    c.node("PreviewImage", "photo", images=photo["IMAGE"])
    area = c.node("ImageScale", "area", image=c.node("MaskToImage", mask=scene["edit mask"])["IMAGE"], width=WIDTH,
                  upscale_method="bilinear", height=HEIGHT, crop="disabled")
    mask = c.node("ImageToMask", image=area["IMAGE"], channel="red")
    given = {"model": loader["MODEL"], "clip": loader["CLIP"], "vae": loader["VAE"], "image": photo["IMAGE"],
             "mask": mask["MASK"]}
    known = {entry["name"] for entry in saved(name)["nodes"][0]["inputs"]}
    edited = c.folded(BLUEPRINTS[name], inputs={key: of for key, of in {**given, **ASKED}.items() if key in known})
    for output in edited.data["outputs"]:
        shown = edited[output["name"]]
        if output["type"] == "MASK":
            shown = c.node("MaskToImage", mask=shown)["IMAGE"]
        c.node("PreviewImage", output["name"], images=shown)
    return to_api(json.loads(json.dumps(c.json())), info)


def shown_by(name, server, info):
    """{what it gives: its pixels}"""
    graph, run = on_the_miniature(name, info), Executor(server)
    assert run(graph), run.host.status_messages[-1]
    return {title: pictures[0] for title, pictures in run.pictures(graph).items()}


# the others run as templates
@pytest.mark.parametrize("name", [name for name in BLUEPRINTS if name.startswith(("Image Edit", "Mask"))])
def test_it_edits_a_picture_of_any_size_and_leaves_the_rest_untouched(name, server, info):
    shown = shown_by(name, server, info)
    assert {o["name"] for o in saved(name)["nodes"][0]["outputs"]} <= shown.keys()
    if "mask" in shown:
        assert shown["mask"].shape == (HEIGHT, WIDTH, 3) and 0.02 < (shown["mask"] > 127).mean() < 0.98
    if "image" in shown:
        difference = np.abs(shown["image"].astype(int) - shown["photo"]).max(-1)
        assert difference.shape == (HEIGHT, WIDTH) and (difference > 8).mean() > 0.01
        assert "mask" not in shown or difference[shown["mask"][..., 0] == 0].max() <= 1


# DiffEdit Mask asks both sentences at the host's own guidance
@pytest.mark.parametrize("title, guidance", [(flow_edit.BLUEPRINT.title, {1.5, 3.5, 5.5}),
                                             (feature_share.BLUEPRINT.title, {1.5, 5.5})])
def test_those_for_flow_models_edit_on_flux(title, guidance, server, info, monkeypatch):
    """On a small random Flux, at the authors' guidance, which the model is told in its prompts."""
    flux, heard = tiny.flux(vec_in_dim=tiny.DIM), set()
    flux.model.model_config.side = 64  # where Size for the Model looks
    parts = flux, tiny.clip(), tiny.taesd(16)
    monkeypatch.setattr(PalimpsestLoadMiniature, "execute", classmethod(lambda cls, model: io.NodeOutput(*parts)))
    monkeypatch.setattr(Flux, "forward", lambda self, *args, **kwargs: (
        heard.add(kwargs["guidance"].flatten()[0].item()) or FORWARD(self, *args, **kwargs)))
    shown = shown_by(title, server, info)
    assert {"image", "mask", "report"} <= shown.keys() and shown["image"].shape == (HEIGHT, WIDTH, 3)
    assert (np.abs(shown["image"].astype(int) - shown["photo"])[shown["mask"] > 127] > 8).mean() > 0.1
    assert heard == guidance
