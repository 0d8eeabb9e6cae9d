"""Custom Diffusion: keys and values of cross-attention learn, and nothing else. Prompt-to-Prompt edits with them."""
import math

import pytest
import torch
from diffusers.models.attention_processor import CustomDiffusionAttnProcessor
from palimpsest.concept.custom_diffusion import AFAR, NEAR, KeysAndValues, at_a_random_size
from palimpsest.concept.dreambooth import AllWeights
from palimpsest.concept.textual_inversion import TextualInversion
from palimpsest.editing.concepts import Prior
from palimpsest.editing.learning import applied, learn_concept
from palimpsest.nodes.attention.p2p import PalimpsestAttentionInject
from palimpsest.nodes.prompt import PalimpsestPromptEdit

import tiny
from concepts import Texts, diffusers_step, images
from node_execution import executor  # noqa: F401  runs every test as the host does
from replaying import invert, replay
from runs import relative


def test_its_step_is_that_of_all_weights_on_keys_and_values():
    """The same gradients: AdamW's first mean is a tenth of them, up to what each run's clipping scales it by."""
    model, clip = tiny.sd15(), tiny.clip()
    runs = [learn_concept(model, clip, images(model), [basis], steps=1)
            for basis in (KeysAndValues(1e-3), AllWeights(1e-3))]
    few, all_of_them = ({name: mean for name, mean in zip(
        run.weights, (state["exp_avg"] for state in run.state["optimiser"]["state"].values()))} for run in runs)
    assert few and all(name.endswith(("attn2_to_k.diff", "attn2_to_v.diff")) for name in few)
    assert len(few) == sum("attn2_to_k" in name or "attn2_to_v" in name for name in all_of_them)
    scales = torch.stack([(few[name] * all_of_them[name]).sum() / all_of_them[name].square().sum() for name in few])
    assert scales.max() / scales.min() < 1 + 1e-3
    assert all(torch.allclose(few[name], scales[0] * all_of_them[name], rtol=1e-3, atol=1e-7) for name in few)


def with_processors(unet):
    """As train_custom_diffusion.py prepares a network to learn keys and values."""
    processors = {}
    for name in unet.attn_processors:
        attention, cross = unet.get_submodule(name.removesuffix(".processor")), name.endswith("attn2.processor")
        made = CustomDiffusionAttnProcessor(cross, False, attention.to_k.out_features, attention.to_k.in_features)
        if cross:
            made.load_state_dict({f"to_{part}_custom_diffusion.weight": getattr(attention, f"to_{part}").weight
                                  for part in "kv"})
        processors[name] = made
    unet.set_attn_processor(processors)


def by_the_start_token(unet):
    """Lets keys and values have a gradient where those processors stop it."""
    for name, layer in unet.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            layer.register_forward_hook(lambda layer, args, out: torch.cat([out[:, :1], out[:, 1:].detach()], 1))


def test_a_step_equals_diffusers():
    """Its processors' gradients with pictures of the class, and the start token's, which they leave out."""
    model, clip = tiny.sd15(), tiny.clip()
    given, others = images(model, ("a photo of a * cat",)), images(model, ("a cat", "a photo of a cat"), seed=8)
    learned = learn_concept(model, clip, given, [KeysAndValues(1e-3)], Prior(others, 0.7), steps=1, batch=2, seed=5,
                            norm=math.inf)
    (loss, most), (same, first) = (
        diffusers_step(model, clip, given, others, 0.7, 2, 5, lambda name: any(f"{end}.weight" in name for end in ends),
                       prepare, math.inf)
        for prepare, ends in ((with_processors, ("_custom_diffusion",)),
                              (by_the_start_token, ("attn2.to_k", "attn2.to_v"))))
    # AdamW's first mean is a tenth of the gradient
    means = [10 * state["exp_avg"] for state in learned.state["optimiser"]["state"].values()]
    theirs = {}
    for name, gradient in most.items():
        name = name.replace("processor.", "").replace("_custom_diffusion", "")
        theirs[f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}.diff"] = (gradient + first[name]).flatten()
    assert learned.losses[0] == pytest.approx(loss, rel=1e-6) and loss == pytest.approx(same, rel=1e-6)
    assert learned.weights.keys() == theirs.keys()
    assert relative(torch.cat([mean.flatten() for mean in means]),
                    torch.cat([theirs[name] for name in learned.weights])) < 1e-5


def test_a_word_learns_with_them():
    model, clip = tiny.sd15(), tiny.clip()
    trained = [KeysAndValues(1e-3), TextualInversion("thing", "cat", 1, 1e-3)]
    learned = learn_concept(model, clip, images(model), trained, steps=1)
    start = clip.cond_stage_model.clip_l.transformer.get_input_embeddings().weight[clip.tokenize("cat")["l"][0][1][0]]
    assert learned.weights and not torch.equal(learned.words["thing"]["clip_l"][0], start.float())


def test_a_model_without_cross_attention_is_refused():
    model = tiny.flux()
    with pytest.raises(ValueError, match="train LoRA Weights"):
        learn_concept(model, Texts(), images(model), [KeysAndValues(1e-3)])


