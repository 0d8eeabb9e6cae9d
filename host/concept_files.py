"""Learned weights and words in the host's own forms: LoRA files, embedding files, a CLIP that knows a new word."""
import copy
import hashlib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import comfy.lora
import comfy.model_patcher
import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy.float import stochastic_rounding
from comfy.model_management import cast_to_device
from comfy.sd1_clip import load_embed
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .output import put
from .weights import coarse

SEEDS = comfy.utils if hasattr(comfy.utils, "string_to_seed") else comfy.model_patcher  # ComfyUI 0.3.64
BESIDE = "bypass_lora"  # the host's place for changes beside weights


def register_folders():
    """Lets ComfyUI find the embeddings that Save Concept writes, as it finds LoRAs in output/loras."""
    folder_paths.add_model_folder_path("embeddings", str(Path(folder_paths.get_output_directory(), "embeddings")))


def lora_names(model) -> dict[str, str]:
    """{weight: its name in a LoRA file} of a MODEL's network, the weights by their names in it."""
    names = _named(comfy.lora.model_lora_keys_unet(model.model, {}), "lora_unet_")
    return {key.removeprefix("diffusion_model."): name for key, name in names.items()}


def encoder_lora_names(clip) -> dict[str, str]:
    """The same of a CLIP's text encoders."""
    keys = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})
    alone = len({key.split(".")[0] for key in keys.values()}) == 1
    return _named(keys, "lora_te_" if alone else ("lora_te1_", "lora_te2_"))


def _named(keys: Mapping[str, str], start) -> dict[str, str]:
    """{weight or bias: name}. Of several names the last, which other programs know too."""
    found = {key.removesuffix(".weight"): name for name, key in keys.items()
             if isinstance(key, str) and name.startswith(start) and key.endswith(".weight")}
    return {f"{stem}.{part}": name for stem, name in found.items() for part in ("weight", "bias")}


