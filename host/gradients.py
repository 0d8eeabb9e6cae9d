"""Gradients through the host's model, inside its inference mode.

Six things stand in the way of a backward pass.
- Weights that a loader node made are inference tensors, which autograd refuses to save. Other tensors on the same
  memory replace them during a forward. Of weights that the host's dynamic memory brings and may take away, copies do.
- A cast to another dtype, and a changed weight, would be kept whole. They are made again in the backward pass.
- Autograd cannot save a quantised weight, and the host's fast kernels for them round what goes in. They compute with
  the numbers that it stands for, made when they are needed.
- Some blocks write into tensors that autograd saved. Those are copied first.
- Some fused kernels have no derivative. The host leaves them out while `in_training` is set.
- Some attention backends return no graph. PyTorch's own does.
"""
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import comfy.model_management as management
import torch
from comfy.ldm.modules.attention import get_attention_function
from torch import Tensor

from .options import WrappersMP, uncached, with_transformer, with_wrapper
from .recomputing import again, forwards, recomputed
from .saved import MADE, CopyBeforeWrite, alias
from .weights import numbers, quantised

KEY = "palimpsest.gradients"
# bytes of weights: larger models compute in bf16, where the graph is half as large
FP32 = 4 * 2 ** 30

Deltas = Callable[[], Mapping[str, Tensor]] | None  # {weight: what is added to it}, asked in each forward


def require_weights_in_place(model) -> bool:
    """Whether a MODEL has the host's dynamic memory. ValueError where its weights cannot stay in place."""
    dynamic = getattr(model, "is_dynamic", bool)()
    if dynamic and getattr(model, "cached_patcher_init", None) is None:
        raise ValueError("A gradient over all steps needs weights that stay in place, the node that loaded this MODEL "
                         "knows only dynamic memory: load it with ComfyUI's own nodes, or start ComfyUI with "
                         "--disable-dynamic-vram.")
    return dynamic


@contextmanager
def differentiable(model, deltas: Deltas = None, recompute: Callable[[], bool] = bool):
    """A clone of the MODEL that autograd differentiates for x, for a prompt's embedding and for changes of weights.

    Forward and backward belong inside; tensors that enter the graph must be made or cloned inside. Nothing stays in the
    model.

    deltas: asked in each forward for changes of the network's weights in fp32, by their names in it.
    recompute: asked in each forward whether the network's blocks are computed again in the backward pass
        (recomputing.py). Then `deltas` is asked in there too, and only leaves get their gradients.
    """
    dynamic, outside = require_weights_in_place(model), torch.is_inference_mode_enabled()
    with _recording(beside := bool(model.injections)):
        # the host's dynamic memory may overwrite weights that autograd saved
        m = model.clone(disable_dynamic=True) if dynamic else model.clone()
        dtype = m.model_dtype()
        compute = torch.float32 if dtype == torch.float32 or m.model_size() <= FP32 else torch.bfloat16
        m.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, partial(_in_mode, outside))
        m.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, _require_graph)
        m.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, partial(_on_stand_ins, {}, deltas, recompute, beside))
        if dtype != compute:
            m.set_model_compute_dtype(compute)
        m.model_options["transformer_options"]["optimized_attention_override"] = pytorch_attention
        yield m


@contextmanager
def _recording(beside=False):
    """Autograd outside the executor's inference mode, in-place writes and fused kernels taken care of.

    beside: whether LoRAs stand beside weights, so that modules compute with tensors that are not the network's."""
    training, copying = getattr(management, "in_training", False), CopyBeforeWrite(beside)
    with (torch.inference_mode(False), torch.enable_grad(), copying,
          torch.autograd.graph.saved_tensors_hooks(copying.pack, lambda kept: kept.unpack())):
        management.in_training = True
        try:
            yield
        finally:
            management.in_training = training


@contextmanager
def unrecorded():
    """While it lasts nothing is recorded inside `differentiable`, for writes into tensors that no graph has saved."""
    with torch.no_grad(), torch._C.DisableTorchFunction():
        yield


@contextmanager
def graph(guider, sigmas: Tensor, stand_ins: dict) -> Iterator[dict]:
    """model_options for calls of a guider's model between two steps over sigmas, through which autograd differentiates
    for x. Forward and backward belong inside; tensors of the graph must be made or cloned inside.

    stand_ins: where those of the weights stay, for the next time."""
    # those of the guider hold no run, so no editor is asked
    options = with_transformer(guider.model_options, sample_sigmas=sigmas,
                               optimized_attention_override=pytorch_attention)
    with _recording(beside := bool(guider.model_patcher.injections)):
        yield with_wrapper(uncached(options), WrappersMP.APPLY_MODEL, KEY, _require_graph,
                           partial(_on_stand_ins, stand_ins, None, bool, beside))


