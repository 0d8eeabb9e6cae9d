"""Edit Report, its drawing, and the miniature's scenes as nodes."""
import comfy.model_management as management
import comfy.utils
import numpy as np
import pytest
import torch
from palimpsest.metrics.drawing import colours, heat, heatmaps, sheet, tile
from palimpsest.metrics.edits import edit_numbers
from palimpsest.metrics.masks import background_mask
from palimpsest.metrics.pixels import psnr
from palimpsest.miniature.hard import hard_edit
from palimpsest.miniature.scenes import EDIT_KINDS, held_out_edit
from palimpsest.nodes.edit_report import NUMBERS, ROWS, PalimpsestEditReport, check, difference, shades
from palimpsest.nodes.miniature import PalimpsestMiniatureScene
from PIL import Image

from largest import Largest


@pytest.fixture(autouse=True)
def previews(tmp_path, monkeypatch):
    """The host's folder for previews on nodes."""
    import folder_paths
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    return tmp_path


def scene(seed=3, kind="colour"):
    edit = held_out_edit(seed, kind)
    return tuple(torch.from_numpy(a)[None] for a in (edit.source_image, edit.target_image, edit.mask))


def report(**inputs):
    output = PalimpsestEditReport.execute(**inputs)
    return *output.args, output.ui


def read(text):
    return {name: float(value.split()[0]) for name, value in (line.split(": ") for line in text.splitlines())}


def test_the_text_holds_the_measures():
    source, target, mask = scene()
    edited = .9 * target
    _, text, _ = report(source=source, edited=edited, reconstruction=.95 * source, target=target, mask=mask)
    numbers = read(text)
    assert numbers.keys() == NUMBERS.keys()
    expected = dict(psnr=psnr(edited, source), reconstruction_psnr=psnr(.95 * source, source),
                    background_psnr=psnr(edited, source, background_mask(mask)), target_psnr=psnr(edited, target),
                    target_mask_psnr=psnr(edited, target, mask), edit_share=100 * mask.mean())
    for name, value in expected.items():
        assert numbers[name] == pytest.approx(value.item(), abs=.051 if name == "edit_share" else .0051), name


def test_without_the_optional_inputs_their_numbers_are_absent():
    source, target, _ = scene()
    _, text, _ = report(source=source, edited=target)
    assert read(text).keys() == {"psnr", "ssim", "changed"}


def test_every_input_changes_the_sheet_and_the_text():
    source, target, mask = scene()
    given = dict(source=source, edited=.9 * target, reconstruction=.95 * source, target=target, mask=mask)
    picture, text, _ = report(**given)
    for name, value in given.items():
        other = value * (torch.arange(128) < 60) if name == "mask" else .5 * value
        changed_picture, changed_text, _ = report(**given | {name: other})
        assert changed_text != text, name
        assert changed_picture.shape != picture.shape or not torch.equal(changed_picture, picture), name


