"""Latent Blend, recorded at every model call: what the sampler asks for, and what the model sees and returns."""
import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from comfy.patcher_extension import WrappersMP
from palimpsest.attention.store import read_maps
from palimpsest.editing.editor import Editor, editors
from palimpsest.editing.masks import word_mask
from palimpsest.editing.run import attach
from palimpsest.editing.word_maps import WordMaps
from palimpsest.host.unet import host_attention, resolutions

import tiny
from node_execution import executor  # noqa: F401
from recording import START, Flow, Record, blend, half
from runs import Case

SAMPLERS = ["euler", "heun", "dpmpp_2m", "dpmpp_2m_sde"]
FAMILIES = [*(("sd15", sampler) for sampler in SAMPLERS), *((f, "euler") for f in ("sd2", "sdxl", *tiny.FLOWS))]


@pytest.mark.parametrize("family, sampler", FAMILIES)
def test_outside_the_mask_the_model_sees_the_source_and_the_sampler_gets_it(family, sampler):
    """Bit for bit at every call from `start` on and at no call before, whatever noise the run began with."""
    case = Case(family) if family in tiny.UNETS else Flow(family)
    run = Record(case, sampler=sampler, mask=half()[None])
    assert run.keeps(half()) == [(now, now) for now in run.since()]
    assert len(set(run.since())) == 2
    inside = half() == 1
    for _, asked, seen, given, got in run.calls:
        assert torch.equal(seen[..., inside], asked[..., inside].expand_as(seen[..., inside]))
        assert torch.equal(got[..., inside], given[..., inside])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_blend_at_the_last_step_only_is_told_apart(sampler):
    """The result is the source outside the mask too, so only the recorded calls can show it."""
    case = Case()
    last = 1 - 0.5 / len(case.sigmas[:-1])
    run = Record(case, start=last, sampler=sampler, mask=half()[None])
    assert close(run.result[..., half() == 0], picture(case)[..., half() == 0])
    limit = case.model.get_model_object("model_sampling").percent_to_sigma(START)
    demanded = [sigma <= limit for sigma, *_ in run.calls]
    assert {sigma for sigma, *_ in run.calls if sigma <= run.limit} == {float(case.sigmas[-2])}
    assert sum(run.since()) < sum(demanded)
    assert run.keeps(half()) != [(now, now) for now in demanded]


def picture(case):
    return case.model.model.process_latent_out(case.inversion.latents[-1])


def close(result, source):
    """Equal within 1e-5 of the source's largest value."""
    return bool((result - source).abs().max() <= 1e-5 * source.abs().max())


@pytest.mark.parametrize("family, sampler", FAMILIES)
def test_an_empty_mask_returns_the_source(family, sampler):
    case = Case(family) if family in tiny.UNETS else Flow(family)
    assert not close(case.sample(sampler=sampler), picture(case))
    assert close(Record(case, sampler=sampler, mask=torch.zeros(1, 64, 64)).result, picture(case))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_outside_the_mask_the_result_knows_nothing_of_the_target(sampler):
    """The ideal edit: two targets with one background, bit for bit."""
    case = Case(targets=("a blue dog in a box",))
    a, b = (Record(case, 0.0, case.noise, sampler, positive=p, mask=half()[None]).result
            for p in (case.target, case.null))
    assert torch.equal(a[..., half() == 0], b[..., half() == 0])
    assert not torch.equal(a, b)


def test_a_full_mask_changes_nothing():
    case = Case()
    assert torch.equal(case.sample(blend(case, start=0.0, mask=torch.ones(1, 64, 64))), case.sample())


def test_soft_masks_blend_linearly():
    case = Case()
    m = torch.rand(8, 8, generator=torch.Generator().manual_seed(2))
    run = Record(case, start=0.0, mask=m[None])
    for sigma, asked, seen, given, got in run.calls:
        torch.testing.assert_close(seen, (m * asked + (1 - m) * case.inversion.at(sigma)).expand_as(seen))
        torch.testing.assert_close(got, m * given + (1 - m) * case.inversion.latents[-1])


def test_a_line_one_pixel_thin_frees_every_cell_it_crosses():
    case = Case()
    mask = torch.zeros(1, 64, 64)
    mask[0, 19] = 1
    cells = torch.zeros(8, 8)
    cells[2] = 1
    run = Record(case, mask=mask)
    assert run.keeps(cells) == [(now, now) for now in run.since()]
    assert not all(torch.equal(seen[..., 2, :], case.inversion.at(sigma)[..., 2, :].expand_as(seen[..., 2, :]))
                   for sigma, _, seen, _, _ in run.calls if sigma <= run.limit)


