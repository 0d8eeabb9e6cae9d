"""A site of attention sees a mask in its entry's own window."""
import math

import pytest
import torch
from palimpsest.editing.sites import Rows, Site, mask_at

from explicit import HEADS, Call, Run


def test_a_mask_is_seen_in_the_entrys_own_window():
    """A mean over the latent cells of each token, within the entry's area if it has one."""
    m = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0))
    whole_, window = (Site("self", ("middle", 0, 0), grid, 0.5, HEADS) for grid in ((4, 4), (2, 3)))
    means = m.unflatten(2, (4, 2)).unflatten(1, (4, 2)).mean((2, 4))
    torch.testing.assert_close(mask_at(m, Rows(Call(Run((2,))), {}, 2), whole_), means.flatten(1))
    area = Rows(Call(Run((2,))), {"area": (4, 6, 2, 0)}, 2)  # height, width, y, x
    torch.testing.assert_close(mask_at(m, area, window), means[:, 1:3, :3].flatten(1))


@pytest.mark.parametrize("height, width, side", [(9, 8, 2), (135, 240, 2), (33, 34, 4), (9, 65, 8), (3, 5, 4)])
def test_an_odd_latents_mask_is_the_mean_of_the_cells_that_a_token_has(height, width, side):
    """The host fills patches up at the right and lower edge, and a U-Net's strides begin at the left and upper one."""
    m = torch.rand(1, height, width, generator=torch.Generator().manual_seed(1))
    grid = math.ceil(height / side), math.ceil(width / side)
    found = mask_at(m, Rows(Call(Run((1,))), {}, 1), Site("self", (), grid))
    wanted = [m[0, y:y + side, x:x + side].mean() for y in range(0, height, side) for x in range(0, width, side)]
    torch.testing.assert_close(found, torch.stack(wanted)[None])


def test_frames_may_have_masks_of_their_own():
    """A token of two frames has the mean of both."""
    m = torch.rand(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    rows = Rows(Call(Run((2,))), {}, 2)
    for frames, wanted in ((4, m), (2, m.unflatten(1, (2, 2)).mean(2))):
        found = mask_at(m, rows, Site("self", (), (frames, 4, 4)))
        each = [mask_at(wanted[:, i], rows, Site("self", (), (4, 4))) for i in range(frames)]
        torch.testing.assert_close(found, torch.cat(each, 1))
    same = m[:, :1].expand(-1, 4, -1, -1)
    torch.testing.assert_close(mask_at(same, rows, Site("self", (), (4, 4, 4))),
                               mask_at(m[:, 0], rows, Site("self", (), (4, 4, 4))))


def test_a_grid_of_another_node_has_equal_parts_of_a_mask():
    m = torch.rand(1, 12, 12, generator=torch.Generator().manual_seed(1))
    found = mask_at(m, Rows(Call(Run((1,))), {}, 1), Site("self", (), (5, 5)))
    assert torch.equal(found, torch.nn.functional.adaptive_avg_pool2d(m, 5).flatten(1))
