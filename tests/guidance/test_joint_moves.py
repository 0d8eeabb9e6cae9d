"""Gradients of losses on words' maps in joint attention, against an explicit softmax and differences of two runs."""
import pytest
import torch
from palimpsest.editing.attention_loss import at_words, loss_gradient, noise_of, text_maps
from palimpsest.editing.run import attach
from palimpsest.editing.sites import Site
from palimpsest.guidance.attend_excite import AttendExcite, neglect
from palimpsest.guidance.magic_remover import MagicRemover, activation, object_map
from palimpsest.guidance.pix2pix_zero import CrossAttentionGuidance
from palimpsest.guidance.self_guidance import SelfGuidance, SourceFeatures
from palimpsest.host.keys import running
from palimpsest.host.network import head_tokens, resolutions, word_layers
from palimpsest.host.sampling import Solver, sample

import joint
from joint_words import SOURCE, columns, inverted, made, of_picture, picture, recorded

TARGET, TOKENS = "a blue dog", 4


def words_alone(family, prompt, tokens, x=None):
    """Of each layer the share of what the picture's tokens give to each of the text's, in what they give to all of
    them: [1, heads, cells, tokens]."""
    found, calls = [], recorded(family, prompt, tokens, x)
    for q, k, _ in (calls[at[1]] for at in sorted(word_layers(made(family).model.diffusion_model))):
        given = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)[:, :, of_picture(family, q.shape[2])]
        text = torch.cat([given[..., columns(family, i, tokens)] for i in range(tokens)], -1)
        found.append(text / text.sum(-1, keepdim=True))
    return found


def on_grid(family, maps):
    """[1, h, w, tokens] of a layer's maps."""
    cells, frames = picture(family)
    side = round((cells / frames) ** 0.5)
    return maps.mean(1).unflatten(1, (frames, side, side)).mean(1)


def layers(family):
    return word_layers(made(family).model.diffusion_model)


def side(family):
    return max(resolutions(made(family).model.diffusion_model).values())


def excite(family):
    def explicit(maps, source):
        return neglect(torch.stack([on_grid(family, A) for A in maps]).mean(0)[0], [0, 1, 2, 3], [1, 2])

    editor = AttendExcite("blue, dog", side(family), layers=layers(family))
    return editor, lambda run, x, sigma: editor._loss_gradient(run, x, sigma), explicit


def pull(family):
    def explicit(maps, source):
        return sum((A - B[..., :TOKENS]).square().sum((2, 3)).mean(1) for A, B in zip(maps, source))[0]

    editor = CrossAttentionGuidance(inverted(family), layers=layers(family))
    return editor, lambda run, x, sigma: loss_gradient(run, x, sigma, editor._at, *editor._distance()), explicit


def remove(family):
    """Within the left half, from the least and to the largest value of this map."""
    mask = torch.zeros(1, 8, 8)
    mask[..., :4] = 1

    def explicit(maps, source, least, first):
        A = object_map(torch.stack(maps).mean(0).mean(1), [[(2,)]])
        m = torch.nn.functional.adaptive_avg_pool2d(mask, round(8 * side(family))).flatten()
        return activation(A, least, first, m.repeat(picture(family)[1]))[0]

    editor = MagicRemover(inverted(family), ("dog",), mask, resolution=side(family), layers=layers(family), start=0.0)
    return editor, lambda run, x, sigma: loss_gradient(run, x, sigma, at_words(side(family), layers(family)),
                                                       *editor._activation(run)), explicit


def guide(family):
    def explicit(maps, source):
        found = [editor.layout_energy([on_grid(family, A)[..., 0]], [on_grid(family, B)[..., 0]])
                 for A, B in zip(maps, source)]
        return (sum(found) / len(found))[0]

    editor = SelfGuidance(inverted(family), layers(family), 0.0, 1.0, words="a", move=(0.25, 0.0), position=1.0)
    return editor, editor.energy_gradient, explicit


def first_step(family, target, editors, gradient_of):
    """(x, a loss and its gradient there, the noise's share at σ = 0.5) beside the source's noisiest latent."""
    found, model, inversion = [], made(family), inverted(family)

    def walk(denoise, x, sigmas, extra_args, callback, disable):
        denoise(x, sigmas[:1], **extra_args)
        run = running(extra_args["model_options"])
        run.read(x, float(sigmas[0]))
        found.extend((x, *gradient_of(run, x, float(sigmas[0])), noise_of(run, 0.5)))
        return x

    for editor in editors:
        model = attach(model, editor)
    noise = model.model.process_latent_out(inversion.path[0])
    sample(model, target, noise + 0.1 * torch.randn(noise.shape, generator=torch.Generator().manual_seed(5)),
           inversion.sigmas, Solver(walk))
    return found


