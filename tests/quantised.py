"""Small models from quantised checkpoints, as the host loads those named fp8_scaled."""
import json

import pytest
import torch

FORMAT = "float8_e4m3fn"


def of_float8(model, dtype=torch.float32):
    """(a MODEL whose linear layers are the host's quantised tensors, a plain one of the numbers that they stand for).

    dtype: that the host computes in.
    """
    quant_ops = pytest.importorskip("comfy.quant_ops", reason="this host has no quantised tensors")
    layout = quant_ops.QUANT_ALGOS[FORMAT]["comfy_tensor_layout"]
    network, entries, plain = model.model.diffusion_model, {}, {}
    linear = {f"{name}.weight" for name, module in network.named_modules() if isinstance(module, torch.nn.Linear)}
    with torch.inference_mode():
        for name, weight in network.state_dict().items():
            entries[name] = plain[name] = weight
            if name in linear:
                held = quant_ops.QuantizedTensor.from_float(weight.to(dtype), layout, scale="recalculate")
                stem, plain[name] = name.removesuffix("weight"), held.dequantize()
                entries |= {name: held._qdata, f"{stem}weight_scale": held._params.scale, f"{stem}comfy_quant":
                            torch.tensor([*json.dumps({"format": FORMAT}).encode()], dtype=torch.uint8)}
        found = _made(model, entries, dtype, {"mixed_ops": True})
        assert any(isinstance(w, quant_ops.QuantizedTensor) for w in found.model.diffusion_model.parameters())
        return found, _made(model, plain, dtype, None)


def _made(model, weights, dtype, quantised):
    """A MODEL of the same class, as the host's loader makes one for these entries."""
    inner = model.model
    config = type(inner.model_config)(dict(inner.model_config.unet_config))
    config.unet_config = dict(inner.model_config.unet_config)
    config.quant_config = quantised
    config.set_inference_dtype(dtype, dtype)
    made = type(inner)(config, model_type=inner.model_type)
    made.diffusion_model.load_state_dict(weights)
    return type(model)(made, load_device=model.load_device, offload_device=torch.device("cpu"))
