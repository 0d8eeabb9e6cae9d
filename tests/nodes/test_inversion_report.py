"""Inversion Report: its numbers against the same numbers computed separately."""
import dataclasses

import numpy as np
import pytest
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustom
from palimpsest.editing.replay import retrace
from palimpsest.metrics.pixels import psnr
from palimpsest.metrics.whiteness import whiteness
from palimpsest.miniature.model import load_miniature
from palimpsest.miniature.scenes import held_out_edit
from palimpsest.nodes.attention.p2p import PalimpsestAttentionInject
from palimpsest.nodes.inversion.ddim import PalimpsestDDIMInvert
from palimpsest.nodes.inversion.ddpm import PalimpsestDDPMInvert
from palimpsest.nodes.inversion.edict import PalimpsestEDICTInvert
from palimpsest.nodes.inversion.flow.flow_edit import PalimpsestFlowEditInvert
from palimpsest.nodes.inversion.negative_prompt import PalimpsestNegativePromptInvert
from palimpsest.nodes.inversion.replay import PalimpsestReplay
from palimpsest.nodes.inversion.report import NUMBERS, PalimpsestInversionReport, curve, path_errors
from palimpsest.nodes.prompt import PalimpsestPromptEdit
from PIL import Image

import joint
import tiny
from runs import kept

STEPS = 4
LARGE = "vae_psnr", "reconstruction_psnr", "evaluations", "seconds"  # with two decimals, the noise's with three


@pytest.fixture(autouse=True)
def executor():
    with torch.inference_mode():
        yield


@pytest.fixture(autouse=True)
def previews(tmp_path, monkeypatch):
    """The host's folder for previews on nodes."""
    import folder_paths
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    return tmp_path


@kept
def parts():
    with torch.inference_mode():
        return load_miniature()


@kept
def scenes(count=1):
    """(pictures, source CONDITIONING, LATENT, PROMPT_EDIT, empty CONDITIONING)."""
    _, clip, vae = parts()
    edits = [held_out_edit(i, "colour") for i in range(count)]
    with torch.inference_mode():
        pictures = torch.stack([torch.from_numpy(e.source_image) for e in edits])
        source, _, edit = PalimpsestPromptEdit.execute(clip, *("\n".join(getattr(e, n) for e in edits)
                                                               for n in ("source_text", "target_text")), "auto").result
        null = clip.encode_from_tokens_scheduled(clip.tokenize(""))
        return pictures, source, {"samples": vae.encode(pictures)}, edit, null


@kept
def inverted(node=PalimpsestDDIMInvert, count=1, **settings):
    with torch.inference_mode():
        own = {i.id: i.default for i in node.define_schema().inputs if getattr(i, "default", None) is not None}
        _, source, latent, *_ = scenes(count)
        return node.execute(parts()[0], source, latent, **own | {"steps": STEPS} | settings).result[0]


def report(inversion=None, image=None, cfg=1.0, negative=None, model=None, count=1):
    output = PalimpsestInversionReport.execute(model or parts()[0], inversion or inverted(count=count), parts()[2],
                                               scenes(count)[0] if image is None else image, cfg, negative)
    return *output.args, output.ui


def read(text):
    return {name: float(value.split()[0]) for name, value in (line.split(": ") for line in text.splitlines()[1:])}


def sampled(inversion, cfg=1.0, steps=STEPS, count=1):
    """The first steps of the source prompt through the host's own node, in model space."""
    m, solver, sigmas, latent = PalimpsestReplay.execute(parts()[0], inversion, 0.0).result
    _, source, _, _, null = scenes(count)
    return SamplerCustom.execute(m, False, 0, cfg, source, null, solver, sigmas[:steps + 1],
                                 latent).result[0]["samples"]


@pytest.mark.parametrize("cfg", [1.0, 7.5])
def test_the_numbers_are_those_computed_apart(cfg):
    inversion, (pictures, _, latent, _, null), vae = inverted(), scenes(), parts()[2]
    _, text, _ = report(inversion, cfg=cfg, negative=null)
    numbers, found = read(text), sampled(inversion, cfg)
    model = parts()[0].model
    noise = whiteness(inversion.latents[0] / (1 + inversion.sigmas[0] ** 2).sqrt())
    own = inversion.latents[-1]
    expected = {"vae_psnr": psnr(vae.decode(latent["samples"]), pictures).item(),
                "reconstruction_psnr": psnr(vae.decode(found), pictures).item(),
                "error": 100 * ((model.process_latent_in(found) - own).norm() / own.norm()).item(),
                "evaluations": inversion.provenance["evaluations"], "seconds": inversion.provenance["seconds"],
                **{n: v.item() for n, v in noise.items()}}
    assert numbers.keys() == NUMBERS.keys() == expected.keys()
    for name, value in expected.items():
        printed = {"rel": 0.05} if name in ("error", "kl") else {"abs": 0.0051 if name in LARGE else 0.00051}
        assert numbers[name] == pytest.approx(value, **printed), name
    assert f"replayed at CFG {cfg:g}" in text and inversion.schedule in text