HEADS = {"qwen": "norm_out", "wan": "head", "auraflow": "final_linear"}


def psi(family, prompt, x=None):
    """[1, channels, h, w]: each of the picture's tokens that the head is given, less its mean, over its deviation."""
    found, (cells, frames) = [], picture(family)
    head = getattr(made(family).model.diffusion_model, HEADS.get(family, "final_layer"))
    hook = head.register_forward_pre_hook(lambda head, inputs: found.append(inputs[0]))
    recorded(family, prompt, prompt[0][0].shape[1], x)
    hook.remove()
    given, = found
    own = given[:, of_picture(family, given.shape[1]) if family in ("zimage", "lumina2") else slice(0, cells)]
    own = (own - own.mean(-1, keepdim=True)) / (own.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    side = round((cells / frames) ** 0.5)
    return own.transpose(1, 2).unflatten(2, (frames, side, side)).mean(2)


@pytest.mark.parametrize("family", [name for name in joint.WORDS if name != "hidream"])  # a word has two columns there
def test_what_an_object_looks_like_is_what_the_head_is_given(family):
    """Where the last layer's map of a word is over half."""
    target, source, inversion = joint.worded(family, TARGET, seed=2), joint.worded(family, SOURCE), inverted(family)
    tokens = head_tokens(made(family).model.diffusion_model, tuple(inversion.shape[1:]))
    features = SourceFeatures(inversion, 0.0, 1.0, tokens=tokens)
    editor = SelfGuidance(inversion, layers(family), 0.0, 1.0, words="a", shape=0.0, appearance=1.0, features=features)
    with torch.inference_mode():
        x, loss, gradient, _ = first_step(family, target, [features, editor], editor.energy_gradient)
        step = 0.005 * gradient / gradient.norm()
        maps = [on_grid(family, words_alone(family, prompt, count, at)[-1])[..., 0]
                for prompt, count, at in ((target, TOKENS, x), (source, 5, None))]
        here, more, less = (editor.appearance_energy(maps[:1], maps[1:], psi(family, target, at), [psi(family, source)])
                            for at in (x, x + step, x - step))
    assert loss[0] > 1e-3
    torch.testing.assert_close(loss, here, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(gradient.norm(), (more - less)[0] / 0.01, rtol=0.03, atol=0)


@pytest.mark.parametrize("made_by, family", [
    (excite, "sd3"), (pull, "qwen"), (pull, "flux"), (remove, "zimage"), (remove, "auraflow"),
    (guide, "lumina2"), *[(guide, "flux2")] * joint.TODAY, (excite, "wan")])
def test_a_loss_is_of_the_words_share_and_its_gradient_is_how_it_changes(made_by, family):
    target, source = joint.worded(family, TARGET, seed=2), joint.worded(family, SOURCE)
    editor, gradient_of, explicit = made_by(family)
    with torch.inference_mode():
        x, loss, gradient, share = first_step(family, target, [editor], gradient_of)
        step = 0.02 * gradient / gradient.norm()
        known = words_alone(family, source, 5)
        here, more, less = (words_alone(family, target, TOKENS, at) for at in (x, x + step, x - step))
        more, less = ((maps, known) for maps in (more, less))
        rest = ()
        if made_by is remove:
            A = object_map(torch.stack(here).mean(0).mean(1), [[(2,)]])
            rest = A.min(), A.max()
        wanted = explicit(here, known, *rest)
        slope = (explicit(*more, *rest) - explicit(*less, *rest)) / 0.04
    torch.testing.assert_close(loss[0], wanted, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradient.norm(), slope, rtol=0.03, atol=0)
    assert share == 0.5  # of a flow model


def test_a_column_with_two_keys_has_what_both_are_given():
    """HiDream's Llama tokens stand in each block twice, behind T5's 128."""
    network, (q, k) = made("hidream").model.diffusion_model, torch.randn(2, 1, 134, 64)
    site = Site("cross", ("double", 0, 0), (2, 2), 0.5, 2, joint=True)
    maps = text_maps(q[:, :4], k, site, network, 131)
    q, k = (x.unflatten(-1, (2, 32)).transpose(1, 2) for x in (q[:, :4], k))
    given = (q @ k.transpose(-1, -2) * 32 ** -0.5).softmax(-1)
    torch.testing.assert_close(maps[..., :128], given[..., :128])
    torch.testing.assert_close(maps[..., 128:], given[..., 128:131] + given[..., 131:])
