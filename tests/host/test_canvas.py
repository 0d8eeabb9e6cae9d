"""Each warning reaches the log, and during a run also the node that it concerns."""
import struct

import comfy.samplers
import pytest
import torch
from palimpsest.editing.editor import editors
from palimpsest.editing.masks import latent_mask
from palimpsest.host import canvas
from palimpsest.nodes.attention.masactrl import PalimpsestMutualSelfAttention
from palimpsest.nodes.attention.p2p import PalimpsestAttentionInject
from palimpsest.nodes.blending.local_blend import PalimpsestLatentBlend
from palimpsest.nodes.guidance.sega import PalimpsestSEGAGuidance

from control_nets import plainly
from headless import Executor
from runs import Case, kept, prompts
from serving import server  # noqa: F401  a fixture

STEPS = 2
CFG0, NOISE, SAME, EMPTY = "CFG 0 samples", "adds noise of its own", "is the source's own", "empty source prompt"
BLACK, IDLE, UNREAD, NO_WORD = "black all over", "acts on none", "No sampler takes the MODEL", "shares no word"


class Graph:
    """A small job as the frontend sends it, with its nodes by name. Each run returns the texts that
    the nodes show after it."""

    def __init__(self, server):
        self.server, self.run, self.count, self.shown, self.client = server, Executor(server), 0, {}, "me"
        self.nodes, self.told = {}, []
        self.add("load", "PalimpsestLoadMiniature")
        self.add("scene", "PalimpsestMiniatureScene", seed=12, kind="colour")
        self.add("words", "PalimpsestPromptEdit", clip=["load", 1], source=["scene", 1], target=["scene", 2],
                 mode="auto")
        self.add("null", "CLIPTextEncode", text="", clip=["load", 1])
        self.add("encode", "VAEEncode", pixels=["scene", 0], vae=["load", 2])
        self.add("invert", "PalimpsestDDIMInvert", model=["load", 0], source=["words", 0], latent=["encode", 0],
                 steps=STEPS,
                 scheduler="ddim_uniform")
        self.add("inject", "PalimpsestAttentionInject", model=["load", 0], inversion=["invert", 0],
                 prompt_edit=["words", 2],
                 cross_start=0.0, cross_end=0.8, self_start=0.0, self_end=0.8, cross_resolution=1.0,
                 self_resolution=1.0,
                 word_weights="", word_ends="")
        self.add("replay", "PalimpsestReplay", model=["inject", 0], inversion=["invert", 0], start=0.0)
        self.add("sample", "SamplerCustom", model=["replay", 0], add_noise=False, noise_seed=0, cfg=3.0,
                 positive=["words", 1],
                 negative=["null", 0], sampler=["replay", 1], sigmas=["replay", 2], latent_image=["replay", 3])
        self.add("picture", "VAEDecode", samples=["sample", 0], vae=["load", 2])
        self.add("show", "PreviewImage", images=["picture", 0])
        server.send_sync = self._send

    def add(self, name, kind, /, **inputs):
        self.nodes[name] = {"class_type": kind, "inputs": inputs, "_meta": {"title": name}}

    def set(self, name, **inputs):
        self.nodes[name] = {**self.nodes[name], "inputs": {**self.nodes[name]["inputs"], **inputs}}

    def _send(self, event, data, client=None):
        if event == 3:  # BinaryEventTypes.TEXT
            assert client == self.client
            length, = struct.unpack(">I", data[:4])
            self.shown[data[4:4 + length].decode()] = data[4 + length:].decode()
        elif event == canvas.TEXT:
            self.told.append(data)
        elif event == canvas.TEXTS:  # as web/texts.js takes texts off
            self.shown = {name: text if name in data["nodes"] else " " for name, text in self.shown.items()}

    def __call__(self):
        """{node: its text}, without nodes whose text was removed."""
        self.ask()
        return self.execute(self.nodes)

    def ask(self, **more):
        self.server.trigger_on_prompt({"prompt": self.nodes, "client_id": self.client, **more})

    def execute(self, nodes):
        self.count += 1
        assert self.run(nodes, f"{id(self)}.{self.count}", self.client), self.run.host.status_messages[-1]
        return {name: text for name, text in self.shown.items() if text.strip()}


