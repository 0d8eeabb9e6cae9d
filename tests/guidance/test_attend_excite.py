"""Attend-and-Excite against diffusers' pipeline."""
import pytest
import torch
from diffusers import StableDiffusionAttendAndExcitePipeline
from palimpsest.bench import twin
from palimpsest.guidance.attend_excite import neglect, text_positions
from palimpsest.host.tokens import Tokens

from moving_latents import CFG, STEPS, case, excite, host_run, model, noise, pipeline
from runs import relative


@pytest.mark.parametrize("levels, scale", [((), 60.0), ((0.05, 0.5, 0.8), 20.0), ((0.014, 0.015, 0.8), 100.0)])
@torch.inference_mode()
def test_attend_excite_equals_diffusers_pipeline(levels, scale):
    c, tokens = case(), case().edit.pairs[0].target
    prompts = twin.Prompts({"": c.null[0][0], "target": c.target[0][0]})
    named = [p for word in ("cat", "mat") for p in tokens.find(word).positions]
    with torch.inference_mode(False):
        theirs = pipeline(StableDiffusionAttendAndExcitePipeline, prompts)(
            "target", named, 64, 64, STEPS, CFG, latents=noise().clone(), output_type="latent", max_iter_to_alter=5,
            scale_factor=scale,
            thresholds=dict(zip((0, 2, 4), levels)), attn_res=(4, 4)).images
    text = ", ".join(f"{share}: {level}" for share, level in zip((0, 0.2, 0.4), levels))
    ours = host_run(excite(model(), scale=scale, thresholds=text), c.target)
    plain = host_run(model(), c.target)
    assert relative(plain, theirs) > 0.02
    assert relative(ours, theirs) < 1e-3, relative(ours, theirs)


def test_what_is_neglected_is_the_word_with_the_lowest_peak():
    """Two words of three tokens of text, in a map of BOS, text and a last column."""
    maps = torch.zeros(4, 4, 5)
    maps[1, 1, 1], maps[2, 2, 3] = 1.0, 0.02
    kernel = torch.tensor([-1.0, 0, 1]).square().neg().exp()
    peak, corner = (kernel[1] / kernel.sum()) ** 2, (kernel[0] / kernel.sum()) ** 2
    text = torch.full((4, 4), 1 / 3)
    text[1, 1], text[2, 2] = 0.0, torch.tensor([0, 0, 2.0]).softmax(0)[2]
    around = torch.outer(kernel, kernel) / kernel.sum() ** 2
    smooth = torch.nn.functional.conv2d(torch.nn.functional.pad(text[None, None], (1, 1, 1, 1), mode="reflect"),
                                        around[None, None])
    assert float(neglect(maps, [1, 2, 3], [3])) == pytest.approx(1 - float(smooth.max()), abs=1e-6)
    assert float(neglect(maps, [1, 2, 3], [1, 3])) == pytest.approx(1 - float(smooth.max()), abs=1e-6)
    there = peak + corner * torch.tensor([0, 0, 2.0]).softmax(0)[0] + (1 - peak - corner) / 3
    assert float(neglect(maps, [1, 2, 3], [1])) == pytest.approx(1 - float(there), abs=1e-6)
    assert text_positions(Tokens("", (9, 1, 2, 0, 9, 3, 0, 0), (1.0,) * 8, ())) == [1, 2, 5, 6]


def test_a_refinement_stops_where_every_word_is_attended_to(monkeypatch):
    """Per row: of two rows, the one that has arrived moves no further."""
    from palimpsest.guidance import attend_excite
    c, looked = case(), []
    edited = excite(c.model, thresholds="0: 0.5", end=0.1, scale=1.0)

    def walk(loss):
        def look(self, run, x, sigma):
            looked.append(x.clone())
            return torch.tensor(loss[len(looked) - 1]), torch.ones_like(x)
        return look

    losses = [[0.9, 0.4], [0.8, 0.9], [0.4, 0.9], [0.4, 0.9]]
    monkeypatch.setattr(attend_excite.AttendExcite, "_loss_gradient", walk(losses))
    c.sample(edited, latent=c.noise.repeat(2, 1, 1, 1), sigmas=c.sigmas)
    moves = [(b - a).flatten(1).mean(1).tolist() for a, b in zip(looked, looked[1:])]
    assert len(looked) == 4 and [[round(m, 3) for m in row] for row in moves] == [[-1.0, 0.0]] * 3
