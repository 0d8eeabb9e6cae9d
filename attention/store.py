"""Cross-attention maps of a picture's words, of Prompt-to-Prompt. Hertz et al., ICLR 2023, section 3.1.
arXiv:2208.01626

The maps are read along the picture's known trajectory, with the source prompt at CFG 1. They are means over heads, over
the sites of one resolution and over steps. editing/word_maps.py says how a map is computed without one of pixels by
tokens, and how self-attention refines it.
Differs from the paper: maps are refined by one step of a random walk over self-attention (Dataset Diffusion, Nguyen et
al., NeurIPS 2023, arXiv:2309.14303, takes powers of it). More steps join objects that look alike. Where attention joins
words and picture, a word's map is what the picture's tokens give to its tokens in the one softmax of all.
Checked against: the paper's equations, on explicit maps of the picture's forwards one by one.
"""
import torch

from ..editing.editor import require_plain
from ..editing.run import attach
from ..editing.word_maps import WordMaps, nearest_resolution, refining_resolution, word_layers_of
from ..host.keys import running
from ..host.sampling import Solver, sample
from ..inversion.grid import report_step
from .alignment import PromptEdit
from .maps import Attention


def read_maps(model, inversion, resolution=0.25, edit: PromptEdit | None = None) -> Attention:
    """The maps of every word of the source, along the inversion's trajectory. One step a forward, since each refines
    the maps of those before."""
    require_plain(model, "Attention Store")
    if not any(tokens.named for tokens in inversion.tokens):
        raise ValueError("Attention Store maps the words of the source, the INVERSION's prompt "
                         f"{inversion.tokens[0].text!r} has none: write what the picture shows as Prompt Edit's "
                         "source, and invert with it.")
    resolution, batch = nearest_resolution(model, resolution), inversion.batch
    noise = inversion.at(float(inversion.sigmas[0]))  # an error where no trajectory was kept
    fine = refining_resolution(model, inversion.shape[-2:], resolution)
    layers = word_layers_of(model)
    editor = WordMaps(lambda prompts: [tokens.named for tokens in prompts], resolution, fine, layers)
    steps, refined = [], []

    def solver(denoise, x, sigmas, extra_args, callback, disable):
        run = running(extra_args["model_options"])
        for again, i in enumerate((0, *range(len(sigmas) - 1))):  # the first twice, to refine its own maps
            latents = inversion.latents[i].to(x)
            x0 = denoise(latents, sigmas[i].repeat(batch), **extra_args)
            found, finer = editor.mean(run), editor.refined(run)
            run.state(editor).start_again(torch.stack([*steps, found]).mean(0))
            if not again:
                continue
            steps.append(found)
            refined.extend([] if finer is None else [finer.cpu()])
            report_step(callback, i, latents, sigmas[i], x0)
        return x

    sample(attach(model, editor), inversion.conditioning, noise, inversion.sigmas, Solver(solver, inversion=inversion))
    return Attention(tuple(inversion.tokens[i % len(inversion.tokens)] for i in range(batch)),
                     torch.stack(steps).cpu(), tuple(inversion.sigmas[:-1].tolist()), tuple(inversion.shape[-2:]),
                     resolution, fine, torch.stack(refined).mean(0) if refined else None, edit, layers)