def patched_weights(model, names: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
    """(a name, the weight of a MODEL's network that it stands for, in fp32 and under the MODEL's patches), in turn."""
    held = model.get_key_patches("diffusion_model.")
    for name, weight in names.items():
        key = f"diffusion_model.{weight}"
        (raw, convert), *patches = held[key]
        own = convert(cast_to_device(raw, model.load_device, torch.float32, copy=True), inplace=True)
        own = comfy.lora.calculate_weight(patches, own, key)
        if patches:  # as the host rounds them
            own = stochastic_rounding(own, raw.dtype, seed=SEEDS.string_to_seed(key)).float()
        yield name, own


def with_weights(model, clip, weights: Mapping[str, Tensor], strength_model: float, strength_clip: float):
    """(MODEL, CLIP) under a LoRA file's weights. Beside those of a quantised MODEL or one of 8 bits, where the sum
    would be rounded as coarsely, if it has no others there yet: the host has one place for them."""
    bypass = getattr(comfy.sd, "load_bypass_lora_for_models", None)
    if not bypass or BESIDE in model.injections or not coarse(model):
        return comfy.sd.load_lora_for_models(model, clip, dict(weights), strength_model, strength_clip)
    unet = {name: value for name, value in weights.items() if name.startswith("lora_unet_")}
    model, _ = bypass(model, None, unet, strength_model, 0.0)
    model.set_attachments(BESIDE, list(unet.values()) if strength_model else None)
    if weights.keys() > unet.keys():
        rest = {name: value for name, value in weights.items() if name not in unet}
        _, clip = comfy.sd.load_lora_for_models(None, clip, rest, 0.0, strength_clip)
    return model, clip


def carries(model, weights: Mapping[str, Tensor]) -> bool:
    """Whether a MODEL, or a CLIP's patcher, is under a LoRA's weights, these or a file's of 16 bits."""
    held = (getattr(change, "weights", change) for patches in model.patches.values()
            for strength, change, *_ in patches if strength)
    held = [part for part in tree_leaves([*held, model.attachments.get(BESIDE)]) if torch.is_tensor(part)]
    ours = next((w.half() for w in weights.values() if w.numel() > 1 and w.half().count_nonzero()), None)
    return ours is not None and any(part.shape == ours.shape and torch.equal(part.to(ours), ours) for part in held)


def tables(clip) -> dict[str, tuple]:
    """{encoder: (its tokenizer, its part of the model)} of the text encoders that take an embedding's file."""
    held = [(part, getattr(clip.cond_stage_model, name, None)) for name, part in _tokenizers(clip.tokenizer).items()]
    return {part.embedding_key: (part, encoder) for part, encoder in held if encoder is not None}


def _tokenizers(tokenizer) -> dict:
    return {name: part for name, part in vars(tokenizer).items() if hasattr(part, "embedding_directory")}


def vectors_of(clip, words: str) -> dict[str, Tensor]:
    """{encoder: [n,D]}: the vectors of some words in each text encoder's table of tokens."""
    found = {}
    for key, (tokenizer, encoder) in tables(clip).items():
        first = int(tokenizer.start_token is not None)
        last = None if tokenizer.end_token is None else -1
        ids = tokenizer.tokenizer(words)["input_ids"][first:last]
        table = encoder.transformer.get_input_embeddings().weight
        found[key] = table[torch.tensor(ids, dtype=torch.long, device=table.device)].detach().float().cpu().clone()
    return found


def word_exists(clip, name: str) -> bool:
    """Whether the CLIP's folders hold an embedding of this name."""
    return any(load_embed(name, part.embedding_directory, part.embedding_size, part.embedding_key) is not None
               for part, _ in tables(clip).values() if part.embedding_directory)


def takes_words(clip) -> bool:
    """Whether prompts of a CLIP may hold embeddings. Some of the host's tokenizers compare each token with a number."""
    word = {key: torch.zeros(1, part.transformer.get_input_embeddings().weight.shape[1])
            for key, (_, part) in tables(clip).items()}
    try:
        tokens = with_words(clip, {"palimpsest": word}).tokenize("embedding:palimpsest") if word else {}
    except RuntimeError:
        return False
    return any(torch.is_tensor(token) for rows in tokens.values() for row in rows for token, *_ in row)


@cache
def _words_folder() -> TemporaryDirectory:
    """Of the words that this process learned, until it ends. The host empties its own folder of temporary files when a
    second ComfyUI starts from the same place."""
    return TemporaryDirectory(prefix="palimpsest-words-", ignore_cleanup_errors=True)


def with_words(clip, words: Mapping[str, Mapping[str, Tensor]]):
    """A CLIP in whose prompts embedding:NAME is each of {NAME: {encoder: [n,D]}}."""
    if not words:
        return clip
    files = {name: embedding_file(vectors) for name, vectors in words.items()}
    content = hashlib.sha256(b"".join(name.encode() + data for name, data in sorted(files.items()))).hexdigest()[:16]
    folder = Path(_words_folder().name, content)
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        put(folder / f"{name}.safetensors", data)
    m = clip.clone()
    m.tokenizer = copy.copy(clip.tokenizer)
    for attribute, tokenizer in _tokenizers(clip.tokenizer).items():
        held = tokenizer.embedding_directory or []
        tokenizer = copy.copy(tokenizer)
        tokenizer.embedding_directory = [str(folder), *([held] if isinstance(held, str) else held)]
        setattr(m.tokenizer, attribute, tokenizer)
    return m


def lora_sizes(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """A LoRA's rank and alpha as other programs' metadata have them; nothing of changes that are no LoRA."""
    ranks = {len(value) for name, value in weights.items() if name.endswith(".lora_down.weight")}
    alphas = {float(value) for name, value in weights.items() if name.endswith(".alpha")}
    if len(ranks) != 1 or len(alphas) != 1:
        return {}
    return {"ss_network_module": "networks.lora", "ss_network_dim": str(*ranks), "ss_network_alpha": f"{min(alphas):g}"}


def lora_file(weights: Mapping[str, Tensor], about: Mapping[str, str]) -> bytes:
    """The bytes of a LoRA's file. about: its metadata."""
    return save({name: value.contiguous() for name, value in weights.items()}, dict(about))


def embedding_file(vectors: Mapping[str, Tensor]) -> bytes:
    """The bytes of an embedding's file. With one text encoder its vectors are called as other programs expect."""
    return save({"emb_params" if len(vectors) == 1 else key: v.contiguous() for key, v in vectors.items()})


def read_file(path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(the tensors of a safetensors file, its metadata)."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{Path(path).name} cannot be read as a safetensors file ({error}): save it again.") from error
