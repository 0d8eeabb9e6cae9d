"""Words in layers and stages: their prompt on the host, and the same on transformers and diffusers."""
import folder_paths
import torch
from palimpsest.bench import twin
from palimpsest.editing.learning import learn_concept
from palimpsest.editing.word_spaces import prompt
from palimpsest.nodes.concept.learn import saved
from palimpsest.nodes.concept.words import PalimpsestLoadConcept
from transformers import CLIPTextConfig, CLIPTextModel

import tiny
from concepts import drawn, images, prediction

CAPTION = "a photo of * dog"


class Plain:
    """A step of learning on transformers' text encoder and diffusers' U-Net, of the host's weights."""

    def __init__(self, model, clip, like="cat", caption=CAPTION):
        self.model, self.unet = model, twin.unet(model)
        config = {name: value for name, value in tiny.CLIP_CONFIG.items() if name != "projection_dim"}
        self.encoder = CLIPTextModel(CLIPTextConfig(**config, bos_token_id=49406, pad_token_id=49407)).eval()
        weights = clip.cond_stage_model.clip_l.transformer.state_dict()
        # an older transformers has one module more
        self.encoder.load_state_dict({n if n in self.encoder.state_dict() else n.removeprefix("text_model."):
                                      v.float().clone() for n, v in weights.items()}, strict=False)
        self.ids = [token for token, _ in clip.tokenize(caption.replace("*", like))["l"][0]]
        token = [token for token, _ in clip.tokenize(like)["l"][0]][1]
        self.place, self.table = self.ids.index(token), self.encoder.get_input_embeddings()
        self.vector = self.table.weight[token].detach().clone()
        self.clean = model.model.process_latent_in(images(model).examples[0].latent.clone())[None]

    def text(self, vector):
        """The encoded caption with a vector for its word."""
        put = self.table.register_forward_hook(lambda module, args, out: torch.cat(
            [out[:, :self.place], vector[None, None], out[:, self.place + 1:]], 1))
        found = self.encoder(torch.tensor([self.ids])).last_hidden_state
        put.remove()
        return found

    def bypassed(self, vector, bypass, share):
        """(keys' text, values' text): the last normalisation is of h, and of h with something added at the word."""
        before = []
        last = next(m for name, m in self.encoder.named_modules() if name.endswith("final_layer_norm"))
        hook = last.register_forward_pre_hook(lambda module, args: before.append(args[0]))
        keys, h = self.text(vector), before[0]
        hook.remove()
        own = h[:, self.place]
        more = own + share * bypass / bypass.norm() * own.norm(dim=-1, keepdim=True)
        return keys, last(torch.cat([h[:, :self.place], more[:, None], h[:, self.place + 1:]], 1))

    def loss(self, texts, level, noise, values=None):
        """The loss under one text, or one for each cross-attention in the order of the authors' processors."""
        sigma = self.model.model.model_sampling.sigmas[level].clone()
        noisy = (self.clean + sigma * noise.clone()) / (1 + sigma ** 2) ** 0.5
        told, hooks = iter(range(len(texts))), []

        def own(module, args, kwargs):
            n = next(told)
            module.to_v.told = (values or texts)[n]
            return args, {**kwargs, "encoder_hidden_states": texts[n]}

        if len(texts) > 1:
            for name, module in self.unet.named_modules():
                if name.endswith("attn2"):
                    hooks.append(module.register_forward_pre_hook(own, with_kwargs=True))
                    hooks.append(module.to_v.register_forward_pre_hook(lambda layer, args: (layer.told,)))
        found = self.unet(noisy, level, texts[0]).sample
        for hook in hooks:
            hook.remove()
        return (found - noise).square().mean()


def serves(model, clip, learned, word, folder, monkeypatch):
    """(the loss of learning's next step, the same of the concept's file on the host)."""
    monkeypatch.setattr(folder_paths, "output_directory", str(folder))
    path, = saved(learned, "", "fp32")
    assert path.name == f"{word.name}_00001_.word.safetensors"
    loaded, = PalimpsestLoadConcept.execute(f"concepts/{path.name} [output]").result
    on = learn_concept(model, clip, images(model, (CAPTION,)), [word], None, 1, 1, concept=learned)
    generator = torch.Generator()
    generator.set_state(learned.state["generator"])
    (_, level, noise), = drawn(model, 1, 1, generator)
    text = CAPTION.replace("*", f"embedding:{word.name}")
    sigma = model.model.model_sampling.sigmas[level]
    clean = model.model.process_latent_in(images(model).examples[0].latent[None].clone())
    _, x0 = prediction(model, prompt(clip, loaded.tables, text), clean + sigma * noise, sigma)
    return on.losses[-1], float(((x0 - clean) / sigma).square().mean())