@pytest.mark.parametrize("pictures", [1, 2])
def test_each_row_has_its_own_mask(pictures):
    case = Case(batch=2)
    if pictures == 1:
        case.inversion = Case(batch=1).inversion
    masks = torch.stack([half(), 1 - half()])
    run = Record(case, mask=masks)
    for sigma, asked, seen, _, got in run.calls:
        if sigma <= run.limit:
            wanted = torch.where(masks[:, None] == 1, asked, case.inversion.at(sigma))
            assert torch.equal(seen, wanted.expand_as(seen))
            assert torch.equal(got[:, :, masks[0] == 0][0], case.inversion.latents[-1][0][:, masks[0] == 0])


class Explicit:
    """The target words' maps in a run, by explicit softmax in the host's own attn2 slots. Mean
    over heads, sites and calls."""

    def __init__(self, case, share):
        self.case, self.total, self.count, self.so_far = case, 0, 0, []
        self.model = case.model.clone()
        for position, mine in resolutions(case.model.model.diffusion_model).items():
            if mine == share:
                self.model.set_model_attn2_replace(self._note, *position)
        self.model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "explicit", self._mark)

    def __deepcopy__(self, memo):
        return self  # an older host copies the contents of its options

    def _note(self, q, k, v, options):
        for i, branch in enumerate(options["cond_or_uncond"]):
            if branch == 0:
                rows = len(q) // len(options["cond_or_uncond"])
                a, b = (x[i * rows:(i + 1) * rows].unflatten(-1, (options["n_heads"], -1)).transpose(1, 2)
                        for x in (q, k))
                maps = (a @ b.transpose(-1, -2) / a.shape[-1] ** 0.5).softmax(-1).mean(1)
                self.total = self.total + maps.unflatten(1, options["activations_shape"][-2:])
                self.count += 1
        return host_attention(q, k, v, options)

    def _mark(self, executor, *args, **kwargs):
        x0 = executor(*args, **kwargs)
        self.so_far.append(self.total / self.count)
        return x0

    def masks(self, names, size, threshold, grow=True):
        """[rows, h, w] after each call, from the sum of the words' maps. Nothing for no words."""
        found = []
        for maps in self.so_far:
            rows = []
            for i, row in enumerate(maps):
                tokens = self.case.edit.pairs[i % len(self.case.edit.pairs)].target
                places = [p for word in tokens.words if word.name in names for p in word.positions]
                rows.append(over(row[..., places].sum(-1), size, threshold, grow))
            found.append(torch.stack(rows))
        return found


