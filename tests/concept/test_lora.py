"""LoRA against the paper's equation and the host's own loader."""
import pytest
import torch
from palimpsest.concept.lora import LoRA
from palimpsest.editing.learning import applied, learn_concept

import nodes
import tiny
from concepts import images
from node_execution import executor  # noqa: F401  runs every test as the host does
from runs import relative


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3, 3), (6, 5, 1, 1)])
def test_the_change_is_a_product_of_rank_r(shape):
    weight, basis = torch.randn(shape, generator=torch.Generator().manual_seed(0)), LoRA(1e-3, rank=2, alpha=1.0)
    theta = basis.start(weight, torch.Generator().manual_seed(1))
    assert not basis.delta(theta, weight).count_nonzero() and theta["A"].count_nonzero()
    theta["B"] = torch.randn(theta["B"].shape, generator=torch.Generator().manual_seed(2))
    delta = basis.delta(theta, weight)
    plain = torch.stack([sum(theta["B"][o, r] * theta["A"][r] for r in range(2)) for o in range(6)]) / 2
    assert relative(delta, plain.view(shape)) < 1e-6
    assert int(torch.linalg.matrix_rank(delta.flatten(1))) == 2


@pytest.mark.parametrize("precision", [torch.float32, torch.float16])
def test_the_hosts_lora_loader_loads_the_file(precision, tmp_path, monkeypatch, caplog):
    """Convolutions, projections and the text encoder, by the names that other programs know too."""
    from palimpsest.host.concept_files import lora_file
    model, clip = tiny.sd15(), tiny.clip()
    learned = learn_concept(model, clip, images(model), [LoRA(1e-2, layers="all", text_encoder=True)], steps=2)
    path = tmp_path / "thing.safetensors"
    path.write_bytes(lora_file({name: v.to(precision) for name, v in learned.weights.items()}, {}))
    monkeypatch.setattr(nodes.folder_paths, "get_full_path_or_raise", lambda kind, name: str(path))
    theirs = nodes.LoraLoader().load_lora(model, clip, "thing.safetensors", 1.0, 1.0)
    ours = applied(model, clip, learned)
    assert "not loaded" not in caplog.text
    latent, prompt = {"samples": tiny.latent(model)}, tiny.encode(clip, "a dog")
    sampled = [nodes.common_ksampler(m, 1, 3, 1.0, "euler", "simple", prompt, prompt, latent)[0]["samples"]
               for m in (theirs[0], ours[0], model)]
    texts = [tiny.encode(c, "a dog")[0][0] for c in (theirs[1], ours[1], clip)]
    close = 1e-6 if precision == torch.float32 else 1e-3
    for found, same, without in (sampled, texts):
        assert relative(found, same) < close and relative(found, without) > 10 * close
    assert {name.split("_")[1] for name in learned.weights} == {"unet", "te"}
    assert any(name.startswith("lora_unet_down_blocks_0_attentions_0") for name in learned.weights)


def test_attention_alone_and_all_layers():
    model = tiny.sd15()
    inside = dict(model.model.diffusion_model.named_parameters())
    attention = {n for n, w in inside.items() if LoRA(1e-3).takes(n, w)}
    every = {n for n, w in inside.items() if LoRA(1e-3, layers="all").takes(n, w)}
    assert attention == {n for n in inside if ".attn" in n and n.endswith("weight")} and attention < every
    assert every == {n for n, w in inside.items() if w.ndim > 1}