def test_a_text_about_the_edit_stands_below_in_as_many_lines_as_it_needs():
    source, target, _ = scene()
    plain, text, _ = report(source=source, edited=target)
    high, side = plain.shape[1], 22  # of the sheet, and its margin
    heights = []
    for about in "auto: one line", "auto: a line that is longer than the sheet is wide; " * 4:
        picture, same, _ = report(source=source, edited=target, about=about)
        assert same == text and torch.equal(picture[:, :high - side], plain[:, :-side])
        assert (picture[:, high - side:] < .5).any() and (picture[:, -side // 2:] == 1).all()
        heights.append(picture.shape[1] - high)
    assert 0 < 3 * heights[0] <= 2 * heights[1]


def test_a_batch_of_edits_shares_one_source_and_has_a_row_each():
    source, target, mask = scene()
    edited = torch.cat([.9 * target, .7 * target, source])
    picture, text, _ = report(source=source, edited=edited, mask=mask)
    single, first, _ = report(source=source, edited=edited[:1], mask=mask)
    lines = text.splitlines()
    assert [line.removeprefix("1 ") for line in lines if line.startswith("1 ")] == first.splitlines()
    assert "3 psnr: inf dB" in lines and "3 changed: 0.0 %" in lines
    assert picture.shape[2] == single.shape[2] and picture.shape[1] > 2.5 * single.shape[1]


def test_a_mask_that_leaves_no_background_reads_as_no_number():
    source, target, mask = scene()
    _, text, _ = report(source=source, edited=target, mask=torch.ones_like(mask))
    assert "background_share: 0.0 %" in text and "background_psnr" not in text and "background_ssim" not in text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_picture_with_values_that_are_no_number_is_drawn_and_named_once(value, caplog):
    source, target, mask = scene()
    edited = target.clone()
    edited[0, :2, :2] = value
    picture, text, _ = report(source=source, edited=edited, target=edited, mask=mask)
    clean, _, _ = report(source=source, edited=target, target=target, mask=mask)
    assert picture.shape == clean.shape and picture.isfinite().all()
    numbers = read(text)
    assert not np.isfinite(numbers["psnr"]) and np.isnan(numbers["ssim"])
    share = 100 * ((target - source).abs().amax(-1) > .1).float().mean().item()
    assert numbers["changed"] == pytest.approx(share + 100 * 4 / 128 ** 2, abs=.051)
    assert [r.getMessage() for r in caplog.records] == [
        "edited has 12 of 49152 and target has 12 of 49152 values that are NaN or infinite: run the VAE in fp32 "
        "(--fp32-vae), or repair the node that made them."]


def test_a_picture_of_nothing_but_nan_is_black_and_changed():
    source, target, _ = scene()
    picture, text, _ = report(source=source, edited=torch.full_like(target, torch.nan))
    assert "psnr: nan dB" in text and "changed: 100.0 %" in text and picture.isfinite().all()
    assert not np.asarray(tile(torch.full((64, 64, 3), torch.nan), ""))[1:250, 1:250].any()
    assert heat(target[0], torch.full((8, 8), torch.nan))[0].isfinite().all()


def test_a_long_video_has_sixteen_rows_and_all_its_numbers(monkeypatch):
    drawn = []
    monkeypatch.setattr("palimpsest.nodes.edit_report.tile", lambda image, label, *rest: (
        drawn.append((label, image)), tile(image, label, *rest))[1])
    source, target, mask = scene()
    shades = torch.linspace(.1, .9, 2 * ROWS)[:, None, None, None] * target
    picture, text, _ = report(source=source, edited=shades, mask=mask)
    assert len([line for line in text.splitlines() if " psnr: " in line]) == 2 * ROWS
    heads = [label for label, _ in drawn if label.split(":")[0].isdigit()]
    assert heads[0] == "1: source, 128 x 128" and heads[-1] == str(2 * ROWS) and len(heads) == ROWS
    steps = np.diff([int(head.split(":")[0]) for head in heads])
    assert set(steps) == {2, 3}
    assert all(label for label, _ in drawn)  # so that the pictures of a row begin at one height
    edited = [image for _, image in drawn][1::4]
    assert all(torch.equal(image, shades[int(head.split(":")[0]) - 1]) for head, image in zip(heads, edited))
    few, _, _ = report(source=source, edited=shades[:ROWS], mask=mask)
    assert few.shape[1] < picture.shape[1] < 1.1 * few.shape[1]  # and the lines that say so


def test_pictures_of_one_channel_are_grey():
    source, target, mask = scene()
    grey, coloured = target[..., :1], target[..., :1].expand(-1, -1, -1, 3)
    one, two = (report(source=g, edited=.5 * g, mask=mask) for g in (grey, coloured))
    assert torch.equal(one[0], two[0]) and one[1] == two[1]


def test_load_images_empty_mask_is_one_of_any_size():
    source, target, mask = scene()
    small, full = (report(source=source, edited=target, mask=m) for m in (torch.zeros(1, 64, 64), 0 * mask))
    assert torch.equal(small[0], full[0]) and small[1] == full[1]


def test_sizes_that_differ_are_named():
    source, target, mask = scene()
    with pytest.raises(ValueError, match="edited is 64x128 and source is 128x128: .* Scale and crop the source .* "
                                         "before VAE Encode"):
        report(source=source, edited=target[:, :, :64])
    with pytest.raises(ValueError, match="mask is 128x32 and source is 128x128"):
        report(source=source, edited=target, mask=torch.eye(128)[None, :32])
    with pytest.raises(ValueError, match="target holds 2 pictures and the largest input 3: connect one for all, or 3"):
        report(source=source, edited=target.repeat(3, 1, 1, 1), target=target.repeat(2, 1, 1, 1))


def large(side=700):
    row, mask = torch.rand(1, 1, side, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(1, side, side)
    mask[:, 100:300, 200:500] = 1
    # repeated rows, which take no memory
    shares = dict(source=1, edited=.9, reconstruction=.95, target=.8)
    return {name: (share * row).expand(-1, side, -1, -1) for name, share in shares.items()} | dict(mask=mask)


def test_a_large_picture_is_never_held_whole_again():
    """It is neither measured nor drawn. The largest tensor is one of its channels in float32."""
    given = check(**large(1600))
    with Largest() as largest:
        numbers = edit_numbers(**given)
        difference(given["edited"][0], given["source"][0])
        shades(given["mask"][0])
        tile(given["source"][0], "")
    assert numbers["background_ssim"].isfinite() and largest.size <= 4 * given["mask"].numel()


def test_between_tiles_progress_is_shown_and_an_interrupt_ends_it():
    shown = []

    def hook(value, total, preview, node_id=None):
        shown.append((value, total))
        if stops:
            management.interrupt_current_processing()

    comfy.utils.set_progress_bar_global_hook(hook)
    try:
        stops = False
        report(**large())
        tiles, measures = 9, 9
        assert shown[0] == (0, tiles * measures) and all(total == tiles * measures for _, total in shown)
        stops = shown.clear() is None
        with pytest.raises(management.InterruptProcessingException):
            report(**large())
        assert shown == [(0, tiles * measures)]
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
        management.interrupt_current_processing(False)


def test_inputs_stay_as_they_are_and_equal_inputs_give_equal_bytes():
    given = dict(zip(("source", "target", "mask"), scene()))
    given["edited"] = .9 * given["target"]
    before = {name: t.clone() for name, t in given.items()}
    first, again = report(**given), report(**given)
    assert torch.equal(first[0], again[0]) and first[1] == again[1]
    assert all(torch.equal(given[name], t) for name, t in before.items())


def test_both_are_shown_on_the_node(previews):
    source, target, mask = scene()
    picture, text, shown = report(source=source, edited=target, mask=mask)
    assert shown["text"] == (text,)
    with Image.open(previews / shown["images"][0]["filename"]) as file:
        assert np.abs(np.asarray(file) / 255 - picture[0].numpy()).max() < 1.1 / 255


def test_a_tile_shows_the_pictures_own_pixels():
    image = torch.rand(100, 128, 3, generator=torch.Generator().manual_seed(0))
    page = np.asarray(tile(image, ""))[:300]
    assert np.array_equal(page[1:-1, 1:-1], (image * 255).round().byte().numpy().repeat(3, 0).repeat(3, 1)[1:-1, 1:-1])


@pytest.mark.parametrize("height, width", [(1, 1), (16, 16), (600, 40), (128, 2048), (2048, 1536), (768, 512)])
def test_tiles_of_any_size_fit_a_page(height, width):
    page = tile(torch.full((height, width, 1), .5).expand(-1, -1, 3), "grey", [("a", "1")], (0., 1.))
    assert 190 <= page.width <= 1024 and page.height <= 1200
    assert sheet([[page, page], [page]]).shape == (1, *_sheet_size(page), 3)


def _sheet_size(page):
    unit = page.width / 256
    margins = 2 * round(22 * unit)
    return 2 * page.height + round(20 * unit) + margins, 2 * page.width + round(14 * unit) + margins


def test_the_colour_map_is_matplotlibs_inferno():
    for value, rgb in {0: (.001462, .000466, .013866), .25: (.3415, .062325, .429425), .5: (.735683, .215906, .330245),
                       .75: (.978422, .557937, .034931), 1: (.988362, .998364, .644924)}.items():
        assert colours(torch.tensor([[float(value)]]))[0, 0].tolist() == pytest.approx(rgb, abs=.035)
    luma = colours(torch.linspace(0, 1, 100)) @ torch.tensor([.2126, .7152, .0722])
    assert luma.diff().min() > 0  # so it is readable in grey too


def test_a_heat_map_is_hottest_where_its_map_is_and_tells_its_range():
    image, values = torch.full((64, 64, 3), .5), torch.full((8, 8), .02)
    values[2, 5] = .3
    overlay, (low, high) = heat(image, values)
    assert (low, high) == pytest.approx((.02, .3))
    brightest = overlay.mean(-1).flatten().argmax().item()
    assert 16 <= brightest // 64 < 24 and 40 <= brightest % 64 < 48
    assert (heat(image, 7 * values)[0] - overlay).abs().max() < 1e-5  # colours are relative to the range
    # as in the host under --fp16-intermediates
    assert (heat(image.half(), values.half())[0] - overlay).abs().max() < 2e-2


def test_heat_maps_of_many_words_wrap_and_a_flat_map_is_drawn():
    image = torch.rand(32, 32, 3, generator=torch.Generator().manual_seed(0))
    few = heatmaps(image, {"flat": torch.full((4, 4), .1), "zero": torch.zeros(4, 4)})
    many = heatmaps(image, {f"word {i}": torch.eye(4) for i in range(9)})
    assert few.isfinite().all() and few.shape[0] == 1 and 0 <= few.min() and few.max() <= 1
    assert many.shape[1] > 1.5 * few.shape[1]
    assert torch.equal(many, heatmaps(image, {f"word {i}": torch.eye(4) for i in range(9)}))


@pytest.mark.parametrize("given, made", [({}, held_out_edit), ({"hard": True}, hard_edit)])
@pytest.mark.parametrize("kind", EDIT_KINDS)
def test_miniature_scene_gives_the_edit_and_its_truth(kind, given, made, previews):
    output = PalimpsestMiniatureScene.execute(seed=5, kind=kind, **given)
    source, source_text, target_text, target, mask = output.args
    edit = made(5, kind)
    assert (source_text, target_text) == (edit.source_text, edit.target_text)
    assert source.shape == target.shape == (1, 128, 128, 3) and mask.shape == (1, 128, 128)
    assert torch.equal((source != target).any(-1), mask > 0) and mask.any()
    assert len(output.ui.as_dict()["images"]) == 2
