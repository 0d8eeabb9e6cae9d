"""The benchmarks of edits: cases, resuming, PIE-Bench's format."""
import json
import sys

import numpy as np
import pytest
import torch
from palimpsest.bench import cost, masks, pie, scenes, speed
from palimpsest.metrics.edits import edit_scores
from palimpsest.miniature.scenes import EDIT_KINDS, held_out_edit, visible
from PIL import Image


def run(module, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    module.main()


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


def test_a_pie_bench_folder_is_edited_and_measured_by_its_conventions(tmp_path, monkeypatch, capsys):
    (tmp_path / "annotation_images" / "0_random").mkdir(parents=True)
    entries = {}
    for i in range(2):
        edit = held_out_edit(i, "colour")
        path = f"0_random/{i:012}.png"
        Image.fromarray((edit.source_image * 255).round().astype(np.uint8)).save(tmp_path / "annotation_images" / path)
        word = next(a for a, b in zip(edit.target_text.split(), edit.source_text.split()) if a != b)
        entries[f"{i:012}"] = {"image_path": path, "original_prompt": edit.source_text, "editing_type_id": "0",
                               "mask": runs_of(edit.mask),
                               "editing_prompt": edit.target_text.replace(word, f"[{word}]")}
    (tmp_path / "mapping_file.json").write_text(json.dumps(entries))
    found = pie.cases(tmp_path, 700)
    assert [c.target_text for c in found] == [held_out_edit(i, "colour").target_text for i in range(2)]
    out = tmp_path / "pie.jsonl"
    run(pie, monkeypatch, tmp_path, "--steps", 2, "--editor", "plain", "--out", out, "--count", 1)
    first = out.read_text()
    run(pie, monkeypatch, tmp_path, "--steps", 2, "--editor", "plain", "--out", out)
    assert out.read_text().startswith(first)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [r["case"] for r in rows] == list(entries)
    for row, case in zip(rows, found):
        share = 1 - case.mask.mean()
        assert row["pie_psnr"] == pytest.approx(row["background_psnr"] - 10 * np.log10(share), abs=1e-3)
    assert "plain 2" in capsys.readouterr().out


def test_scene_bench_goes_on_where_it_was_and_gives_the_same_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(scenes, "LINES", tmp_path)
    common = ("--kind", "colour", "style", "--steps", 2, "--batch", 1, "--out", tmp_path / "table.json",
              "--inversion", "DDIM")
    lines = tmp_path / "public 2 steps CFG 4.jsonl"

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
    found = json.loads((tmp_path / "table.json").read_text())["measured"]
    assert found["DDIM, plain"]["cases"] == 4 and len(found["DDIM, Attention Inject"]["success, over plain"]) == 3
    assert Image.open(tmp_path / "sheet.png").width > 500
    run(scenes, monkeypatch, *common, "--cases", 2, "--editor", "plain")
    assert json.loads((tmp_path / "table.json").read_text())["measured"] == found
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


def test_the_best_choice_of_a_kind_succeeds_and_is_nearest_to_the_target():
    def row(success, near):
        return {"kinds": {"colour": {"success": success, "target_psnr": near}}}

    found = {"a": row(0.75, 30.0), "b": row(0.9, 20.0), "c (true mask)": row(0.8, 25.0), "d": row(1.0, 15.0)}
    *_, line = scenes.best(found, ["colour"]).splitlines()
    assert line == "| colour | c (true mask) | 80% | 25.0 dB | b | 90% | 20.0 dB |"


def test_speed_times_runs_of_equal_results_and_prints_the_rows_of_the_document(tmp_path, monkeypatch, capsys):
    same, editor = ("SEGA, one concept", "DDIM inversion"), "Proximal Guidance"
    monkeypatch.setattr(speed, "NARROW", {name: speed.NARROW[name] for name in same})
    monkeypatch.setattr(speed, "EDITORS", {editor: speed.EDITORS[editor]})
    monkeypatch.setattr(speed, "METHODS", {"DDIM": speed.METHODS["DDIM"]})
    monkeypatch.setattr(speed, "AXES", {"steps": (2,), "rows": (1, 2), "side": (8,), "concepts": (1,)})
    out = tmp_path / "speed.json"
    run(speed, monkeypatch, "--only", "peers", "nodes", "growth", "--rounds", 1, "--steps", 2, "--channels", 32,
        "--size", 8,
        "--out", out)
    found = {part: numbers["measured"] for part, numbers in json.loads(out.read_text()).items()}
    assert [*found["peers"]] == [*same] and max(r["difference"] for r in found["peers"].values()) < 1e-3
    assert found["growth"]["rows"]["2"]["DDIM Invert"]["memory"] < 1  # one row per picture, not two
    printed = capsys.readouterr().out
    assert all(f"| {name} | " in printed for name in (*same, editor, "DDIM, the inversion", "Attention Inject"))


def test_cost_promises_by_the_rows_that_are_read_and_prints_the_rows_of_the_document(tmp_path, monkeypatch, capsys):
    kept, moved, four = (name for name in cost.EDITORS if name == "Noise Map Guidance" or "whole schedule" in name)
    monkeypatch.setattr(cost, "MODELS", {"miniature": (None, 16,
                                                       {name: cost.EDITORS[name] for name in (kept, moved, four)})})
    out = tmp_path / "cost.json"
    run(cost, monkeypatch, "--rounds", 1, "--steps", 2, "--out", out)
    found = json.loads(out.read_text())["miniature"]["measured"]
    assert found[kept]["share of steps read"] == 1 and found[kept]["row passes"] == 1.5
    assert found[kept]["time promised"] == pytest.approx(1.6)
    assert found[four]["time promised"] == pytest.approx(1.225)
    assert found[kept]["memory"] < 1.3 < found[moved]["memory"]  # the latter keeps a graph
    *_, line = (row for row in capsys.readouterr().out.splitlines() if row.startswith(f"| {moved} |"))
    assert line == f"| {moved} | {found[moved]['processor time']:.2f} | {found[moved]['memory']:.2f} |"