@pytest.fixture
def graph(server):  # noqa: F811
    canvas._said.clear()  # of graphs in other files
    canvas.watch_queue()
    before = server.send_sync
    yield Graph(server)
    server.send_sync = before
    canvas._said.clear()


def test_a_job_without_fault_says_nothing_and_no_client_is_told_nothing(graph):
    assert graph() == {} == graph()
    graph.set("sample", cfg=0.0)
    assert graph.run(graph.nodes, "nobody") and graph.shown == {}


def test_what_an_editor_has_to_say_stands_on_its_node_as_long_as_it_holds(graph):
    """In a run where the sampler executes and the editor is cached, with texts of other nodes beside it."""
    graph.set("inject", cross_end=0.2, self_end=0.2)
    graph.set("replay", start=0.6)
    assert IDLE in graph()["inject"]
    graph.set("sample", cfg=2.0)
    graph.shown.clear()  # as on a page that was opened again
    assert IDLE in graph()["inject"] and {"inject", "replay"} <= graph.run.cached()
    graph.set("sample", cfg=0.0)
    found = graph()
    assert found.keys() == {"inject", "sample"} and CFG0 in found["sample"] and IDLE in found["inject"]
    graph.set("sample", cfg=3.0)
    assert graph().keys() == {"inject"}
    graph.set("inject", cross_end=1.0, self_end=1.0)
    assert graph() == {} and graph.shown["inject"] == " "  # an empty text would keep the last one


def test_what_a_cached_node_said_stays_and_goes_where_it_executes_again(graph):
    graph.set("words", source="a red square on a sky background", target="two green dots")
    assert NO_WORD in graph()["words"]
    graph.set("sample", cfg=2.0)
    assert NO_WORD in graph()["words"] and "words" in graph.run.cached()
    graph.set("words", target="a green square on a sky background")
    assert graph() == {}


def test_a_ring_that_nothing_needs_takes_no_text_away(graph):
    """The host executes the rest."""
    graph.set("words", source="a red square on a sky background", target="two green dots")
    for one, other in (("a", "b"), ("b", "a")):
        graph.add(one, "ImageInvert", image=[other, 0])
    assert NO_WORD in graph()["words"]


def test_a_prompt_is_shown_as_it_was_typed(graph):
    """The frontend takes what it shows for HTML, links and all."""
    graph.set("words", source="a <img src=x onerror=alert()> of a <new1> & a dog", target="blue sky")
    found = graph()["words"]
    assert "<" not in found and "&lt;img src=x" in found and "&lt;new1&gt; &amp; a dog" in found


def test_a_note_stands_on_its_node_as_long_as_it_holds(graph):
    graph.set("inject", schedule="auto")
    assert "auto: change of colour: " in graph()["inject"]
    graph.set("sample", cfg=2.0)
    assert "auto: change of colour: " in graph()["inject"] and "inject" in graph.run.cached()
    graph.set("inject", schedule="as set")
    assert graph() == {}


def test_a_page_that_was_opened_again_shows_what_a_cached_node_said(graph):
    graph.set("sample", cfg=0.0)
    assert graph().keys() == {"sample"}
    graph.shown.clear()
    assert CFG0 in graph()["sample"] and "sample" in graph.run.cached()
    graph.shown.clear()
    graph.set("sample", cfg=3.0)  # another graph may have its id
    graph.ask()
    assert graph.shown == {}


def test_what_lies_behind_a_link_takes_a_warning_off_too(graph):
    """Before anything executes: the run may fail, and the page may be another."""
    said = dict(source="a red square on a sky background", target="a red square on a sky background")
    graph.set("words", **said)
    assert SAME in graph()["inject"]
    graph.set("words", target="a green square on a sky background")
    for fresh in False, True:
        if fresh:
            graph.shown, graph.client = {}, "you"
        graph.ask()
        assert not "".join(graph.shown.values()).strip()
    graph.set("words", **said)
    graph.ask()
    assert SAME in graph.shown["inject"]  # the host has it in its cache


def test_a_script_that_asks_shows_a_page_nothing(graph):
    graph.set("sample", cfg=0.0)
    graph()
    graph.shown.clear()
    graph.ask(client_id=None)
    assert graph.shown == {}


