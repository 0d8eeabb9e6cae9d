"""The measures against closed forms, test vectors of PIE-Bench's definitions, and independent implementations."""
import math

import pytest
import torch
import torch.nn.functional as F
from palimpsest.bench.stats import paired_bootstrap
from palimpsest.metrics.edits import edit_numbers, edit_scores, ideal_edit
from palimpsest.metrics.masks import background_mask, grow
from palimpsest.metrics.pixels import TILE, changed_share, mse, pie_mse, pie_psnr, pie_ssim, psnr, ssim


def waves(phase, height=40, width=52):
    y, x = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    channels = [.5 + .4 * torch.sin(x / (3 + c) + y * phase / 5) * torch.cos(y / (4 + c)) for c in range(3)]
    return torch.stack(channels, -1)[None]


def half(height=40, width=52):
    mask = torch.zeros(1, height, width)
    mask[:, :, :width // 2] = 1
    return mask


A, B = waves(1.), waves(1.3)
BOX = torch.zeros(1, 40, 52)
BOX[:, 8:25, 10:30] = 1


def test_equal_pictures_are_at_no_distance():
    assert mse(A, A) == 0 and psnr(A, A) == math.inf and pie_mse(A, A, BOX) == 0
    assert ssim(A, A).item() == pytest.approx(1, abs=1e-12)
    assert pie_ssim(A, A, BOX).item() == pytest.approx(1, abs=1e-12)


def test_a_mask_without_background_gives_nan():
    everything = torch.ones(1, 40, 52)
    for number in (pie_mse(A, B, everything), pie_psnr(A, B, everything), pie_ssim(A, B, everything),
                   mse(A, B, 1 - everything), psnr(A, B, 1 - everything), ssim(A, B, 1 - everything)):
        assert number.shape == (1,) and number.isnan().all()


def test_pie_is_normalised_by_the_picture_and_ours_by_the_background():
    error = .1
    a = torch.full((1, 40, 52, 3), .4, dtype=torch.double)
    b = a + error
    assert pie_mse(a, b, half()).item() == pytest.approx(error ** 2 / 2, rel=1e-12)
    assert (pie_psnr(a, b, half()) - psnr(a, b)).item() == pytest.approx(10 * math.log10(2), abs=1e-9)  # 3.01 dB
    assert psnr(a, b, 1 - half()).item() == pytest.approx(20, abs=1e-9)


def test_numbers_are_torchmetrics():
    """torchmetrics 1.9.0, StructuralSimilarityIndexMeasure and PeakSignalNoiseRatio with data_range 1, in float32."""
    assert ssim(A, B).item() == pytest.approx(.3227759, abs=1e-6)
    assert psnr(A, B).item() == pytest.approx(12.2248163, abs=1e-5)
    assert pie_ssim(A, B, BOX).item() == pytest.approx(.4352375, abs=1e-6)
    assert pie_psnr(A, B, BOX).item() == pytest.approx(12.7059040, abs=1e-5)


def test_ssim_is_scipys_gaussian_filter():
    from scipy.ndimage import gaussian_filter

    def blur(z):
        return gaussian_filter(z, 1.5, mode="mirror", truncate=3.5)

    expected = []
    for p, q in zip(A[0].unbind(-1), B[0].unbind(-1)):
        p, q = p.numpy(), q.numpy()
        m, n = blur(p), blur(q)
        spread, cov = blur(p * p) - m * m + blur(q * q) - n * n, blur(p * q) - m * n
        expected.append(((2 * m * n + 1e-4) * (2 * cov + 9e-4) / ((m * m + n * n + 1e-4) * (spread + 9e-4))).mean())
    assert ssim(A, B).item() == pytest.approx(sum(expected) / 3, abs=1e-12)


def whole(a, b, where=None):
    """(PSNR, SSIM) of two pictures [1, H, W, C] with all pixels in memory at once, in float64."""
    def blur(z):
        for d in (2, 3):
            z = F.conv2d(z, gauss.view(1, 1, *((11, 1) if d == 2 else (1, 11))))
        return z

    gauss = torch.exp(-torch.arange(-5, 6).double() ** 2 / 4.5)
    gauss = gauss / gauss.sum()
    a, b = (z[0].movedim(-1, 0)[:, None].double() for z in (a, b))
    where = torch.ones_like(a[:1]) if where is None else where[:, None].double()
    p, q, w = (F.pad(z, (5, 5, 5, 5), mode="reflect") for z in (a, b, where))
    m, n, pp, qq, pq = (blur(z * w) / blur(w) for z in (p, q, p * p, q * q, p * q))
    index = (2 * m * n + 1e-4) * (2 * (pq - m * n) + 9e-4) / ((m * m + n * n + 1e-4) * (pp - m * m + qq - n * n + 9e-4))
    area = where.sum() * len(a)
    return -10 * (((a - b) ** 2 * where).sum() / area).log10(), (torch.where(where > 0, index, 0) * where).sum() / area


@pytest.mark.parametrize("dtype, near", [(torch.float64, 1e-11), (torch.float32, 1e-6)])
@pytest.mark.parametrize("height, width", [(TILE + 1, 2 * TILE + 3), (TILE, 40), (6, TILE + 7)])
def test_tiles_give_what_the_whole_picture_gives(height, width, dtype, near):
    a, b = waves(1., height, width).to(dtype), waves(1.3, height, width).to(dtype)
    where = (waves(2., height, width)[..., 0] > 0.4).to(dtype)
    for w in (None, where):
        expected = whole(a, b, w)
        assert psnr(a, b, w).item() == pytest.approx(expected[0].item(), abs=10 * near)
        assert ssim(a, b, w).item() == pytest.approx(expected[1].item(), abs=near)
    assert changed_share(a, b, .1).item() == ((a - b).abs().amax(-1) > .1).double().mean()
    assert ssim(a, a).item() == 1


def test_background_ssim_is_the_written_out_sum_over_windows():
    """Every window computed here, on the mirrored picture, from background pixels only."""
    a, b = waves(1., 14, 15)[..., :1], waves(1.3, 14, 15)[..., :1]
    where = (torch.arange(14)[:, None] + torch.arange(15)[None] > 12).double()
    index_y, index_x = (n - 1 - (n - 1 - torch.arange(-5, n + 5).abs()).abs() for n in (14, 15))
    offsets = torch.arange(-5, 6).double()
    gauss = torch.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / 4.5)
    values = []
    for y, x in where.nonzero().tolist():
        rows, columns = index_y[y:y + 11], index_x[x:x + 11]
        w, p, q = (z[rows][:, columns] for z in (where, a[0, ..., 0], b[0, ..., 0]))
        w = gauss * w / (gauss * w).sum()
        m, n = (w * p).sum(), (w * q).sum()
        var_p, var_q, cov = (w * (p - m) ** 2).sum(), (w * (q - n) ** 2).sum(), (w * (p - m) * (q - n)).sum()
        values.append((2 * m * n + 1e-4) * (2 * cov + 9e-4) / ((m * m + n * n + 1e-4) * (var_p + var_q + 9e-4)))
    assert ssim(a, b, where[None]).item() == pytest.approx(torch.stack(values).mean().item(), abs=1e-12)


