"""The stored maps of a picture's words are those of its single forwards, refined and not."""
import pytest
import torch
import torch.nn.functional as F
from palimpsest.attention.store import read_maps
from palimpsest.editing.run import attach
from palimpsest.host.unet import resolutions

from explicit import softmax_maps
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
