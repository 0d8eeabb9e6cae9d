"""Gradients through the host's model, inside its inference mode.

Four things stand in the way of a backward pass. Weights that a loader node made are inference tensors, which autograd refuses to
save: computing in another dtype casts them to fresh tensors, and where the dtype is the same, copies take their place while a
forward lasts. Some blocks write into tensors that autograd saved; those are copied first. Some fused kernels have no derivative;
the host leaves them out while `in_training` is set. Some attention backends return no graph; PyTorch's own does.
"""
from collections import defaultdict
from contextlib import contextmanager
from functools import cache, partial
from weakref import WeakSet

import comfy.model_management as management
import comfy.samplers
import torch
from comfy.ldm.modules.attention import get_attention_function
from comfy.patcher_extension import WrappersMP
from torch.utils._python_dispatch import TorchDispatchMode

KEY = "palimpsest.gradients"
FP32 = 4 * 2 ** 30  # bytes of weights: larger models compute in bf16, or SDXL's graph at 1024 px outgrows 24 GB (bench gradients)


@contextmanager
def differentiable(model):
    """A clone of the MODEL that autograd differentiates for x and for a prompt's embedding. Forward and backward belong inside;
    tensors that enter the graph must be made or cloned inside. Nothing stays in the model."""
    with _recording():
        # the host's dynamic memory may overwrite weights that autograd saved
        m = model.clone(disable_dynamic=True) if getattr(model, "is_dynamic", bool)() else model.clone()
        dtype = m.model_dtype()
        compute = torch.float32 if dtype == torch.float32 or m.model_size() <= FP32 else torch.bfloat16
        if dtype == compute:
            m.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, partial(_on_copies, {}))
        else:
            m.set_model_compute_dtype(compute)
        m.model_options["transformer_options"]["optimized_attention_override"] = pytorch_attention
        yield m


@contextmanager
def _recording():
    """Autograd outside the executor's inference mode, in-place writes and fused kernels taken care of."""
    training, copying = getattr(management, "in_training", False), _CopyBeforeWrite()
    with (torch.inference_mode(False), torch.enable_grad(), copying,
          torch.autograd.graph.saved_tensors_hooks(copying.pack, lambda held: held.tensor)):
        management.in_training = True
        try:
            yield
        finally:
            management.in_training = training


class _Held:
    """A tensor that autograd saved."""

    def __init__(self, tensor):
        self.tensor = tensor


class _CopyBeforeWrite(TorchDispatchMode):
    """Copies what autograd saved before an operation writes into its storage. PyTorch's allow_mutation_on_saved_tensors does so
    too, but knows a tensor by addresses that the next one may be given: a gradient in fifty came out wrong."""

    def __init__(self):
        super().__init__()
        self.held = defaultdict(WeakSet)  # by storage, which lives as long as what holds it

    def pack(self, tensor):
        held = _Held(tensor.detach())  # the tensor itself would keep its graph, and be kept by it
        self.held[tensor.untyped_storage().data_ptr()].add(held)
        return held

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for i, name in _written(function):
            found = args[i] if i < len(args) else kwargs.get(name)
            for tensor in found if isinstance(found, (list, tuple)) else [found]:
                if tensor is not None:
                    for held in self.held.pop(tensor.untyped_storage().data_ptr(), ()):
                        held.tensor = held.tensor.clone()
        return function(*args, **kwargs)


@cache
def _written(function) -> list:
    """(place, name) of the arguments that an operation writes into."""
    return [(i, a.name) for i, a in enumerate(function._schema.arguments) if a.alias_info is not None and a.alias_info.is_write]


@contextmanager
def graph(run, memory):
    """model_options for calls of the model between two steps of a run, which autograd differentiates for x; editors take no
    part. Forward and backward belong inside; tensors that enter the graph must be made or cloned inside. memory: where the copies
    of the weights stay until the run ends."""
    copied = partial(_on_copies, memory.setdefault("weights", {}))
    options = run.guider.model_options  # before the run put itself there, so the editors are not asked
    wrappers = options["transformer_options"].get("wrappers", {})
    applied = {**wrappers.get(WrappersMP.APPLY_MODEL, {}), KEY: [copied]}
    to = {**options["transformer_options"], "wrappers": {**wrappers, WrappersMP.APPLY_MODEL: applied},
          "sample_sigmas": run.sigmas, "optimized_attention_override": pytorch_attention}
    with _recording():
        yield {**options, "transformer_options": to}


def without_control_weights(entries) -> list:
    """Processed cond entries whose ControlNets autograd takes for constants, and without GLIGEN: their weights are inference
    tensors."""
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


def _on_copies(copies, executor, *args, **kwargs):
    call = _Call(executor.class_obj.diffusion_model)
    if not copies:
        tensors = [*call.named_parameters(), *call.named_buffers()]
        copies.update({name: t.detach().clone() for name, t in tensors if t.is_inference()})
    return torch.func.functional_call(call, copies, (executor, *args), kwargs)


def pytorch_attention(function, *args, **kwargs):
    """An attention override of the host's: PyTorch's own function in place of the chosen backend."""
    return get_attention_function("pytorch")(*args, **kwargs)


class PromptGuider(comfy.samplers.CFGGuider):
    """Predicts x0 with one of its prompts {name: CONDITIONING} at a time, as `prompted` asks."""

    def __init__(self, model, prompts):
        super().__init__(model)
        self.inner_set_conds(prompts)

    def predict_noise(self, x, timestep, model_options={}, seed=None):
        name, embedding = model_options["transformer_options"]["palimpsest.prompt"]
        conds = self.conds[name]
        if embedding is not None:
            conds = [with_embedding(entry, embedding) for entry in conds]
        return comfy.samplers.calc_cond_batch(self.inner_model, [conds], x, timestep, model_options)[0]


def with_embedding(entry, embedding) -> dict:
    """A processed cond entry with another cross-attention embedding [B, tokens, C]."""
    held = entry["model_conds"]["c_crossattn"]
    return {**entry, "model_conds": {**entry["model_conds"], "c_crossattn": type(held)(embedding.to(held.cond.device))}}


def prompted(model, extra_args, name, x, sigma, embedding=None):
    """x0 [B,C,…] of x at σ [B], under a solver that PromptGuider runs: with its prompt `name`, or with another embedding
    [B, tokens, C] in that prompt's place. Ends the run where the user cancelled."""
    management.throw_exception_if_processing_interrupted()
    options = extra_args["model_options"]
    to = {**options["transformer_options"], "palimpsest.prompt": (name, embedding)}
    return model(x, sigma, **{**extra_args, "model_options": {**options, "transformer_options": to}})