def edited(model, clip, target, weights=""):
    """A picture of a cat as another word, by Prompt-to-Prompt."""
    source, target, edit = PalimpsestPromptEdit.execute(clip, "a cat on a mat", target, "auto").result
    inversion = invert(model, steps=3, source=source)[0]
    put = PalimpsestAttentionInject.execute(model, inversion, edit, 0.0, 0.5, 0.0, 0.4, 1.0, 0.5, weights, "").result[0]
    return replay(put, inversion, prompt=target), edit.pairs[0]


def test_a_learned_word_is_edited_as_any_word():
    """Custom-Edit (Choi et al. 2023, arXiv:2305.15779). A word that holds the vector of a known one is edited as that
    is; what was learned in keys and values shows; and two vectors share the place of one token."""
    model, clip = tiny.sd15(), tiny.clip()
    given, text = images(model), "a embedding:thing on a mat"
    plain, _ = edited(model, clip, "a dog on a mat")
    held = learn_concept(model, clip, given, [TextualInversion("thing", "dog", 1, 1e-3)], steps=0)
    same, pair = edited(*applied(model, clip, held), text)
    assert torch.equal(same, plain) and pair.mode == "replace"
    trained = [KeysAndValues(1e-1), TextualInversion("thing", "dog", 2, 1e-1)]
    custom = applied(model, clip, learn_concept(model, clip, given, trained, steps=1))
    found, pair = edited(*custom, text)
    assert relative(found, plain) > 1e-3
    cat, places = pair.source.find("cat").positions, pair.target.find("embedding:thing").positions
    assert len(places) == 2 and pair.mapper[list(cat)][:, list(places)].tolist() == [[0.5, 0.5]]
    stronger, _ = edited(*custom, text, "embedding:thing: 4")
    assert relative(stronger, found) > 1e-3


def ramp(height, width):
    """A picture whose red and green tell columns and rows, and half of which is learned."""
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    return torch.stack([x, y, 0.2 + 0 * x], -1), (x < 0.5).float()


@pytest.mark.parametrize("height, width, least", [(240, 300, 1 / 3), (64, 96, 0.5)])
def test_pictures_of_random_sizes_show_the_whole_smaller_or_a_part_larger_and_say_so(height, width, least):
    """Sizes, their shares, places and words are those of the authors' code. A small picture keeps four cells."""
    (picture, mask), cell, found = ramp(height, width), 8, {"": 0, "small": 0, "large": 0}
    corners = set()
    for seed in range(300):
        shown, area, words = at_a_random_size(picture, mask, cell, torch.Generator().manual_seed(seed))
        assert shown.shape == picture.shape and area.shape == mask.shape
        kind = {**dict.fromkeys(AFAR, "small"), **dict.fromkeys(NEAR, "large")}.get(words, words)
        found[kind] += 1
        if not kind:
            assert shown is picture and area is mask
            continue
        inside = shown[..., 2] != 0.5 if kind == "small" else torch.ones_like(mask, dtype=torch.bool)
        rows, columns = (torch.nonzero(inside.any(d)).flatten() for d in (1, 0))
        middle = rows[len(rows) // 2], columns[len(columns) // 2]
        slopes = [float(shown[middle[0], middle[1], 0] - shown[middle[0], middle[1] - 9, 0]) / 9 * width,
                  float(shown[middle[0], middle[1], 1] - shown[middle[0] - 9, middle[1], 1]) / 9 * height]
        scale = 1 / slopes[0]
        assert slopes[1] == pytest.approx(slopes[0], rel=0.03), "height and width change alike"
        if kind == "large":
            assert 1.19 < scale < 1.41 and relative(area, (shown[..., 0] < 0.5).float()) < 0.3
            corners.add((round(float(shown[0, 0, 0]), 2), round(float(shown[0, 0, 1]), 2)))
            continue
        assert least - 0.01 < scale < 0.6 and (shown[~inside] == 0.5).all()
        assert len(rows) == pytest.approx(scale * height, abs=1) and len(columns) == pytest.approx(scale * width, abs=1)
        ends = torch.nonzero(area.any(0)).flatten()
        assert ends[-1] == pytest.approx(int(columns[0]) + len(columns) / 2, abs=2)
        corners.add((int(rows[0]), int(columns[0])))
    assert [found[kind] / 300 for kind in ("large", "small")] == pytest.approx([1 / 3, 0.6 - 1 / 3], abs=0.08)
    assert len(corners) > 100


@pytest.mark.parametrize("cell", [8, 16])
def test_whole_cells_of_a_smaller_picture_are_learned_as_the_authors_count_them(cell):
    """With r the picture's side and c its middle, from ⌊(c - r/2) / cell⌋ + 1 up to ⌊(c + r/2) / cell⌋ - 1."""
    picture, mask, count = torch.ones(160, 192, 3), torch.ones(160, 192), 0
    for seed in range(300):
        shown, area, words = at_a_random_size(picture, mask, cell, torch.Generator().manual_seed(seed))
        if words not in AFAR:
            continue
        wanted, count = torch.zeros(160 // cell, 192 // cell), count + 1
        (top, bottom), (left, right) = ((int(where[0]), int(where[-1]) + 1) for where in (
            torch.nonzero((shown[..., 0] != 0.5).any(d)).flatten() for d in (1, 0)))
        wanted[top // cell + 1:bottom // cell - 1, left // cell + 1:right // cell - 1] = 1
        assert wanted.any() and torch.equal(area.round(), wanted.repeat_interleave(cell, 0).repeat_interleave(cell, 1))
    assert count > 40