@pytest.mark.parametrize("node, cfg", [(PalimpsestDDIMInvert, 1.0), (PalimpsestDDIMInvert, 7.5),
                                       (PalimpsestEDICTInvert, 1.0),
                                       (PalimpsestDDPMInvert, 1.0)])
def test_the_curve_is_the_distance_at_each_level(node, cfg):
    """Against runs that stop at that level."""
    inversion = inverted(node)
    start = PalimpsestReplay.execute(parts()[0], inversion, 0.0).result
    errors = path_errors(retrace(start, inversion, cfg, scenes()[4])[0], inversion)
    assert errors.shape == (len(inversion.sigmas), 1) and errors[0] < 1e-6
    for level in range(1, len(inversion.sigmas)):
        x, own = parts()[0].model.process_latent_in(sampled(inversion, cfg, level)), inversion.latents[level]
        assert float(errors[level]) == pytest.approx(float((x - own).norm() / own.norm()), rel=1e-3, abs=1e-6)
    assert errors[-1] < 1e-4 if node is not PalimpsestDDIMInvert else errors[-1] > 1e-2


def test_guidance_that_an_inversion_was_made_for_brings_the_picture_back():
    null = scenes()[4]
    plain, negative = (read(report(inverted(node), cfg=7.5, negative=null)[1])["reconstruction_psnr"]
                       for node in (PalimpsestDDIMInvert, PalimpsestNegativePromptInvert))
    assert negative == pytest.approx(read(report()[1])["reconstruction_psnr"], abs=0.02) and negative > plain + 1


def test_a_batch_has_a_row_a_picture():
    picture, text, _ = report(count=2)
    single, alone, _ = report()
    rows = text.splitlines()[1:]
    assert len(rows) == 2 * len(NUMBERS) and picture.shape[1] > 1.7 * single.shape[1]
    first = read("\n".join(["", *(r.removeprefix("1 ") for r in rows if r.startswith("1 "))]))
    for name, value in read(alone).items():
        assert name == "seconds" or first[name] == pytest.approx(value, rel=0.02, abs=0.011), name


def test_a_flow_model_is_reported_from_full_noise():
    """At σ = 1 the latent is the noise itself."""
    model, vae, image = tiny.sd3(), tiny.taesd(16), torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    inversion = PalimpsestDDIMInvert.execute(model, tiny.cond(), {"samples": vae.encode(image)}, STEPS,
                                             "simple").result[0]
    assert inversion.sigmas[0] == 1
    numbers = read(PalimpsestInversionReport.execute(model, inversion, vae, image, 1.0).args[1])
    assert numbers["std"] == pytest.approx(float(inversion.latents[0].std()), abs=0.002) and numbers["error"] > 0


def test_of_several_noises_a_picture_has_one_row():
    _, text, _ = report(inverted(PalimpsestFlowEditInvert, 2, n_avg=3), count=2)
    alone = read(report(inverted(PalimpsestFlowEditInvert))[1])
    assert len(text.splitlines()) == 1 + 2 * len(NUMBERS)
    first = read("\n".join(["", *(r.removeprefix("1 ") for r in text.splitlines()[1:] if r.startswith("1 "))]))
    assert first["vae_psnr"] == alone["vae_psnr"] and first["error"] == pytest.approx(alone["error"], abs=0.01)


class Frames:
    """A video's VAE: a latent frame of four pictures, but for the first."""

    def __init__(self, latents, frames):
        self.latents, self.frames = latents, frames

    def vae_encode_crop_pixels(self, image):
        return image

    def encode(self, image):
        return self.latents

    def decode(self, latents):
        return torch.full((len(latents), self.frames, 64, 64, 3), 0.5)


def test_a_video_has_one_row():
    model = joint.JOINT["wan"]()
    latents = joint.latent("wan", model, 1, (8, 8))
    inversion = PalimpsestDDIMInvert.execute(model, tiny.cond(), {"samples": latents}, STEPS, "simple").result[0]
    _, text = PalimpsestInversionReport.execute(model, inversion, Frames(latents, 5), torch.rand(5, 64, 64, 3),
                                                1.0).args
    assert len(read(text)) == len(NUMBERS)


