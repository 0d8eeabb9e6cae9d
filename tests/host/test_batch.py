"""Which rows of a forward are whose."""
import pytest
import torch
from palimpsest.host.batch import split


@pytest.mark.parametrize("prompts, rows", [(2, 3), (3, 4), (2, 1)])
def test_rows_that_cannot_be_shared_out_are_refused(prompts, rows):
    options = {"cond_or_uncond": list(range(prompts)), "uuids": list("abc"[:prompts])}
    with pytest.raises(ValueError, match=f"{rows} rows for {prompts} prompts.*: remove the node that adds rows"):
        split(options, torch.zeros(prompts, 1), torch.zeros(rows, 1))
    whole = torch.arange(2.0 * prompts)[:, None]
    assert [(chunk.index, own.flatten().tolist()) for chunk, own in split(options, whole)] == [
        (n, [2.0 * n, 2.0 * n + 1]) for n in range(prompts)]
