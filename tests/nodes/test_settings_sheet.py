"""A sheet's cells are separate runs to the bit. What no setting reaches runs once, and no cell runs twice."""
from itertools import product

import comfy.model_management
import comfy.utils
import execution
import pytest
import torch
from comfy_execution.utils import get_executing_context
from palimpsest.host.variants import Setting
from palimpsest.nodes import settings_sheet

import nodes
from headless import Executor
from serving import server  # noqa: F401  a fixture

CACHES = [kind for kind in execution.CacheType if kind.name in ("CLASSIC", "RAM_PRESSURE")]  # the hosts' defaults
GREEN, RED = (f"a photo of a {colour} dotted star on a sky background" for colour in ("green", "red"))
ENDS, CFGS = "0.2, 0.8", "1, 3"
STEPS = 2


def node(kind, title=None, /, **inputs):
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": title or kind}}


def graph(**sheet):
    """An edit of the miniature's scene, its picture shown and, with settings, a sheet of it."""
    made = {
        "load": node("PalimpsestLoadMiniature"), "scene": node("PalimpsestMiniatureScene", seed=12, kind="colour"),
        "words": node("PalimpsestPromptEdit", "Prompt Edit", clip=["load", 1], source=["scene", 1],
                      target="a photo of a blue dotted star on a sky background", mode="auto"),
        "null": node("CLIPTextEncode", text="", clip=["load", 1]),
        "encode": node("VAEEncode", pixels=["scene", 0], vae=["load", 2]),
        "invert": node("PalimpsestDDIMInvert", "DDIM Invert", model=["load", 0], source=["words", 0],
                       latent=["encode", 0], steps=STEPS, scheduler="ddim_uniform"),
        "inject": node("PalimpsestAttentionInject", "Attention Inject", model=["load", 0], inversion=["invert", 0],
                       prompt_edit=["words", 2], cross_start=0.0, cross_end=0.8, self_start=0.0, self_end=0.8,
                       cross_resolution=1.0, self_resolution=1.0, word_weights="", word_ends=""),
        "replay": node("PalimpsestReplay", model=["inject", 0], inversion=["invert", 0], start=0.0),
        "sample": node("SamplerCustom", "Sample", model=["replay", 0], add_noise=False, noise_seed=0, cfg=3.0,
                       positive=["words", 1], negative=["null", 0], sampler=["replay", 1], sigmas=["replay", 2],
                       latent_image=["replay", 3]),
        "picture": node("VAEDecode", samples=["sample", 0], vae=["load", 2])}
    if sheet:
        made["sheet"] = node("PalimpsestSettingsSheet", image=["picture", 0],
                             **{"x": "", "x_values": "", "y": "", "y_values": "", **sheet})
    else:
        made["show"] = node("PreviewImage", images=["picture", 0])
    return made




class Run(Executor):
    """executed: the nodes that a run executed, without those it took from the cache. cells: the pictures of its sheet,
    or the picture of a prompt without one."""

    def __init__(self, server, monkeypatch, cache=execution.CacheType.CLASSIC):  # noqa: F811
        super().__init__(server)
        if cache is not execution.CacheType.CLASSIC:
            args = {"ram": 0, "ram_inactive": 0, "lru": 0}
            self.host = execution.PromptExecutor(server, cache_type=cache, cache_args=args)
        self.executed, self.cells, drawn = [], [], settings_sheet.grid
        kept = self

        class Keep:
            RETURN_TYPES, OUTPUT_NODE, FUNCTION, CATEGORY = (), True, "keep", ""
            INPUT_TYPES = classmethod(lambda cls: {"required": {"images": ("IMAGE",)}})

            def keep(self, images):
                kept.cells = [images]
                return {}

        def grid(cells, columns, rows):
            self.cells, self.columns, self.rows = cells, columns, rows
            return drawn(cells, columns, rows)

        def send(event, data, client=None):
            if event == "executing" and data["node"]:
                self.executed.append(data["node"])

        monkeypatch.setattr(server, "send_sync", send)
        monkeypatch.setattr(settings_sheet, "grid", grid)
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "PreviewImage", Keep)

    def __call__(self, graph):
        self.executed, self.cells = [], []
        return super().__call__(graph, client="me")

    def done(self, graph):
        assert self(graph), self.host.status_messages[-1]
        return self

    def samples(self):
        return [name for name in self.executed if "sample" in name]


def alone(run, **changed):
    """The picture of the edit alone, with some inputs changed: {node: {input: value}}."""
    prompt = graph()
    for name, inputs in changed.items():
        prompt[name]["inputs"].update(inputs)
    return run.done(prompt).cells[0]


