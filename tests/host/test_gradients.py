"""Gradients through the host's model."""
import gc
from types import SimpleNamespace

import comfy.ops
import pytest
import torch
from palimpsest.host import gradients
from palimpsest.host.gradients import differentiable
from palimpsest.host.guiders import PromptGuider, prompted
from palimpsest.host.memory import counting
from palimpsest.host.sampling import Solver, sample_with, schedule
from palimpsest.host.saved import CopyBeforeWrite, Held

import tiny

EVERY = {**tiny.UNETS, **tiny.FLOWS}


def scalar(model):
    """(norm, by differences, gradient) of a fixed linear form of x0 for the prompt's embedding, on the host's network.

    norm: of the gradient.
    by differences: the same norm by finite differences along the gradient.
    """
    prompt, latent = tiny.cond(), tiny.latent(model)
    generator = torch.Generator().manual_seed(7)
    weights = torch.randn(latent.shape, generator=generator)
    found = []

    def solve(net, x, sigmas, extra_args=None, callback=None, disable=None):
        def form(embedding):
            return (prompted(net, extra_args, "source", x, sigmas[:1], embedding) * weights.to(x)).sum()

        start = prompt[0][0].clone()
        leaf = start.clone().requires_grad_()
        gradient, = torch.autograd.grad(form(leaf), leaf)
        along = gradient / gradient.norm()
        step = 0.05
        with torch.no_grad():
            difference = (form(start + step * along) - form(start - step * along)) / (2 * step)
        found.extend([float(gradient.norm()), float(difference), gradient])
        return x

    with torch.inference_mode(), differentiable(model) as m:
        prompts = [[prompt[0][0].clone(), {k: v.clone() if isinstance(v, torch.Tensor) else v
                                           for k, v in prompt[0][1].items()}]]
        sigmas = schedule(model, "ddim_uniform", 4)[1:].clone()
        sample_with(PromptGuider(m, {"source": prompts}), latent.clone(), sigmas, Solver(solve))
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
@pytest.mark.parametrize("family", EVERY)
def test_the_gradient_equals_finite_differences(family, dtype):
    """On every family, with weights as a loader makes them. Those of fewer bits are computed in fp32."""
    gradient, difference, _ = scalar(EVERY[family](dtype=dtype))
    assert gradient > 1e-4
    assert difference == pytest.approx(gradient, rel=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", sorted(EVERY.keys() - {"flux"}))
def test_large_models_are_differentiated_in_bf16(family, dtype, monkeypatch):
    """Except for the small Flux, whose prediction itself differs in bf16 (by a quarter of its norm)."""
    _, _, exact = scalar(EVERY[family](dtype=dtype))
    monkeypatch.setattr(gradients, "FP32", 0)
    _, _, found = scalar(EVERY[family](dtype=dtype))
    assert not torch.equal(found, exact)
    assert torch.cosine_similarity(found.flatten(), exact.flatten(), dim=0) > 0.998
    assert float(found.norm()) == pytest.approx(float(exact.norm()), rel=0.03)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
@pytest.mark.parametrize("family", EVERY)
def test_no_cast_of_weights_of_fewer_bits_is_kept(family, dtype):
    """As much is kept as where the weights need no cast. With them it would be two to nine times as much."""
    most = []
    for model in (EVERY[family](dtype=dtype), EVERY[family](dtype=torch.float32)):
        with counting(model.model.diffusion_model) as kept:
            scalar(model)
        most.append(kept.most)
    assert most[0] <= 1.01 * most[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weights_written_between_two_forwards_are_each_ones_own(dtype):
    """As the host's hooks do between the prompts of one prediction."""
    x, first, second = (torch.randn(4, 4, generator=torch.Generator().manual_seed(n)) for n in range(3))
    linear = comfy.ops.manual_cast.Linear(4, 4, bias=False, dtype=dtype).requires_grad_(False)
    with gradients._recording():
        leaf, losses = x.clone().requires_grad_(), []
        for weight in (first, second):
            linear.weight.data.copy_(weight)
            losses.append(gradients.called(linear, {}, None, linear, leaf).square().sum())
        gradient, = torch.autograd.grad(sum(losses), leaf)
    expected = sum(2 * x @ weight.T @ weight for weight in (first.to(dtype).float(), second.to(dtype).float()))
    assert torch.allclose(gradient, expected, rtol=1e-4, atol=1e-4)


def test_a_graph_that_is_never_walked_back_goes_with_its_loss():
    """As at each step's last evaluation, which finds it close enough."""
    with gradients._recording():
        x = torch.ones(3, requires_grad=True)
        x.exp().softmax(0).square().sum()
    gc.collect()
    assert not [o for o in gc.get_objects() if type(o) is Held]


def test_weights_that_a_loader_made_are_not_copied():
    model, saved, pack = tiny.sd15(), set(), CopyBeforeWrite.pack
    weights = {p.untyped_storage().data_ptr() for p in model.model.parameters() if p.ndim > 1 and p.is_inference()}

    def noted(self, tensor):
        saved.add(tensor.untyped_storage().data_ptr())
        return pack(self, tensor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CopyBeforeWrite, "pack", noted)
        scalar(model)
    assert len(weights & saved) > len(weights) / 2


def test_weights_that_the_host_moved_are_differentiated():
    """Weights that were moved to another device outside inference mode are not inference tensors by
    name, but have no version."""
    model = tiny.sd15()
    with torch.inference_mode(False):
        model.model._apply(torch.clone)
    assert not any(p.is_inference() for p in model.model.parameters())
    gradient, difference, _ = scalar(model)
    assert difference == pytest.approx(gradient, rel=1e-2)


@pytest.mark.skipif(not hasattr(comfy.ops, "resolve_cast_module_with_vbar"), reason="an older host has no such memory")
def test_weights_that_dynamic_memory_holds_are_copied_while_a_forward_lasts(monkeypatch):
    """The host's own code for resident weights, which it leaves as they were made, in inference mode."""
    def resident(s, input=None, dtype=None, device=None, bias_dtype=None, offloadable=False, compute_dtype=None,
                 want_requant=False):
        s._prefetch = {"resident": True, "signature": None}
        dtype = dtype or input.dtype
        weight, bias = comfy.ops.resolve_cast_module_with_vbar(s, dtype, device, bias_dtype or dtype, compute_dtype,
                                                               want_requant)
        return (weight, bias, None) if offloadable else (weight, bias)

    _, _, expected = scalar(tiny.sd15())
    model = tiny.sd15()
    held = [m for m in model.model.diffusion_model.modules() if hasattr(m, "comfy_cast_weights")
            and m.weight is not None]
    with torch.inference_mode():
        for m in held:
            m._v, m.comfy_cast_weights, m._v_weight = None, True, m.weight.detach().clone()
            m._v_bias = None if m.bias is None else m.bias.detach().clone()
            m.weight.fill_(torch.nan)
    monkeypatch.setattr(comfy.ops, "cast_bias_weight", resident)
    assert torch.equal(scalar(model)[2], expected)
    assert len(held) > 20 and not any(m.weight_function or m.bias_function for m in held)


@pytest.mark.parametrize("size", [1e-9, 1.0, 300.0])
def test_a_derivative_through_float16_neither_vanishes_nor_overflows(size):
    """For a loss as small or as large as `size` per value."""
    x = torch.linspace(0.5, 1.5, 8, requires_grad=True)
    half = SimpleNamespace(get_dtype=lambda: torch.float16, manual_cast_dtype=None)
    loss = (x.half() * 3).float().mul(size).sum()
    found = gradients.derivative(loss, x, half)
    assert torch.allclose(found, torch.full((8,), 3 * size), rtol=1e-2, atol=0)


WRITES = {  # c is overwritten
    "+=": lambda c: c.__iadd__(1), "add_": lambda c: c.add_(1), "a slice": lambda c: c.__setitem__(slice(1), 1.0),
    "of a view": lambda c: c[:1].zero_(), "out=": lambda c: torch.add(c, 1, out=c),
    "a list": lambda c: torch._foreach_add_([c], 1),
    "aten": lambda c: torch.ops.aten.add_.Tensor(c, 1),
    "inplace=True": lambda c: torch.nn.functional.relu(c, inplace=True)}


@pytest.mark.parametrize("write", WRITES)
def test_what_autograd_saved_is_copied_before_any_write(write):
    with torch.inference_mode(), gradients._recording():
        x, c = torch.ones(3, requires_grad=True), torch.tensor([-1.0, 2.0, 3.0])
        before, product = c.clone(), (x * c).sum()
        WRITES[write](c)
        assert not torch.equal(c, before)
        assert torch.equal(torch.autograd.grad(product, x)[0], before)


def test_a_write_that_python_is_not_told_of_is_an_error():
    with torch.inference_mode(), gradients._recording():
        x, c = torch.ones(3, requires_grad=True), torch.ones(3)
        product = (x * c).sum()
        with torch._C.DisableTorchFunction():
            c.add_(1)
        with pytest.raises(RuntimeError, match="wrote into .* take no gradient"):
            torch.autograd.grad(product, x)


def test_what_autograd_saved_is_copied_before_a_write():
    """The base of a saved view is overwritten, and so are tensors whose memory the next ones may get."""
    with torch.inference_mode(), gradients._recording():
        x = torch.randn(32, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        h = 2 * x
        squares = h[1:].square().sum()
        h += 1
        assert torch.allclose(torch.autograd.grad(squares, x)[0][1:], 8 * x[1:])
        for _ in range(50):
            h = 3 * x
            cubes = h.pow(3).sum()
            h += 1
            cosines = h.sin().sum()
            del h
            assert torch.allclose(torch.autograd.grad(cubes + cosines, x)[0], 81 * x ** 2 + 3 * (3 * x + 1).cos())