def test_the_edited_region_counts_for_nothing_in_background_numbers():
    edited = torch.where(BOX[..., None] > 0, 1 - A, B)
    for measure in (mse, psnr, ssim):
        assert measure(edited, A, 1 - BOX) == measure(B, A, 1 - BOX)
    for measure in (pie_mse, pie_psnr, pie_ssim):
        assert measure(edited, A, BOX) == measure(B, A, BOX)


def test_each_picture_of_a_batch_has_its_own_number():
    pair, masks = torch.cat([A, B]), torch.cat([BOX, half()])
    for measure in (mse, ssim):
        both = measure(pair, pair.flip(0), masks)
        assert torch.equal(both, torch.cat([measure(A, B, BOX), measure(B, A, half())]))


@pytest.mark.parametrize("counts", [(2, 3, 1), (1, 4, 2), (4, 2, 4)])
def test_batches_that_do_not_pair_are_refused(counts):
    a, b, where = (torch.ones(n, 8, 8, 3) for n in counts)
    with pytest.raises(ValueError, match="holds {}, {}, {} pictures: give one for all, or".format(*counts)):
        psnr(a, b, where[..., 0])
    assert psnr(a[:1], b, where[:1, ..., 0]).shape == (len(b),)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_no_number_inside_and_counts_for_nothing_outside(value):
    a, where = torch.rand(2, 32, 32, 3, generator=torch.Generator().manual_seed(0)), torch.ones(1, 32, 32)
    bad = a[:1].clone()
    bad[0, :4, :8] = value
    where[:, :10] = 0
    expected, clean = psnr(a[:1], a[1:], where), ssim(a[:1], a[1:], where)
    assert torch.equal(psnr(bad, a[1:], where), expected) and torch.equal(ssim(bad, a[1:], where), clean)
    assert not psnr(bad, a[1:]).isfinite() and ssim(bad, a[1:]).isnan()
    assert changed_share(bad, a[:1], .1) == 32 / 1024