def test_a_run_that_waited_takes_off_what_the_run_before_it_said(graph):
    right = graph.nodes["sample"]
    graph.set("sample", cfg=0.0)
    wrong = dict(graph.nodes)
    graph.nodes["sample"] = right
    graph.ask()
    assert CFG0 in graph.execute(wrong)["sample"]
    assert graph.execute(graph.nodes) == {}


def test_a_server_that_was_started_since_takes_off_what_the_last_one_said(graph):
    graph.set("sample", cfg=0.0)
    assert graph().keys() == {"sample"}
    canvas._said.clear()
    graph.set("sample", cfg=3.0)
    assert graph() == {}


def test_every_node_takes_back_what_it_says_no_more_of_the_same_inputs(graph, monkeypatch):
    """As of a file that was written again."""
    graph.add("store", "PalimpsestAttentionStore", model=["load", 0], inversion=["invert", 0], prompt_edit=["words", 2],
              resolution=0.25)
    graph.add("mask", "PalimpsestAttentionMask", attention=["store", 0], words="a", threshold=0.01, grow=0, blur=0.0)
    wide = graph()["mask"]
    monkeypatch.setattr("palimpsest.nodes.attention.store.warn_if_wide", lambda *args: None)
    assert graph()["mask"] == wide and "mask" in graph.run.cached()
    graph.run = Executor(graph.server)
    assert graph() == {} and graph.shown["mask"] == " "


def test_few_speakers_are_remembered(graph, monkeypatch):
    monkeypatch.setattr(canvas, "MOST", 1)
    for seed in 1, 2:
        graph.set("sample", cfg=0.0, noise_seed=seed)
        assert graph().keys() == {"sample"}
    assert len(canvas._said) == 1


def test_what_a_node_in_a_subgraph_says_is_also_told_to_what_shows_it_folded(graph):
    graph.set("sample", cfg=0.0)
    graph()
    graph.nodes["4:112"] = graph.nodes.pop("sample")
    graph.set("4:112", noise_seed=1)
    graph.set("picture", samples=["4:112", 0])
    assert CFG0 in graph()["4:112"]
    told = graph.told[-1]
    assert told["node"] == "4:112" and told["warnings"] == [told["text"]] and CFG0 in told["text"]
    graph.nodes["4:9"] = graph.nodes.pop("inject")
    graph.set("4:9", schedule="auto")
    graph.set("replay", model=["4:9", 0])
    graph()
    notes = [told for told in graph.told if told["node"] == "4:9"]
    assert notes and not any(told["warnings"] for told in notes)


def test_two_texts_of_a_node_stand_together(graph):
    graph.add("black", "SolidMask", value=0.0, width=128, height=128)
    graph.add("blend", "PalimpsestLatentBlend", model=["load", 0], inversion=["invert", 0], start=0.2, source_words="",
              target_words="", threshold=0.3, mask=["black", 0], subtract_words="", masks_in_time=False)
    graph.set("replay", model=["blend", 0])
    graph.set("sample", positive=["words", 0])
    first = graph()["blend"]
    assert first.count("\n") == 1 and BLACK in first and SAME in first
    graph.set("sample", cfg=2.0)  # the editor is cached, and its mask is as black as before
    assert graph()["blend"] == first


def test_a_graph_that_takes_a_node_from_the_cache_of_another_has_the_sampler_speak(graph):
    """The host finds cached results by their inputs, so the node that made them may have another number now."""
    graph.set("inject", cross_end=0.2, self_end=0.2)
    graph.set("replay", start=0.6)
    assert graph().keys() == {"inject"}
    graph.nodes["renamed"] = graph.nodes.pop("inject")
    graph.set("replay", model=["renamed", 0])
    assert graph().keys() == {"renamed"}
    graph.set("sample", cfg=2.0)
    graph.shown.clear()
    assert graph().keys() == {"sample"} and "renamed" in graph.run.cached()


