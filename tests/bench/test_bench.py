"""The benchmarks of edits: cases, resuming, PIE-Bench's format."""
import json
import re
import sys
from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from palimpsest.bench import cost, differences, masks, pie, scenes, speed, summary
from palimpsest.bench.words import changed
from palimpsest.metrics.edits import edit_scores
from palimpsest.miniature.looks import Looks
from palimpsest.miniature.scenes import EDIT_KINDS, held_out_edit, render, visible
from palimpsest.showcase.rows import concept
from PIL import Image

from pack import ROOT

COMMANDS = sorted(p.stem for p in (ROOT / "bench").glob("*.py") if "def main(" in p.read_text(encoding="utf-8"))


def run(module, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    module.main()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_benchmark_is_in_the_guide_and_help_does_not_run_it(name, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(import_module(f"palimpsest.bench.{name}"), monkeypatch, "--help")
    assert "usage: " in capsys.readouterr().out
    _, guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("bench NAME")
    assert name in re.findall(r"\w+", guide.partition("; ")[0])


def runs_of(mask):
    """A mask in PIE-Bench's format."""
    found, flat = [], mask.flatten() > 0
    for i, value in enumerate(flat):
        if value and (i == 0 or not flat[i - 1]):
            found += [i, 1]
        elif value:
            found[-1] += 1
    return found


def test_run_lengths_decode_to_the_mask_and_its_border():
    mask = pie.decode_mask([0, 3, 30, 2, 62, 9], (8, 8))
    inside = mask[1:-1, 1:-1]
    assert mask[0].all() and mask[-1].all() and mask[:, 0].all() and mask[:, -1].all()
    assert np.argwhere(inside).tolist() == [[2, 5]]  # 30 is row 3, column 6
    generator = np.random.default_rng(0)
    drawn = (generator.random((16, 16)) > 0.5).astype(np.float32)
    drawn[[0, -1]] = drawn[:, [0, -1]] = 1
    assert np.array_equal(pie.decode_mask(runs_of(drawn), (16, 16)), drawn)


def pie_folder(tmp_path, count):
    """A folder of PIE-Bench with some scenes."""
    (tmp_path / "annotation_images" / "0_random").mkdir(parents=True)
    entries = {}
    for i in range(count):
        edit = held_out_edit(i, "colour")
        path = f"0_random/{i:012}.png"
        Image.fromarray((edit.source_image * 255).round().astype(np.uint8)).save(tmp_path / "annotation_images" / path)
        word = next(a for a, b in zip(edit.target_text.split(), edit.source_text.split()) if a != b)
        entries[f"{i:012}"] = {"image_path": path, "original_prompt": edit.source_text, "editing_type_id": "0",
                               "mask": runs_of(edit.mask),
                               "editing_prompt": edit.target_text.replace(word, f"[{word}]")}
    (tmp_path / "mapping_file.json").write_text(json.dumps(entries))
    return tmp_path


def test_a_pie_bench_folder_is_edited_and_measured_by_its_conventions(tmp_path, monkeypatch, capsys):
    entries = pie.entries(pie_folder(tmp_path, 2), 700)
    found = pie.cases(tmp_path, 700)
    assert [c.target_text for c in found] == [held_out_edit(i, "colour").target_text for i in range(2)]
    out = tmp_path / "pie.jsonl"
    run(pie, monkeypatch, tmp_path, "--steps", 2, "--editor", "plain", "--out", out, "--count", 1)
    first = out.read_text()
    run(pie, monkeypatch, tmp_path, "--steps", 2, "--editor", "plain", "--out", out)
    assert out.read_text().startswith(first)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [r["case"] for r in rows if r["editor"] == "plain"] == [number for number, _ in entries]
    most, some = ([r["background_psnr"] for r in rows if r["editor"] == name] for name in ("autoencoder", "plain"))
    assert all(a > b for a, b in zip(most, some))
    rows = [r for r in rows if r["editor"] == "plain"]
    for row, case in zip(rows, found):
        share = 1 - case.mask.mean()
        assert row["pie_psnr"] == pytest.approx(row["background_psnr"] - 10 * np.log10(share), abs=1e-3)
    printed = capsys.readouterr().out
    assert "| no editor, fresh noise | 2 |" in printed and "| DDIM, plain | 2 |" in printed and "±" in printed


def test_pie_bench_edits_anew_only_what_its_file_has_not_with_these_settings(tmp_path, monkeypatch):
    folder = pie_folder(tmp_path, 1)
    out = tmp_path / "pie.jsonl"

    def lines(folder, steps):
        run(pie, monkeypatch, folder, "--steps", steps, "--editor", "plain", "--out", out)
        return len(out.read_text().splitlines())

    monkeypatch.chdir(tmp_path)
    counts = [lines(folder, 2), lines(folder, 3), lines(folder, 2), lines(".", 2)]
    assert counts == [3, 6, 6, 6]
    about = {name: json.loads(out.read_text().splitlines()[0])[name] for name in ("folder", "steps", "clip_text")}
    assert len(pie.stored(out, about.items())) == 3 and not pie.stored(
        out, (about | {"clip_text": "other.safetensors"}).items())


def test_pie_bench_tells_errors_of_a_millionth_apart():
    rows = [{"case": str(i), "kind": "0", "inversion": "DDIM", "editor": editor, "pie_mse": mean + i * 1e-5}
            for editor, mean in (("plain", 32e-4), ("other", 33e-4), ("best", 4e-5)) for i in range(-2, 3)]
    head, _, *cells = pie.report(rows).splitlines()[:5]
    assert head == "|  | cases | MSE, 1e-4 |"
    assert [cell.split(" | ")[2].split(" ±")[0] for cell in cells] == ["32.0", "33.0", "0.4"]
    assert all("±0.1" in cell for cell in cells)
    assert "MSE" not in pie.report([row | {"pie_mse": None} for row in rows])


def test_scene_bench_goes_on_where_it_was_and_gives_the_same_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(scenes, "LINES", tmp_path)
    common = ("--kind", "colour", "style", "--steps", 2, "--batch", 1, "--out", tmp_path, "--inversion", "DDIM")
    lines = tmp_path / f"public 2 steps CFG 4 {scenes.version('public')}.jsonl"

    def rows():
        return [{k: v for k, v in json.loads(line).items() if k != "seconds"}
                for line in lines.read_text().splitlines()]

    def edits():
        return [r for r in rows() if r["inversion"] != scenes.NOBODY]

    run(scenes, monkeypatch, *common, "--cases", 1, "--editor", "plain")
    first, whole = rows(), lines.read_text()
    run(scenes, monkeypatch, *common, "--cases", 2, "--editor", "plain", "Attention Inject")
    assert lines.read_text().startswith(whole) and len(edits()) == 8
    assert len({(r["case"], r["editor"]) for r in rows()}) == len(rows()) == 8 + 4 * len(scenes.REFERENCES)
    found = json.loads((tmp_path / "public.json").read_text())["measured"]
    assert found["DDIM, plain"]["cases"] == 4 and len(found["DDIM, Attention Inject"]["success, over plain"]) == 3
    for numbers in (found["DDIM, plain"], found["DDIM, plain"]["kinds"]["style"]):
        low, high = numbers["intervals"]["target_psnr"]
        assert low < numbers["target_psnr"] < high
    assert Image.open(tmp_path / "sheet.png").width > 500
    run(scenes, monkeypatch, *common, "--cases", 2, "--editor", "plain")
    assert json.loads((tmp_path / "public.json").read_text())["measured"] == found
    lines.unlink()
    run(scenes, monkeypatch, *common, "--cases", 1, "--editor", "plain")
    assert rows() == first


def test_masks_of_words_are_measured_against_the_true_object_and_lie_on_it(tmp_path, monkeypatch, capsys):
    """At the node's defaults, on one scene of each kind."""
    out = tmp_path / "masks.json"
    run(masks, monkeypatch, "--count", 1, "--steps", 6, "--words", "all", "--out", out)
    found = json.loads(out.read_text())["measured"]
    assert found["refined | 0"]["all"] > 0.65 > 3 * found["as they are | 0.3"]["all"]
    assert found["refined | 0"]["wide"] == 0
    assert f"| refined | 0.5 | {found['refined | 0.5']['object']:.2f} |" in capsys.readouterr().out
    for kind in EDIT_KINDS:
        edit = held_out_edit(0, kind)
        names, one = masks.named(edit)
        assert [name.split("#")[0] for name in names.split(", ")] == one.phrase().split()[1:]
        assert one in edit.source.objs
        a, b = (masks.torch.from_numpy(m) for m in (masks.covered(one), edit.mask))
        assert kind != "delete" or masks.iou(a[None], b[None]) > 0.9


def test_masks_of_concepts_lie_on_a_flow_models_object(tmp_path, monkeypatch):
    monkeypatch.setattr(masks, "EDIT_KINDS", ("colour", "style"))
    run(masks, monkeypatch, "--model", "flow", "--count", 1, "--steps", 6, "--words", "all", "--out",
        tmp_path / "masks.json")
    found = json.loads((tmp_path / "masks.json").read_text())["measured"]
    assert found["of concepts | 0"]["all"] > 0.5 > found["refined | 0"]["all"]


def test_masks_from_differences_are_measured_and_auto_knows_a_new_background(tmp_path, monkeypatch, capsys):
    out = tmp_path / "differences.json"
    monkeypatch.setattr(differences, "EDIT_KINDS", ("colour", "background"))
    run(differences, monkeypatch, "--cases", 1, "--out", out)
    found = json.loads(out.read_text())["measured"]
    assert found["background"]["auto: recall"] > 0.8 > 0.3 > found["background"]["paper: recall"]
    assert found["colour"]["auto: IoU"] == found["colour"]["paper: IoU"] > 0.6
    assert f"| auto: IoU | {found['colour']['auto: IoU']:.2f} |" in capsys.readouterr().out


def test_the_exact_target_succeeds_and_keeps_everything():
    """Attributes that an edit removes, an object's or a sketch's colours, do not count as kept."""
    for kind in EDIT_KINDS:
        edits = [held_out_edit(n, kind) for n in range(8)]
        before, wanted = scenes.asked(edits, [visible(e.source) for e in edits])
        success, kept = edit_scores([visible(e.target) for e in edits], before, wanted)
        assert success.all() and (kept == 1).all() and all(len(b) >= 4 for b in before), kind


def test_the_rows_of_a_scene_bench_line_are_those_of_the_network():
    """Two steps of inversion at CFG 1, two of the edit at CFG 4 in two rows, none of the autoencoder.
    A backward counts as two."""
    parts = scenes.load_miniature()
    with torch.inference_mode():
        made = scenes.Scenes(parts, [held_out_edit(0, "colour")])
        with scenes.Counter(parts[0]) as counted:
            inversion = made.invert(scenes.METHODS["DDIM"], 4.0, 2)
            made.replay(inversion, made.target, 4.0)
        with scenes.Counter(parts[0]) as learning:
            learned = made.invert(scenes.METHODS["Null-text"], 4.0, 2)
    assert counted.rows == 2 + 2 * 2
    assert learning.rows == learned.provenance["evaluations"] > 6


def rows_of(**near):
    """Entries of rows that are for colours: {name: (success, dB)}."""
    return {name: {"kinds": {"colour": {"success": success, "target_psnr": psnr}}}
            for name, (success, psnr) in near.items()}


def test_the_best_choice_of_a_kind_succeeds_and_is_nearest_to_the_target():
    found = rows_of(a=(0.75, 30.0), b=(0.9, 20.0), c=(0.8, 25.0), d=(1.0, 15.0), **{"no editor, e": (1.0, 40.0)})
    assert summary.chosen(found, "colour") == "c"
    assert summary.chosen(found, "colour", lambda name: name == "c") == "b"
    assert summary.chosen(rows_of(a=(0.1, 30.0), b=(0.3, 20.0)), "colour") == "b"  # none succeeds often
    assert summary.chosen(found, "style") is None


def test_the_best_choice_is_made_on_the_public_split_and_shown_on_the_held_out_one():
    public, held_out = rows_of(a=(1.0, 30.0), b=(1.0, 20.0)), rows_of(a=(0.4, 11.0), b=(1.0, 29.0))
    (kind, row, shown), (_, other, _) = summary.best(public, held_out, ["colour"], lambda name: name == "a")
    assert (kind, row, shown["target_psnr"], other) == ("colour", "a", 11.0, "b")
    held_out["a"]["kinds"] = {}  # not measured there
    assert summary.best(public, held_out, ["colour"], lambda name: False)[0][1] == "b"


def test_a_table_says_how_sure_its_numbers_are():
    lines = [{"case": f"colour-{n}", "kind": "colour", "inversion": "DDIM", "editor": editor, "success": float(n < 9),
              "target_psnr": 20.0 + n + 5 * (editor == "b")} for n in range(10) for editor in ("plain", "b")]
    found = summary.summary(lines, ["colour", "style"], ("success", "target_psnr"))
    assert found["DDIM, b"]["target_psnr, over plain"] == [5.0, 5.0, 5.0]
    low, high = found["DDIM, b"]["intervals"]["success"]
    assert (low, high) == pytest.approx((0.596, 0.982), abs=2e-3)  # Wilson's of 9 in 10
    columns = summary.Column("success", "success", "%"), summary.Column("target_psnr", "to the target", " dB")
    *_, row = summary.table(found, columns).splitlines()
    assert row == "| DDIM, b | 90% ±19 | 29.5 ±1.7 dB |"
    *_, row = summary.table_by_kind(found, ["colour", "style"], columns).splitlines()
    assert row == "| DDIM, b | 90% ±19, 29.5 ±1.7 dB |  |"  # it was not measured on styles


@pytest.mark.parametrize("model, other", [("sd", "Null-text"), ("flow", "Uni-Inv")])
def test_a_row_runs_where_it_belongs(model, other):
    on = [(i, k, scenes.editors_on(i, k, scenes.EDITORS, model)) for i in scenes.METHODS for k in EDIT_KINDS]
    for name, row in scenes.EDITORS.items():
        where = {(i, k) for i, k, editors in on if name in editors}
        assert {k for _, k in where} <= set(row.kinds or EDIT_KINDS)
        if row.only not in ("", model):
            assert not where, name
        elif row.on in scenes.METHODS:
            seen = {i for i, _ in where}
            assert row.on in seen and (other in seen) == (row.crossed or row.on == other), name
    assert scenes.editors_on(scenes.NO_INVERSION, "colour", scenes.EDITORS) == ["Delta Denoise", "Delta Denoise, CFG 2"]


def test_a_picture_edited_alone_is_a_row_of_its_batch():
    made = scenes.Scenes(scenes.load_miniature(), [held_out_edit(n, "colour") for n in (0, 3)])
    with torch.inference_mode():
        inversion = made.invert(scenes.METHODS["DDIM"], 4.0, 2)
        together = scenes.edited(made, inversion, "Attention Inject", 4.0)
        apart = [scenes.edited(one, scenes.single(inversion, one, i), "Attention Inject", 4.0)
                 for i, one in enumerate(made.singles)]
        words = scenes.edited(made, inversion, "Inject + Latent Blend (words)", 4.0)
    assert torch.allclose(together, torch.cat(apart), atol=1e-3) and words.shape == together.shape
    assert (words - together).abs().max() > 0.05


def test_new_noise_is_each_scenes_own():
    made = scenes.Scenes(scenes.load_flow_miniature(), [held_out_edit(n, "add") for n in (0, 3)])
    with torch.inference_mode():
        inversion = made.invert(scenes.METHODS["DDIM"], 4.0, 2)
        together, plain = (scenes.edited(made, inversion, name, 4.0) for name in ("new noise", "plain"))
        apart = [scenes.edited(one, scenes.single(inversion, one, i), "new noise", 4.0)
                 for i, one in enumerate(made.singles)]
    assert torch.allclose(together, torch.cat(apart), atol=1e-3) and (plain - together).abs().max() > 0.05


@pytest.mark.parametrize("source, target, old, new, same", [
    ("a photo of a red star on a sky background", "a photo of a blue star on a sky background",
     ["red#1", "star#1"], ["blue#1", "star#1"], []),
    ("a photo of a red star on a sky background", "a photo of a red star and a blue star on a sky background",
     [], ["blue#1", "star#2"], ["red#1", "star#1"]),
    ("a photo of a red star and a red star on a sky background", "a photo of a red star and a red ring on a sky "
     "background", ["red#2", "star#2"], ["red#2", "ring#1"], ["red#1", "star#1"]),
    ("a photo of a red star on a sky background", "a sketch of a red star on a sky background",
     ["photo#1"], ["sketch#1"], ["red#1", "star#1"])])
def test_the_words_that_an_edit_changes_are_found_in_its_prompts(source, target, old, new, same):
    found = changed(source, target)
    assert [[n for p in part for n in p.names] for part in (found.old, found.new, found.same)] == [old, new, same]


def test_success_on_a_hard_scene_needs_the_details():
    """The exact target succeeds. The same edit of larger objects without looks does what is asked and no more."""
    edits = scenes.SPLITS["hard-public"].edits("colour", range(4))
    made = scenes.Scenes(scenes.load_miniature(), edits)
    known = scenes.Known.of(made, details=True)
    exact = scenes.score(made, known, known.truth)
    assert exact["success"].all() and exact["details"].min() == 1
    bare = torch.stack([torch.from_numpy(render(replace(
        e.target, light="", spot="", objs=tuple(replace(o, looks=Looks(), r=o.r + .04) for o in e.target.objs))))
        for e in edits])
    plain = scenes.score(made, known, bare)
    assert plain["asked"].sum() >= 3 and not plain["success"].any()
    assert "details" not in scenes.score(made, scenes.Known.of(made), bare)


def test_speed_times_runs_of_equal_results_and_prints_the_rows_of_the_document(tmp_path, monkeypatch, capsys):
    same, editor = ("SEGA, one concept", "DDIM inversion"), "Proximal Guidance"
    monkeypatch.setattr(speed, "NARROW", {name: speed.NARROW[name] for name in same})
    monkeypatch.setattr(speed, "EDITORS", {editor: speed.EDITORS[editor]})
    monkeypatch.setattr(speed, "METHODS", {"DDIM": speed.METHODS["DDIM"]})
    monkeypatch.setattr(speed, "AXES", {"steps": (2,), "rows": (1, 2), "side": (8,), "concepts": (1,)})
    out = tmp_path / "speed.json"
    run(speed, monkeypatch, "--only", "peers", "flow", "nodes", "growth", "--rounds", 1, "--steps", 2, "--channels", 32,
        "--size", 8,
        "--out", out)
    found = {part: numbers["measured"] for part, numbers in json.loads(out.read_text()).items()}
    assert [*found["peers"]] == [*same] and max(r["difference"] for r in found["peers"].values()) < 1e-3
    assert [*found["flow"]] == ["Flux, plain sampling"] and found["flow"]["Flux, plain sampling"]["difference"] < 1e-5
    assert found["growth"]["rows"]["2"]["DDIM Invert"]["memory"] < 1  # one row per picture, not two
    printed = capsys.readouterr().out
    assert all(f"| {name} | " in printed for name in (*same, editor, "DDIM, the inversion", "Attention Inject"))


def test_cost_promises_by_the_rows_that_are_read_and_prints_the_rows_of_the_document(tmp_path, monkeypatch, capsys):
    kept, moved, four = (name for name in cost.EDITORS if name == "Noise Map Guidance" or "whole schedule" in name)
    editors = {name: cost.EDITORS[name] for name in (kept, moved, four)}
    monkeypatch.setattr(cost, "MODELS", {"miniature": (None, 16, editors, 7.5), "no CFG": (None, 16, {
        kept: editors[kept]}, 1.0)})
    out = tmp_path / "cost.json"
    run(cost, monkeypatch, "--rounds", 1, "--steps", 2, "--out", out)
    found, alone = (model["measured"] for model in json.loads(out.read_text()).values())
    assert alone[kept]["time promised"] == pytest.approx(2.1) and alone[kept]["row passes"] == 2
    assert found[kept]["share of steps read"] == 1 and found[kept]["row passes"] == 1.5
    assert found[kept]["time promised"] == pytest.approx(1.6)
    assert found[four]["time promised"] == pytest.approx(1.225)
    assert found[kept]["memory"] < 1.3 < found[moved]["memory"]  # the latter keeps a graph
    *_, line = (row for row in capsys.readouterr().out.splitlines() if row.startswith(f"| {moved} |"))
    assert line == f"| {moved} | {found[moved]['processor time']:.2f} |  | {found[moved]['memory']:.2f} |"


def test_a_concept_is_what_an_edit_brings_or_else_what_it_takes():
    class Known:
        def __init__(self, source, target):
            self.edits = [SimpleNamespace(source_text=source, target_text=target)]
            self.changed = [changed(source, target)]

    one, two = "a photo of a red star on a sky background", "a photo of a red star and a blue ring on a sky background"
    assert concept(Known(one, two)) == (["a photo of a blue ring"], "add")
    assert concept(Known(two, one)) == (["a photo of a blue ring"], "remove")
    assert concept(Known(one, one.replace("photo", "sketch"))) == (["a sketch"], "add")
    assert concept(Known("a cat on a mat", "a dog on a mat")) == (["a dog"], "add")


@pytest.mark.parametrize("name, editor", [
    ("DDIM, plain", "plain"),
    ("DDCM, one noise, Inject + Latent Blend (true mask)", "Inject + Latent Blend (true mask)"),
    ("DDIM, Inject (auto) + Latent Blend (true mask), CFG 2", "Inject (auto) + Latent Blend (true mask), CFG 2"),
    ("no editor, fresh noise", "")])
def test_a_row_names_its_editor_whatever_commas_it_has(name, editor):
    assert scenes.editor_of(name) == editor