@pytest.mark.parametrize("cache", CACHES, ids=lambda cache: cache.name)
def test_cells_are_separate_runs_and_a_value_more_runs_its_column_only(cache, server, monkeypatch):  # noqa: F811
    run, ends, cfgs = Run(server, monkeypatch, cache), "Attention Inject.cross_end", "Sample.cfg"
    cells = run.done(graph(x=ends, x_values=ENDS, y=cfgs, y_values=CFGS)).cells
    assert run.columns == ["cross_end 0.2", "cross_end 0.8"] and run.rows == ["cfg 1", "cfg 3"]
    assert run.executed.count("invert") == 1 and len(run.samples()) == 4
    assert "sample" in run.executed and "sheet.0.0.sample/x0/y0" in run.executed  # as it stands, and made again
    run.done(graph(x=ends, x_values=f"{ENDS}, 1", y=cfgs, y_values=CFGS))
    assert {*run.samples()} == {"sheet.0.0.sample/x2/y0", "sheet.0.0.sample/x2"} and "invert" not in run.executed
    assert len(run.cells) == 6 and all(map(torch.equal, cells, [run.cells[i] for i in (0, 1, 3, 4)]))
    one = Run(server, monkeypatch)
    for cell, (cfg, end) in zip(cells, product((1.0, 3.0), (0.2, 0.8))):
        assert torch.equal(cell, alone(one, inject={"cross_end": end}, sample={"cfg": cfg}))
    assert len(torch.stack(cells).flatten(1).unique(dim=0)) == 4


def test_prompts_are_tried_on_one_inversion(server, monkeypatch):  # noqa: F811
    """Prompt Edit's source does not read the target, though both come from one node."""
    run = Run(server, monkeypatch)
    cells = run.done(graph(x="Prompt Edit.target", x_values=f"{RED}\n\n{GREEN}")).cells
    assert run.executed.count("invert") == 1 and not [n for n in run.executed if "invert/" in n]
    assert run.columns == [f"target {RED}", f"target {GREEN}"] and run.rows == [""]
    for cell, text in zip(cells, (RED, GREEN)):
        assert torch.equal(cell, alone(Run(server, monkeypatch), words={"target": text}))


def test_a_cancelled_sheet_keeps_the_cells_that_are_done(server, monkeypatch):  # noqa: F811
    run, begun = Run(server, monkeypatch), []
    prompt = graph(x="Attention Inject.cross_end", x_values="0, 0.2, 0.4, 0.6")

    def cancel(*args, **kwargs):
        name = get_executing_context().node_id
        if "sample" in name and name not in begun:
            begun.append(name)
            if len(begun) == 3:
                comfy.model_management.interrupt_current_processing()

    comfy.utils.set_progress_bar_global_hook(cancel)
    try:
        assert not run(prompt) and run.host.status_messages[-1][0] == "execution_interrupted"
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    run.done(prompt)
    assert len(begun) == 3 and len(run.cells) == 4
    assert run.samples() and not {*run.samples()} & {*begun[:2]}


@pytest.mark.parametrize("sheet, said", [
    ({}, ["'' names no setting", "Sample.cfg (3.0)", "DDIM Invert.steps (2)", "Prompt Edit.target ('a photo of"]),
    ({"x": "Attention Inject.cfg", "x_values": "1"}, ["names no setting", "Attention Inject.cross_end (0.8)"]),
    ({"x": "Prompt Edit.source", "x_values": "a"}, ["names no setting", "Prompt Edit.mode ('auto')"]),  # it is linked
    ({"x": "attention inject.cross_end", "x_values": "0.2, 1.2"}, ["'1.2' is no value", "goes from 0 to 1"]),
    ({"x": "Attention Inject.cross_end", "x_values": "high"}, ["'high' is no value", "is a number"]),
    ({"x": "invert.steps", "x_values": "2.5"}, ["'2.5' is no value", "DDIM Invert.steps", "a whole number"]),
    ({"x": "DDIM Invert.scheduler", "x_values": "simple, best"}, ["'best' is no value", "ddim_uniform"]),
    ({"x": "Sample.add_noise", "x_values": "on, maybe"}, ["'maybe' is no value", "true or false"]),
    ({"x": "Sample.cfg", "x_values": " ,"}, ["Sample.cfg has no values", "now 3.0"]),
    ({"x": "Sample.cfg", "x_values": "1", "y": "SAMPLE.cfg", "y_values": "2"}, ["both set Sample.cfg"]),
    ({"x": "Sample.cfg", "x_values": "1", "y": "DDIM Invert.steps"}, ["write both, or neither"]),
    ({"x": "Sample.noise_seed", "x_values": ",".join(map(str, range(13))), "y": "Sample.cfg", "y_values": "1,2,3,4,5"},
     ["13 × 5 values are 65 cells", "at most 64"]),
])
def test_what_cannot_be_tried_is_said_before_anything_runs(sheet, said, server, monkeypatch):  # noqa: F811
    run = Run(server, monkeypatch)
    assert not run(graph(**{"x": "", **sheet}))
    told = run.host.status_messages[-1][1]["exception_message"]
    assert not [words for words in said if words not in told], told
    assert set(run.executed) <= {"sheet", "scene", "load"}  # these two show or need nothing