def test_an_editor_that_nobody_samples_says_so(graph, caplog):
    """The output is open, or it ends in a node that does not execute, or the run is Replay's
    SAMPLER on another MODEL."""
    graph.set("sample", cfg=0.0)
    assert graph().keys() == {"sample"}
    graph.set("sample", model=["load", 0])  # the sampler's texts go with its editors
    assert UNREAD in (found := graph())["inject"] and UNREAD in found["replay"] and found.keys() == {"inject", "replay"}
    assert caplog.text.count(UNREAD) == 2
    graph.set("sample", model=["replay", 0], cfg=3.0)
    assert graph() == {}
    graph.add("other", "PalimpsestReplay", model=["inject", 0], inversion=["invert", 0], start=0.5)
    graph.add("idle", "SamplerCustom", **{**graph.nodes["sample"]["inputs"], "model": ["other", 0]})
    assert graph().keys() == {"other"}
    graph.ask(partial_execution_targets=["show"])
    assert graph.shown["other"].strip()


def test_another_packs_sampler_that_hands_its_model_on_samples(graph, monkeypatch):
    import nodes

    class Efficient:
        RETURN_TYPES = ("MODEL", "LATENT")

    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "Efficient", Efficient)
    graph.nodes["sample"] = {"class_type": "Efficient", "inputs": {"model": ["replay", 0]}}
    graph.set("picture", samples=["sample", 1])
    assert canvas.survey(graph.nodes) == []
    graph.set("picture", samples=["load", 1])
    assert {*canvas.survey(graph.nodes)} == {"inject", "replay"}


@kept
def case():
    return Case(steps=3)


def inject(c, model=None, edit=None, weights=""):
    return PalimpsestAttentionInject.execute(model or c.model, c.inversion, edit or c.edit, 0.0, 0.8, 0.0, 0.5, 1.0,
                                             0.5, weights,
                                             "").result[0]


def concept(c, model=None):
    return PalimpsestSEGAGuidance.execute(model or c.model, c.null, "add", 5.0, 0.0, 1.0, 0.9, 1.0, 0.1, 0.4).result[0]


def test_outside_a_graph_an_editor_has_no_node(said):
    assert editors(inject(case()))[0].node is None and canvas.executing_node() is None and not said()


@pytest.mark.parametrize("cfg", [0.0, 1.0, 7.5])
def test_cfg_0_is_said_every_run(cfg, said):
    c = case()
    for model in (inject(c), concept(c)):
        for _ in range(2):
            c.sample(model, cfg=cfg)
            assert [CFG0 in text for text in said()] == [True] * (cfg == 0)


@pytest.mark.parametrize("name, noisy", [("euler", False), ("dpmpp_2m", False), ("euler_ancestral", True),
                                         ("dpmpp_2m_sde", True)])
def test_a_sampler_that_adds_noise_is_said_of_what_an_inversion_holds(name, noisy, said):
    """Through Replay, which then owns the SAMPLER, and through the host's own sampler nodes."""
    c = case()
    for sampler in (name, comfy.samplers.sampler_object(name)):
        c.sample(inject(c), sampler=sampler)
        assert any(NOISE in text for text in said()) == noisy
    c.sample(concept(c), sampler=name)
    assert not said()


def test_a_target_that_is_the_source_is_said_where_nothing_else_edits(said):
    c = case()
    same = prompts(c.clip, "a red cat on a mat", "a red cat on a mat")[2]
    mutual = PalimpsestMutualSelfAttention.execute(c.model, c.inversion, 0.0, 0.8, "", "", "", 0.1, False).result[0]
    for model in (inject(c, edit=same), mutual, inject(c, mutual, edit=same)):
        c.sample(model, c.source)
        assert [SAME in text for text in said()] == [True]
    for model in (inject(c, edit=same, weights="cat: 2"), concept(c, mutual)):
        c.sample(model, c.source)
    c.sample(mutual)
    positive, negative = plainly(c, c.source)
    c.sample(mutual, positive, negative=negative)
    assert not said()


def test_an_empty_source_is_said(said):
    c = Case(source="", steps=3)
    c.sample(inject(c))
    found, = said()
    assert EMPTY in found and "'a blue cat on a mat'" in found


def test_a_black_mask_is_said(said):
    c = case()
    for value in (0.0, 1.0):
        PalimpsestLatentBlend.execute(c.model, c.inversion, 0.2, "", "", 0.3, torch.full((1, 64, 64), value))
        assert [BLACK in text for text in said()] == [True] * (value == 0)
    latent_mask(torch.eye(8).expand(2, 8, 8) * torch.tensor([0.0, 1.0]).view(2, 1, 1), (4, 4))
    assert not said()  # one of several
