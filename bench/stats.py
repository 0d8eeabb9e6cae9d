"""Statistics for benchmarks in which every method edits the same pictures."""
from statistics import NormalDist

import torch
from torch import Tensor


def paired_bootstrap(a: Tensor, b: Tensor, generator: torch.Generator, resamples: int = 10_000,
                     level: float = .95) -> tuple[float, float, float]:
    """Mean of a - b over N pairs, with the two ends of its percentile interval (Efron and Tibshirani, 1993).

    Whole pairs are resampled, so what a picture shares between methods cancels. Equal generators give equal intervals.
    a, b: [N], finite, the same pictures in the same order.
    """
    if a.shape != b.shape or a.ndim != 1 or len(a) < 2:
        raise ValueError(f"the vectors have shapes {tuple(a.shape)} and {tuple(b.shape)}: give two of equal length, "
                         "2 or more")
    difference = a.double() - b.double()
    bad = (~difference.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"{len(bad)} of {len(a)} pairs are not finite, the first is number {bad[0]}: leave them out "
                         "of both vectors")
    draws = torch.randint(len(a), (resamples, len(a)), generator=generator)
    tail = (1 - level) / 2
    low, high = difference[draws].mean(1).quantile(torch.tensor([tail, 1 - tail], dtype=torch.double)).tolist()
    return difference.mean().item(), low, high


def bootstrap(values: Tensor, generator: torch.Generator, resamples: int = 2000,
              level: float = .95) -> tuple[float, float]:
    """The percentile interval of the mean of [N] finite values."""
    draws = torch.randint(len(values), (resamples, len(values)), generator=generator)
    tail = (1 - level) / 2
    low, high = values.double()[draws].mean(1).quantile(torch.tensor([tail, 1 - tail], dtype=torch.double)).tolist()
    return low, high


def wilson(share: float, count: int, level: float = .95) -> tuple[float, float]:
    """Wilson's interval (1927) of a share of `count` trials. It has a width even where all of them succeed."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle, scale = share + z * z / (2 * count), 1 + z * z / count
    reach = z * (share * (1 - share) / count + z * z / (4 * count ** 2)) ** .5
    return (middle - reach) / scale, (middle + reach) / scale