def test_a_mask_grows_to_a_square_around_each_pixel():
    mask = torch.zeros(1, 9, 12)
    mask[0, 3, 2] = .7
    expected = torch.zeros(1, 9, 12)
    expected[0, 1:6, 0:5] = .7
    assert torch.equal(grow(mask, 2), expected)
    assert torch.equal(grow(mask, 0), mask)
    soft = torch.rand(2, 7, 90, generator=torch.Generator().manual_seed(0))
    for pixels in (1, 3, 16, 50):
        assert torch.equal(grow(soft, pixels), F.max_pool2d(soft, 2 * pixels + 1, 1, pixels)), pixels


def test_the_background_lies_two_cells_outside_the_faintest_edit():
    mask = torch.zeros(1, 64, 64)
    mask[0, 30, 31] = .01
    expected = torch.ones(1, 64, 64)
    expected[0, 14:47, 15:48] = 0
    assert torch.equal(background_mask(mask), expected)


@pytest.mark.parametrize("frames", [(), (1,)], ids=["picture", "one frame"])
def test_the_ideal_edit_takes_each_touched_cell_from_the_target(frames):
    """A stand-in autoencoder that is exact on 8x8 blocks: one value per cell."""
    def encode(image):
        cells = image.movedim(-1, 1).unfold(2, 8, 8).unfold(3, 8, 8).mean((-1, -2))
        return cells.reshape(*cells.shape[:2], *frames, *cells.shape[2:])

    def decode(latent):
        cells = latent.reshape(*latent.shape[:2], *latent.shape[-2:])
        return cells.repeat_interleave(8, 2).repeat_interleave(8, 3).movedim(1, -1)

    source, target = torch.full((2, 32, 40, 3), .25), torch.full((2, 32, 40, 3), .75)
    mask = torch.zeros(2, 32, 40)
    mask[0, 8, 15] = 1  # one pixel, in the cell of rows 8-15 and columns 8-15
    expected = source.clone()
    expected[0, 8:16, 8:16] = .75
    assert torch.equal(ideal_edit(source, target, mask, encode, decode), expected)


def test_success_is_the_wanted_attribute_and_kept_all_others():
    source = [dict(shape="star", colour="red", ground="sky")] * 3
    edited = [source[0] | dict(colour="blue"), source[0] | dict(colour="blue", shape="ring"), source[0]]
    success, kept = edit_scores(edited, source, [dict(colour="blue")] * 3)
    assert success.tolist() == [1, 1, 0] and kept.tolist() == [1, .5, 1]


def test_what_the_round_trip_already_misread_is_held_against_nobody():
    misread = dict(shape="ring", colour="red")  # the source shows a circle
    _, kept = edit_scores([dict(shape="ring", colour="blue")], [misread], [dict(colour="blue")])
    assert kept.tolist() == [1]