def test_values_are_read_as_in_csv_and_blanks_around_them_do_not_count():
    """A file's name may have a comma. A widget may name no bound."""
    lora = Setting("1", "lora_name", "Load LoRA.lora_name", "COMBO", {"options": ["ink, wet.pt", "oil.pt"]}, "oil.pt")
    for text in ('oil.pt,  "ink, wet.pt"', 'oil.pt\n\n"ink, wet.pt"'):
        assert [*lora.values(text)] == ["oil.pt", "ink, wet.pt"]
    with pytest.raises(ValueError, match="'ink' is no value .* is one of \"ink, wet.pt\", oil.pt: change it"):
        lora.values("ink, wet.pt")
    padded = Setting("1", "way", "Node.way", "COMBO", {"options": [" wide", "far "]}, "far ")
    assert padded.values("wide, far") == {"wide": " wide", "far": "far "}
    open_ = Setting("1", "size", "Node.size", "FLOAT", {"min": None, "max": 2.0}, 1.0)
    assert open_.values("-5, 2") == {"-5": -5.0, "2": 2.0}
    text = Setting("1", "text", "Prompt.text", "STRING", {}, "")
    assert [*text.values('a "red", big cat\nhen')] == ['a "red", big cat', "hen"]


def test_two_nodes_of_one_title_are_told_apart_by_number(server, monkeypatch):  # noqa: F811
    run, prompt = Run(server, monkeypatch), graph(x="Attention Inject.cross_end", x_values="0.2")
    prompt["again"] = {**prompt["inject"], "inputs": {**prompt["inject"]["inputs"], "model": ["inject", 0]}}
    prompt["replay"]["inputs"]["model"] = ["again", 0]
    assert not run(prompt)
    told = run.host.status_messages[-1][1]["exception_message"]
    assert "names 2 settings" in told and "rename" in told and "\ninject.cross_end (0.8)" in told
    prompt["sheet"]["inputs"]["x"] = "again.cross_end"
    run.done(prompt)
    assert len(run.samples()) == 1 and not [name for name in run.executed if "inject" in name and "sheet" in name]


def test_pictures_stand_under_their_columns_and_beside_their_rows():
    """Each picture of a batch has a page. A label takes more lines where one is too narrow, and moves what is below."""
    shades = torch.linspace(0.1, 0.6, 12).view(6, 2, 1, 1, 1)
    cells = list(shades.expand(6, 2, 64, 64, 3))
    for columns, rows in (["a", "b", "c"], ["one", "two"]), (["a", "b" * 9 + " " + "c" * 30, "c"], ["", ""]):
        for page, colours in zip(settings_sheet.grid(cells, columns, rows), shades.unbind(1)):
            places = [(page - colour).abs().amax(-1).lt(1 / 255).nonzero().float().mean(0) for colour in colours]
            across, down = torch.stack(places).view(2, 3, 2).unbind(-1)[::-1]
            assert across.diff(dim=1).min() > 256 and down.diff(dim=0).min() > 256
            assert across.diff(dim=0).abs().max() < 1 and down.diff(dim=1).abs().max() < 1
    one, two = (settings_sheet.grid(cells, [text] * 3, [""] * 2).shape for text in ("short", "a long text " * 5))
    assert two[1] > one[1] and two[2] == one[2]
    assert settings_sheet.grid(cells, ["a"] * 3, ["one"] * 2).shape[2] > one[2]


def test_columns_stand_in_line_though_a_setting_changes_the_pictures_size():
    """Of two columns, with the sizes in turn."""
    sides, colours = (64, 400, 400, 64), torch.cat([torch.eye(3), 1 - torch.eye(3)[:1]])
    cells = [colour.expand(1, side, side, 3) for side, colour in zip(sides, colours)]
    for rows in (["one", "two"], ["", ""]):
        page = settings_sheet.grid(cells, ["a", "b"], rows)
        shown = [(page - colour).abs().amax(-1).lt(1 / 255)[0].nonzero() for colour in colours]
        lefts, tops = ([int(places[:, side].min()) for places in shown] for side in (1, 0))
        assert lefts[0] == lefts[2] and lefts[1] == lefts[3] and tops[0] == tops[1] and tops[2] == tops[3]
        ink = (page[0, :tops[0] - 2].amin((0, 2)) < 0.5).nonzero().flatten()
        assert all((ink - left).abs().min() < 10 for left in lefts[:2])  # a label begins where its column does
