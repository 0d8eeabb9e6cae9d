"""Small random text encoders of the families beside CLIP's, of the host's own classes, with its real tokenizers.

T5 has no layers here, so that a token changes its own column alone.
"""
import os
from functools import cache
from unittest import mock

import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import comfy.text_encoders.aura_t5
import comfy.text_encoders.flux
import comfy.text_encoders.hidream
import comfy.text_encoders.hunyuan_image
import comfy.text_encoders.hunyuan_video
import comfy.text_encoders.llama
import comfy.text_encoders.lt
import comfy.text_encoders.lumina2
import comfy.text_encoders.pixart_t5
import comfy.text_encoders.qwen_image
import comfy.text_encoders.sd3_clip
import comfy.text_encoders.wan
import torch
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

import joint
import tiny
from tiny import DIM, POOLED

ENCODERS = os.path.dirname(comfy.text_encoders.flux.__file__)
T5 = {"num_layers": 0, "d_model": DIM, "d_ff": DIM, "d_kv": DIM, "num_heads": 1}
CLIP = {**tiny.CLIP_CONFIG, "hidden_size": POOLED, "projection_dim": POOLED, "num_attention_heads": 1}
QWEN = {"num_hidden_layers": 3, "hidden_size": DIM, "intermediate_size": DIM, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": 151936}


class Sd3(torch.nn.Module):
    """Its CLIP and T5 of small widths, joined as the host joins them."""

    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__()
        self.clip_l = tiny.ClipL(device)
        self.clip_g, self.dtypes = None, {dtype}
        self.t5xxl = comfy.text_encoders.sd3_clip.T5XXLModel(model_options={"t5xxl_model_config": T5})

    def encode_token_weights(self, pairs):
        (clip, pooled), (t5, _) = (getattr(self, name).encode_token_weights(pairs[key])[:2]
                                   for name, key in (("clip_l", "l"), ("t5xxl", "t5xxl")))
        return torch.cat([clip, t5], 1), pooled[:, :POOLED], {}

    def reset_clip_options(self, *_):
        pass

    set_clip_options = load_sd = reset_clip_options


def small(model, base, **configs):
    """A host's class of text encoders with small configurations."""
    class Small(model):
        def __init__(self, device="cpu", dtype=None, model_options=None):
            options = {f"{name}_model_config": config for name, config in configs.items()}
            if base is None:
                super().__init__(device=device, dtype=dtype, model_options=options)
            else:  # Qwen2.5's holds a vision tower, which is large
                comfy.sd1_clip.SD1ClipModel.__init__(self, device=device, dtype=dtype, model_options=options,
                                                     name="qwen25_7b", clip_model=base)
    return Small


class Qwen(comfy.sd1_clip.SDClipModel):
    """Qwen's without the tower."""

    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__(device=device, layer="hidden", layer_idx=-2, dtype=dtype, textmodel_json_config=dict(QWEN),
                         special_tokens={"pad": 151643}, layer_norm_hidden_state=False, enable_attention_masks=True,
                         return_attention_masks=True, model_class=comfy.text_encoders.llama.Qwen25_3B)


MADE = {
    "flux": (comfy.text_encoders.flux.FluxTokenizer,
             small(comfy.text_encoders.flux.FluxClipModel, None, t5xxl=T5, clip_l=CLIP)),
    "sd3": (comfy.text_encoders.sd3_clip.SD3Tokenizer, Sd3),
    "chroma": (comfy.text_encoders.pixart_t5.PixArtTokenizer,
               small(comfy.text_encoders.pixart_t5.PixArtT5XXL, None, t5xxl=T5)),
    "qwen": (comfy.text_encoders.qwen_image.QwenImageTokenizer,
             small(comfy.text_encoders.qwen_image.QwenImageTEModel, Qwen)),
}
if joint.TODAY:
    import comfy.text_encoders.z_image
    MADE["zimage"] = (comfy.text_encoders.z_image.ZImageTokenizer,
                      small(comfy.text_encoders.z_image.ZImageTEModel, None, qwen3_4b=QWEN))


@torch.inference_mode()
def clip(family):
    """A CLIP for the small network of that family."""
    made = comfy.sd.CLIP(comfy.supported_models_base.ClipTarget(*MADE[family]))
    tiny.fill(made.cond_stage_model)
    return made


class TokenizerOnly:
    """A CLIP that never needs its text model: the host's tokenizer behind the host's own `tokenize`."""
    tokenize = comfy.sd.CLIP.tokenize
    tokenizer_options = {}

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer


def spiece(made):
    """One that takes its vocabulary from the checkpoint, with that of Pile T5."""
    path = os.path.join(ENCODERS, "t5_pile_tokenizer", "tokenizer.model")
    with open(path, "rb") as file:
        return made(tokenizer_data={"spiece_model": torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)})


class Llama:
    """Its tokenizer as its file has it, read once. transformers 5 reads it otherwise, and joins words."""

    @staticmethod
    @cache
    def from_pretrained(path):
        return PreTrainedTokenizerFast(tokenizer_file=os.path.join(path, "tokenizer.json"))


def llama(made):
    with mock.patch.object(comfy.text_encoders.hunyuan_video, "LlamaTokenizerFast", Llama):
        return made()


class Mistral:
    """Of its own marks and Qwen's vocabulary. Mistral's comes with its checkpoint."""

    @staticmethod
    @cache
    def from_pretrained(path):
        made = Qwen2Tokenizer.from_pretrained(os.path.join(ENCODERS, "qwen25_tokenizer"))
        made.add_tokens(["[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]"], special_tokens=True)
        return made


def mistral(made):
    with mock.patch.multiple(comfy.text_encoders.flux, MistralTokenizerClass=Mistral,
                             load_mistral_tokenizer=lambda data: {}):
        return made()


TOKENIZERS = {**{name: tokenizer for name, (tokenizer, _) in MADE.items()},
              **({"klein": comfy.text_encoders.flux.KleinTokenizer,
                  "flux2": lambda: mistral(comfy.text_encoders.flux.Flux2Tokenizer)} if joint.TODAY else {}),
              "auraflow": comfy.text_encoders.aura_t5.AuraT5Tokenizer,
              "ltx video": comfy.text_encoders.lt.LTXVT5Tokenizer,
              "hunyuan image": comfy.text_encoders.hunyuan_image.HunyuanImageTokenizer,
              "lumina2": lambda: spiece(comfy.text_encoders.lumina2.LuminaTokenizer),
              "wan": lambda: spiece(comfy.text_encoders.wan.WanT5Tokenizer),
              "hunyuan video": lambda: llama(comfy.text_encoders.hunyuan_video.HunyuanVideoTokenizer),
              "hidream": lambda: llama(comfy.text_encoders.hidream.HiDreamTokenizer)}
