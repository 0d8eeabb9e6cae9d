"""The stored maps of a picture's words are those of its single forwards, refined and not."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from palimpsest.attention.store import read_maps
from palimpsest.editing.run import attach
from palimpsest.host.unet import resolutions
from palimpsest.metrics.drawing import heat
from palimpsest.nodes.attention.store import PalimpsestAttentionHeatmap
from PIL import Image

from explicit import softmax_maps
from headless import place
from noting import Noted
from runs import Case


@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("batch", [1, 2])
def test_maps_of_a_picture_are_those_of_its_forwards_one_by_one(batch, share):
    """Against the host's attention read at each σ. Refined maps are explicit self-attention maps times the words' maps
    of earlier forwards. The first forward takes its own."""
    case, notes = Case("sd15", batch=batch, size=16, steps=5), {}
    with torch.inference_mode():
        found = read_maps(case.model, case.inversion, share)
    tokens, shares = case.source[0][1]["palimpsest_tokens"][0], resolutions(case.model.model.diffusion_model)
    case.predictions(attach(case.model, Noted(case.inversion, notes)), case.source)

    def means(wanted, at):
        """[S, B, h·w, keys]: the mean over sites and heads of the maps, at each step."""
        sites = [e for (kind, position), e in notes.items() if (kind, shares[position]) == (wanted, at)]
        return torch.stack([torch.stack([softmax_maps(q, k).mean(1) for q, k, _, _ in step]).mean(0)
                            for step in zip(*sites)])

    cross = means("cross", share)
    steps = torch.stack([cross[..., list(w.positions)].sum(-1) for w in tokens.words], 2)
    assert found.levels == tuple(case.sigmas[:-1].tolist()) and found.fine == 1.0
    torch.testing.assert_close(found.steps.flatten(3), steps, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.maps.flatten(2), steps.mean(0), rtol=1e-4, atol=1e-6)
    refined = []
    for n, walk in enumerate(means("self", 1.0)):
        known = steps[:n or 1].mean(0).unflatten(2, found.steps.shape[-2:])
        finer = F.interpolate(known, size=(16, 16), mode="bilinear").flatten(2)
        refined.append((walk @ finer.transpose(1, 2)).transpose(1, 2))
    torch.testing.assert_close(found.refined.flatten(2), torch.stack(refined).mean(0), rtol=1e-4, atol=1e-6)


def test_the_canvas_gets_each_pictures_words_in_their_order_and_their_maps():
    """All words, whichever are chosen. A map laid over the dim grey picture is the sheet's overlay."""
    case = Case("sd15", batch=2, size=16, steps=2, source="a red cat on a cat")
    with torch.inference_mode():
        attention = read_maps(case.model, case.inversion, 0.5)
        picture = torch.rand(2, 128, 128, 3, generator=torch.Generator().manual_seed(0))
        out = PalimpsestAttentionHeatmap.execute(attention, picture, "red, cat#2")
    assert out.result[1] == "red, cat#2"
    views = out.ui["palimpsest_words"]
    assert [[word["name"] for word in view["words"]] for view in views] == 2 * [["a#1", "red", "cat#1", "on", "a#2",
                                                                                "cat#2"]]
    for i, view in enumerate(views):
        shown = np.asarray(Image.open(place(view["picture"])))
        assert np.abs(shown / 255 - picture[i].numpy()).max() < 1.01 / 255
        for word, own in zip(view["words"], attention.tokens[i].named):
            small = torch.from_numpy(np.asarray(Image.open(place(word["map"]))) / 255.0)
            values = attention.map(i, [own])
            assert small.shape == (*values.shape, 4)
            wanted, _ = heat(picture[i, :values.shape[0], :values.shape[1]], values)
            grey = picture[i, :values.shape[0], :values.shape[1]].mean(-1, keepdim=True)
            assert (torch.lerp(.8 * grey.expand(-1, -1, 3).double(), small[..., :3], small[..., 3:]) - wanted).abs(
                ).max() < 3 / 255
