"""A site of attention sees a mask in its entry's own window."""
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