def over(maps, size, threshold, grow=True):
    """The authors' LocalBlend's mask of one summed map."""
    spread = F.max_pool2d(maps[None], 3, 1, 1)[0] if grow else maps
    places = [(torch.arange(n) * side // n) for n, side in zip(size, maps.shape)]
    return (spread > threshold * spread.max())[places[0]][:, places[1]]


def of_source(attention, names, size, threshold, count, grow=True):
    """[B, h, w]: the places of source words in the maps of the first `count` steps."""
    found = []
    for i, maps in enumerate(attention.steps[:count].mean(0)):
        own = attention.tokens[i].words
        found.append(over(sum(m for m, word in zip(maps, own, strict=True) if word.name in names), size, threshold,
                          grow))
    return torch.stack(found)


def authors_masks(path="local_blend.json"):
    return json.loads((Path(__file__).parents[1] / "data" / path).read_text(encoding="utf-8"))["runs"]


@pytest.mark.parametrize("case", authors_masks(), ids=lambda case: case["of"])
def test_masks_equal_the_authors(case):
    """Maps are waves, and each word has its own wave. The mask covers both prompts' words, without
    both prompts' other words."""
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")

    def maps(prompt, words):
        return sum(1.2 + torch.sin(0.31 * x * (1 + 0.2 * w) + 0.17 * y * w
                                   + prompt) * torch.cos(0.23 * y + w - prompt) for w in words)

    wanted, taken = (torch.stack([word_mask(maps(p, words)[None], (64, 64), case["threshold"], grow=grow)[0]
                                  if words else torch.zeros(64, 64) for p, words in enumerate(both)]).amax(0)
                     for both, grow in ((case["words"], True), (case["subtract"], False)))
    ours = wanted * (1 - taken)
    assert 0.05 < ours.mean() < 0.95
    assert [f"{int(''.join(str(int(v)) for v in row), 2):016x}" for row in ours] == case["mask"]


@pytest.mark.parametrize("taken", ["", "mat, small"])
@pytest.mark.parametrize("words", [("cat", "dog"), ("cat, red", "hippopotamus, dog, blue")])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_run_by_words_is_the_authors_with_explicit_maps(batch, words, taken):
    """The sum of both prompts' words so far. What the model sees uses the earlier calls only, what it returns uses its
    own call too.

    With two targets, some words are in only one of them. A word that is taken out may be in either prompt.
    """
    targets = ("a blue dog on a hippopotamus", "a red dog on a small mat")[:batch]
    case = Case(targets=targets, batch=batch, size=16, steps=5)
    attention = read_maps(case.model, case.inversion, 0.5)
    explicit, size, level = Explicit(case, attention.resolution), (16, 16), 0.8
    case.model = explicit.model
    source, target = (names.split(", ") for names in words)
    run = Record(case, start=0.0, source_words=words[0], target_words=words[1],
                 subtract_words=taken if batch == 2 else taken[:3],
                 threshold=level, attention=attention)

    def of_both(names, others, grow):
        """After each call: the source's words or the target's words."""
        return [of_source(attention, names, size, level, n + 1, grow) | m
                for n, m in enumerate(explicit.masks(others, size, level, grow))]

    masks = of_both(source, target, True)
    without = of_both(["mat"], ["mat", "small"], False) if taken else [torch.zeros_like(m) for m in masks]
    masks = [m & ~w for m, w in zip(masks, without)]
    assert all(0 < m.float().mean() < 1 for m in masks) and not torch.equal(masks[0], masks[-1])
    for n, ((sigma, asked, seen, given, got), now) in enumerate(zip(run.calls, masks, strict=True)):
        if n:
            assert torch.equal(seen, torch.where(masks[n - 1][:, None], asked,
                                                 case.inversion.at(sigma)).expand_as(seen))
        assert torch.equal(got, torch.where(now[:, None], given, case.inversion.latents[-1]))


def test_a_mask_and_words_are_joined():
    case = Case(size=16)
    attention = read_maps(case.model, case.inversion, 0.5)
    run = Record(case, source_words="cat", threshold=0.8, mask=half(16).T[None], attention=attention)
    for n, (sigma, _, _, given, got) in enumerate(run.calls):
        joined = of_source(attention, ["cat"], (16, 16), 0.8, n + 1)[0] | (half(16).T == 1)
        assert 0.5 < joined.float().mean() < 1
        if sigma <= run.limit:
            assert torch.equal(got, torch.where(joined, given, case.inversion.latents[-1]))


def test_what_a_run_gathers_ends_with_it():
    case = Case(size=16)
    attention = read_maps(case.model, case.inversion, 0.5)
    model = blend(case, start=0.0, target_words="blue", threshold=0.9, attention=attention)
    first = case.sample(model)
    assert torch.equal(case.sample(model), first)


def test_subtracted_words_are_taken_out_of_a_painted_mask_too_and_must_be_somewhere():
    """Also for a target without Prompt Edit, if the source has the words."""
    case = Case(size=16)
    attention = read_maps(case.model, case.inversion, 0.5)
    inputs = {"subtract_words": "red", "threshold": 0.8, "mask": half(16).T[None], "attention": attention}
    run = Record(case, positive=tiny.encode(case.clip, "a dog"), **inputs)
    for n, (sigma, _, _, given, got) in enumerate(run.calls):
        left = (half(16).T == 1) & ~of_source(attention, ["red"], (16, 16), 0.8, n + 1, grow=False)[0]
        assert 0 < left.float().mean() < 0.5
        if sigma <= run.limit:
            assert torch.equal(got, torch.where(left, given, case.inversion.latents[-1]))
    with pytest.raises(ValueError, match='"horse" names no word of "a blue cat on a mat"'):
        case.sample(blend(case, **{**inputs, "subtract_words": "red, horse"}))


@pytest.mark.parametrize("threshold", [0.0, 0.6])
def test_by_default_the_source_lies_where_its_refined_maps_do_and_the_target_where_this_runs_do(threshold):
    """From the first call on, for the whole trajectory. The target's refined maps are those of the calls so far."""
    case = Case(size=16, steps=5)
    attention = read_maps(case.model, case.inversion, 0.5)
    named = refined_over(attention.map(0, [case.inversion.tokens[0].find("cat")], refined=True), threshold)
    notes = []
    run = Record(case, start=0.0, source_words="cat", target_words="blue, cat", threshold=threshold,
                 attention=attention, refine=True,
                 beside=lambda model: attach(model, Noted(editors(model)[0], notes)))
    assert attention.fine == 1 > attention.resolution and 0 < named.float().mean() < 1
    for (_, _, _, given, got), maps in list(zip(run.calls, notes, strict=True))[1:]:
        joined = named | refined_over(maps[0].sum(0), threshold)
        assert torch.equal(got, torch.where(joined, given, case.inversion.latents[-1]))


def refined_over(maps, threshold):
    """[16, 16] of a refined map: above a share of its range, or above the threshold of least
    variance within both classes."""
    maps = maps - maps.min()
    if not threshold:
        values = maps.flatten().sort().values.double()
        inner = [len(p) * float(p.var(unbiased=False)) + len(q) * float(q.var(unbiased=False))
                 for p, q in ((values[:n], values[n:]) for n in range(1, len(values)))]
        best = int(torch.tensor(inner).argmin())
        return maps > float(values[best:best + 2].mean())
    return maps > threshold * maps.max()


@dataclass(frozen=True, eq=False)
class Noted(Editor):
    """Records a WordMaps' refined maps after each call."""
    gather: WordMaps
    notes: list

    def after(self, run, x0, sigma):
        self.notes.append(self.gather.refined(run))
        return x0


def test_maps_that_could_not_be_refined_say_why():
    case = Case(size=16)
    attention = replace(read_maps(case.model, case.inversion, 0.5), refined=None)
    assert torch.is_tensor(Record(case, source_words="cat", attention=attention).result)
    with pytest.raises(ValueError, match="cut into tiles: remove HyperTile before Attention Store, or turn refine off"):
        blend(case, source_words="cat", attention=attention, refine=True)


def test_words_over_most_of_the_picture_are_said_once_a_run(caplog):
    case = Case(size=16)
    attention = read_maps(case.model, case.inversion, 0.5)
    for threshold, said in ((0.01, 1), (0.97, 0)):
        caplog.clear()
        Record(case, source_words="cat", threshold=threshold, attention=attention)
        assert sum("of the picture" in r.message for r in caplog.records if r.name == "palimpsest") == said


def test_words_that_take_out_the_whole_mask_are_refused():
    case = Case(size=16)
    attention = read_maps(case.model, case.inversion, 0.5)
    mask = of_source(attention, ["red"], (16, 16), 0.9, len(attention.steps), grow=False).float()
    with pytest.raises(ValueError, match="'red'.*nothing of the mask is left"):
        blend(case, mask=mask, subtract_words="red", threshold=0.9, attention=attention)
    with pytest.raises(ValueError, match="neither MASK nor ATTENTION"):
        blend(case, subtract_words="red", attention=attention)


def test_masks_in_time_follow_each_other():
    """Three masks from 0.4 on, each for a fifth of the schedule."""
    case = Case(steps=10)
    masks = torch.stack([half(), 1 - half(), half().T])
    run = Record(case, mask=masks, masks_in_time=True)
    percent = case.model.get_model_object("model_sampling").percent_to_sigma
    seen = []
    for sigma, asked, x, given, got in run.calls:
        if sigma > run.limit:
            continue
        now = (sigma <= percent(0.6)) + (sigma <= percent(0.8))
        assert torch.equal(got, torch.where(masks[now] == 1, given, case.inversion.latents[-1]))
        assert torch.equal(x, torch.where(masks[now] == 1, asked, case.inversion.at(sigma)).expand_as(x))
        seen.append(now)
    assert set(seen) == {0, 1, 2} and seen == sorted(seen)
    for wrong in ({"mask": masks[:1]}, {"source_words": "cat",
                                        "attention": read_maps(case.model, case.inversion, 0.5)}):
        with pytest.raises(ValueError, match="batch of two or more"):
            blend(case, masks_in_time=True, **wrong)