@pytest.mark.parametrize("given", [9, 10, 12])
def test_the_frames_that_a_videos_vae_keeps_are_compared(given):
    model = joint.JOINT["wan"]()
    latents = joint.latent("wan", model, 1, (8, 8))
    inversion = PalimpsestDDIMInvert.execute(model, tiny.cond(), {"samples": latents}, STEPS, "simple").result[0]
    video = torch.rand(given, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    vae = Frames(latents, 9)
    vae.decode = lambda latents: (video[:9] + .01)[None]
    numbers = read(PalimpsestInversionReport.execute(model, inversion, vae, video, 1.0).args[1])
    assert numbers["vae_psnr"] == numbers["reconstruction_psnr"] == 40.0


def test_what_decodes_to_nan_is_drawn_and_named(caplog):
    model = joint.JOINT["wan"]()
    latents = joint.latent("wan", model, 1, (8, 8))
    inversion = PalimpsestDDIMInvert.execute(model, tiny.cond(), {"samples": latents}, STEPS, "simple").result[0]
    vae = Frames(latents, 5)
    vae.decode = lambda latents: torch.full((1, 5, 64, 64, 3), torch.nan)
    caplog.clear()
    picture, text = PalimpsestInversionReport.execute(model, inversion, vae, torch.rand(5, 64, 64, 3), 1.0).args
    assert picture.isfinite().all() and np.isnan(read(text)["vae_psnr"])
    assert len(caplog.records) == 1 and "run the VAE in fp32 (--fp32-vae)" in caplog.text
    assert "round trip has 61440 of 61440 and reconstruction has 61440 of 61440 values" in caplog.text


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_error_that_is_no_number_is_said(bad, monkeypatch, caplog):
    monkeypatch.setattr("palimpsest.nodes.inversion.report.path_errors", lambda path, inversion: torch.cat(
        [path_errors(path, inversion)[:-1], torch.full((1, 1), bad)]))
    inversion = inverted()
    caplog.clear()
    picture, text, _ = report(inversion)
    assert picture.isfinite().all() and f"error: {bad} %" in text
    assert len(caplog.records) == 1 and f"error of the replay has 1 of {STEPS + 1} values that are NaN" in caplog.text


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_the_curve_leaves_out_what_is_not_finite(bad):
    sigmas = [10.0, 5.0, 1.0, 0.0]
    page = curve([1e-3, 1e-2, 1e-1, bad], sigmas, 256)
    whole = curve([1e-3, 1e-2, 1e-1, 1e-1], sigmas, 256)
    assert torch.equal(page[:, :180], whole[:, :180]) and not torch.equal(page, whole)
    assert curve([bad] * 4, sigmas, 256).isfinite().all()


def test_the_curve_falls_and_rises_with_the_errors_on_a_logarithmic_scale():
    side = 256
    page = curve([0.0, 1e-3, 1e-2, 1e-1], [10.0, 5.0, 1.0, 0.0], side).numpy()
    dark = page.mean(-1) < 0.2
    ys = [np.flatnonzero(dark[:, x]).mean() for x in (108, 145, 182, 219, 242)]  # between the points, and near the last
    assert ys == sorted(ys, reverse=True)
    above = curve([1e-3, 1e-2, 1e-1, 1.0], [10.0, 5.0, 1.0, 0.0], side).numpy().mean(-1) < 0.2
    heights = [np.flatnonzero(above[:, x]).mean() for x in (63, 122, 182, 242)]
    assert np.diff(heights) == pytest.approx(np.diff(heights).mean(), rel=0.1)  # all decades have the same height


def test_every_number_stands_on_the_sheet_and_it_is_shown(previews):
    picture, text, shown = report()
    assert picture.shape[0] == 1 and picture.shape[-1] == 3 and 0 <= picture.min() and picture.max() <= 1
    assert shown["text"] == (text,)
    with Image.open(previews / shown["images"][0]["filename"]) as file:
        assert np.abs(np.asarray(file) / 255 - picture[0].numpy()).max() < 1.1 / 255
    again = report()
    assert torch.equal(again[0], picture) and again[1] == text


def test_a_picture_of_odd_size_is_cropped_as_the_vae_crops_it():
    wide = torch.nn.functional.pad(scenes()[0], (0, 0, 1, 2, 1, 2))
    assert read(report(image=wide)[1]) == read(report()[1])


def test_what_cannot_be_reported_is_refused():
    inversion, (_, _, _, edit, _) = inverted(), scenes()
    with pytest.raises(ValueError, match=r"by \d+% of their norm.*explains at most 50%.*picture that was inverted"):
        report(image=scenes(2)[0][1:])
    with pytest.raises(ValueError, match=r"\[2, 4, 16, 16\].*\[1, 4, 16, 16\].*picture that was inverted"):
        report(image=scenes(2)[0])
    with pytest.raises(ValueError, match="Inversion Report has CFG 7.5 and no negative"):
        report(cfg=7.5)
    with pytest.raises(ValueError, match="keeps no trajectory"):
        report(dataclasses.replace(inversion, latents=None))
    injected = PalimpsestAttentionInject.execute(parts()[0], inversion, edit, 0.0, 0.8, 0.0, 0.4, 1.0, 0.5, "",
                                                 "").result[0]
    with pytest.raises(ValueError, match="carries 1 edits.*before the first editor"):
        report(model=injected)