def without_control_weights(entries) -> list:
    """Processed cond entries whose ControlNets autograd takes for constants, and without GLIGEN: their weights are
    inference tensors."""
    held = {id(e["control"]): _Constant(e["control"]) for e in entries if "control" in e}
    return [{k: held[id(v)] if k == "control" else v for k, v in e.items() if k != "gligen"} for e in entries]


class _Constant:
    """A ControlNet whose output has no gradient."""

    def __init__(self, control):
        self.control = control

    def get_control(self, x, *args):
        with torch.no_grad():
            return self.control.get_control(x.detach(), *args)


class _Call(torch.nn.Module):
    """Calls a function while the network's weights are replaced."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, function, *args, **kwargs):
        return function(*args, **kwargs)


def _in_mode(inference, executor, *args, **kwargs):
    """The host moves quantised weights again in the mode alone in which it moved them first."""
    with torch.inference_mode(inference):
        return executor(*args, **kwargs)


def _require_graph(executor, *args, **kwargs):
    if torch.is_inference_mode_enabled():
        raise ValueError("A gradient through the model is wanted, and another node calls the model in PyTorch's "
                         "inference mode, which has none: remove that node (Tiled Diffusion's is one), or what needs "
                         "the gradient.")
    return executor(*args, **kwargs)


def _on_stand_ins(stand_ins, deltas: Deltas, recompute, beside, executor, *args, **kwargs):
    call = partial(_recomputing, beside) if recompute() else called
    return call(executor.class_obj.diffusion_model, stand_ins, deltas, executor, *args, **kwargs)


def _recomputing(beside, network, stand_ins: dict, deltas: Deltas, function, *args, **kwargs):
    """`called`, whose blocks take their weights themselves, in each of their passes."""
    added: Mapping = deltas() if deltas else {}
    changed: dict[str, Callable] = {}
    # found once, as a walk of the network takes long beside a small block's pass
    brought, compressed = _brought(network), _compressed(network)
    names = {name: {n: f"{name}.{n}" for n, _ in (*block.named_parameters(), *block.named_buffers())}
             for name, block in again(network).items()}
    inside = {key for held in names.values() for key in held.values()}

    def weights(name):
        if added and not changed:  # the first call of a block is the first that has the stand-ins
            changed.update(_changed(stand_ins, lambda: added))
        found = {n: changed[f"network.{key}"]() if key in added else stand_ins.get(f"network.{key}")
                 for n, key in names[name].items()}
        return {n: numbers(tensor) for n, tensor in found.items() if tensor is not None}

    @contextmanager
    def recording():
        with _recording(beside), _copied(brought), _whole(compressed):
            yield

    with recomputed(network, weights, recording):
        return called(network, stand_ins, lambda: {n: added[n] for n in added if n not in inside}, function, *args,
                      **kwargs)


def called(network, stand_ins: dict, deltas: Deltas, function, *args, **kwargs):
    """function(…) while autograd may save the network's weights, with something added to some of them.

    stand_ins: where the tensors in their places stay, for the next call."""
    call = _Call(network)
    brought, compressed = _brought(call), _compressed(call)
    if not stand_ins:
        theirs = {id(t) for m in brought for t in m.parameters(recurse=False)}
        tensors = [(name, t.detach()) for name, t in (*call.named_parameters(), *call.named_buffers())
                   if id(t) not in theirs]
        # all of them: one moved between devices is no inference tensor by name, but has no version either
        stand_ins.update({name: t if quantised(t) else alias(t) for name, t in tensors
                          if type(t) is torch.Tensor or quantised(t)})
    changed, making = _changed(stand_ins, deltas), {}
    for name, module in call.named_modules():
        if hasattr(module, "weight_function"):  # the host lets it change its weights itself
            names = {n: key for n in module._parameters if (key := f"{name}.{n}") in stand_ins}
            if any(key in changed or stand_ins[key].dtype.itemsize <= 2 or quantised(stand_ins[key])
                   for key in names.values()):
                making[module] = _Making(module, {n: changed.pop(key, None) for n, key in names.items()})
    with _copied(brought), _whole(compressed), forwards(making):
        others = {name: make() for name, make in changed.items()}
        return torch.func.functional_call(call, {**stand_ins, **others}, (function, *args), kwargs)


class _Making:
    """What stands in a module's forward. Its changed and quantised weights, and casts of its 8 or 16 bits, are made
    when it is called, and gone when it returns.

    made: {weight that autograd may save: what makes it, or None}."""

    def __init__(self, module, made):
        self.module, self.own, self.made = module, module.forward, made

    def __call__(self, *args, **kwargs):
        held, before, made = self.module._parameters, dict(self.module._parameters), {}
        x = next((given for given in (*args, *kwargs.values()) if isinstance(given, Tensor)), None)
        try:
            for name, make in self.made.items():
                make, weight = _cast(make, held[name], x)
                if make:
                    held[name] = make() if weight is None else make(weight)
                    made[held[name].untyped_storage()._cdata] = make, weight
            MADE.update(made)
            return self.own(*args, **kwargs)
        finally:
            held.update(before)
            for place in made:
                MADE.pop(place, None)


def _cast(make, weight, x) -> tuple[Callable | None, Tensor | None]:
    """(What makes a weight of 8 or 16 bits in the dtype of its module's input, of which weight).

    make: of a changed weight."""
    if quantised(weight) and x is not None and not make:
        device, to = x.device, x.dtype
        return lambda: numbers(weight).to(device, to), None
    if x is None or not x.is_floating_point() or weight.dtype.itemsize > 2 or weight.device != x.device:
        return make, None
    dtype = x.dtype  # a graph that holds x would hold itself
    if make:
        return lambda: make().to(dtype), None
    return (lambda held: held.to(dtype), weight) if weight.dtype != dtype else (None, None)


def _brought(network) -> list:
    """Modules whose weights the host's dynamic memory brings, past any stand-in."""
    return [m for m in network.modules() if hasattr(m, "_v")]


def _compressed(network) -> list:
    """Modules of quantised weights."""
    return [m for m in network.modules() if quantised(getattr(m, "weight", None))]


def _changed(stand_ins, deltas: Deltas) -> dict[str, Callable]:
    """{weight that something is added to: what makes it}. Those of larger models have 16 bits then, smaller ones are
    computed in fp32."""
    added = deltas() if deltas else {}
    lacking = [name for name in added if f"network.{name}" not in stand_ins]
    if lacking:
        raise ValueError(f"{len(lacking)} weights are to be learned that the host's dynamic memory may take away: "
                         "start ComfyUI with --disable-dynamic-vram.")
    large = sum(t.nbytes for t in stand_ins.values()) > FP32

    def make(name):
        weight = stand_ins[f"network.{name}"]
        found = numbers(weight).to(added[name].dtype) + added[name]
        dtype = weight.dtype if weight.dtype.itemsize > 1 else torch.bfloat16  # 8 bits would round ΔW away
        return found.to(dtype) if large else found

    return {f"network.{name}": partial(make, name) for name in added}


def _copied(modules):
    """While it lasts the host computes with copies of these modules' weights, which autograd may save."""
    return _set((m, name, [torch.clone, *getattr(m, name)]) for m in modules
                for name in ("weight_function", "bias_function"))


def _whole(modules):
    """While it lasts the host quantises nothing that goes into these modules."""
    return _set((m, "comfy_force_cast_weights", True) for m in modules)


@contextmanager
def _set(values):
    """Sets (module, attribute, value), each as it was before when it ends."""
    values = [*values]
    before = [(module, name, module.__dict__.get(name)) for module, name, _ in values]
    try:
        for module, name, value in values:
            setattr(module, name, value)
        yield
    finally:
        for module, name, functions in before:
            if functions is None:
                delattr(module, name)
            else:
                setattr(module, name, functions)


def derivative(loss: Tensor, x: Tensor, model) -> Tensor:
    """∂loss/∂x through the host's model (a BaseModel). What a float16 network would round to 0 in its backward pass is
    scaled up first, and less where it then overflows."""
    half = (getattr(model, "manual_cast_dtype", None) or model.get_dtype()) == torch.float16
    for lift in (2.0 ** 12, 2.0 ** 6) if half else ():
        lifted, = torch.autograd.grad(loss * lift, x, retain_graph=True)
        if lifted.isfinite().all():
            return lifted / lift
    return torch.autograd.grad(loss, x)[0]


def pytorch_attention(function, *args, **kwargs):
    """An attention override of the host's: PyTorch's own function in place of the chosen backend."""
    attention: Any = get_attention_function("pytorch")
    return attention(*args, **kwargs)