def test_readings_must_pair():
    with pytest.raises(ValueError, match="2 edited readings, 1 of sources"):
        edit_scores([{}, {}], [{}], [{}])


def test_edit_numbers_are_the_measures_by_name():
    a, b, mask = waves(1., 64, 64), waves(1.3, 64, 64), torch.zeros(1, 64, 64)
    mask[:, 20:40, 24:44] = 1
    outside = background_mask(mask)
    numbers = edit_numbers(a, torch.cat([b, a]), reconstruction=b, target=1 - a, mask=mask)
    expected = dict(psnr=psnr(b, a), ssim=ssim(b, a), changed=((a - b).abs().amax(-1) > .1).double().mean()[None],
                    background_psnr=psnr(b, a, outside), background_ssim=ssim(b, a, outside),
                    reconstruction_psnr=psnr(b, a), reconstruction_ssim=ssim(b, a),
                    target_psnr=psnr(b, 1 - a), target_mask_psnr=psnr(b, 1 - a, mask),
                    edit_share=mask.double().mean()[None], background_share=outside.double().mean()[None])
    assert numbers.keys() == expected.keys()
    for name, value in expected.items():
        assert numbers[name].shape == (2,) and numbers[name][0] == value, name
    assert numbers["psnr"][1] == math.inf and numbers["changed"][1] == 0


def test_a_soft_mask_covers_its_mean_and_its_grey_is_no_background():
    a, b, mask = waves(1., 64, 64), waves(1.3, 64, 64), torch.zeros(2, 64, 64)
    mask[0, 20:40, 24:44] = 0.25
    mask[1, 20:40, 24:44] = torch.linspace(0.05, 1, 20)
    found = edit_numbers(a, b, mask=mask, target=1 - a)
    hard = edit_numbers(a, b, mask=(mask > 0).float(), target=1 - a)
    assert found["edit_share"].tolist() == pytest.approx([400 * 0.25 / 64 ** 2, 400 * 0.525 / 64 ** 2])
    assert all(torch.equal(found[name], hard[name]) for name in found if name != "edit_share")


def test_sizes_that_differ_are_an_error():
    for sizes, given in (("52x40, 52x39", (A, B[:, :39])), ("52x40, 52x40, 51x40", (A, B, BOX[:, :, :51]))):
        with pytest.raises(ValueError, match=f"of sizes {sizes}: give all one size"):
            psnr(*given)


def test_a_picture_too_small_for_windows_says_so():
    with pytest.raises(ValueError, match="the picture is 52x5"):
        ssim(A[:, :5], B[:, :5])


def test_the_bootstrap_is_the_normal_interval_on_many_pairs():
    g = torch.Generator().manual_seed(0)
    shared, noise = 10 * torch.randn(400, generator=g), torch.randn(400, generator=g).double()
    mean, low, high = paired_bootstrap(shared + 1 + noise, shared.double(), torch.Generator().manual_seed(1))
    width = 1.96 * noise.std().item() / 20
    assert mean == pytest.approx(1 + noise.mean().item(), abs=1e-5)
    assert low == pytest.approx(mean - width, abs=.1 * width) and high == pytest.approx(mean + width, abs=.1 * width)


def test_the_bootstrap_is_its_generators():
    a, b = torch.arange(20.), torch.arange(20.).flip(0)
    first, again, other = (paired_bootstrap(a, b, torch.Generator().manual_seed(s), resamples=200) for s in (3, 3, 4))
    assert first == again and first != other


def test_the_bootstrap_refuses_what_does_not_pair():
    g = torch.Generator()
    with pytest.raises(ValueError, match=r"\(3,\) and \(4,\)"):
        paired_bootstrap(torch.zeros(3), torch.zeros(4), g)
    with pytest.raises(ValueError, match="1 of 3 pairs are not finite, the first is number 2"):
        paired_bootstrap(torch.zeros(3), torch.tensor([0, 1, math.inf]), g)
