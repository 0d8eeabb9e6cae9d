"""The miniature: exact edits of scenes, its autoencoder, its reader, and a model of the host
that follows its captions."""
import comfy.lora
import comfy.model_base
import comfy.model_patcher
import comfy.sd
import latent_preview
import numpy as np
import pytest
import torch
from palimpsest.miniature import reader, scenes, train
from palimpsest.miniature.model import FLOW, WEIGHTS, _part, load_miniature
from palimpsest.miniature.networks import CLIP, Autoencoder, TextEncoder, new_unet
from palimpsest.miniature.picture import sample
from safetensors.torch import load_file

import nodes as host_nodes

ONE_WORD = ("object", "colour", "background", "style", "material")


@pytest.fixture(scope="module")
def miniature():
    return load_miniature()


@pytest.fixture(scope="module")
def held_out():
    drawn = [scenes.held_out_scene(i) for i in range(150)]
    return drawn, torch.stack([torch.from_numpy(scenes.render(s)) for s in drawn])


@pytest.fixture(scope="module")
def round_trip(miniature, held_out):
    """The held-out pictures' latents, and the pictures decoded from them."""
    latent = miniature[2].encode(held_out[1])
    return latent, miniature[2].decode(latent)


@pytest.mark.parametrize("kind", scenes.EDIT_KINDS)
def test_edit_is_exact(kind):
    for seed in range(25):
        edit = scenes.held_out_edit(seed, kind)
        outside = edit.mask == 0
        assert np.array_equal(edit.source_image[outside], edit.target_image[outside])
        assert (edit.source_image != edit.target_image).any(-1)[edit.mask == 1].all() and edit.mask.any()
        assert np.array_equal(edit.target_image, scenes.render(edit.target)) and edit.target_image.dtype == np.float32
        assert edit.source.seed == edit.target.seed and edit.target_text == edit.target.caption() != edit.source_text


@pytest.mark.parametrize("kind", ONE_WORD)
def test_one_word_edits_change_one_word(kind):
    for seed in range(50):
        edit = scenes.held_out_edit(seed, kind)
        a, b = edit.source_text.split(), edit.target_text.split()
        assert len(a) == len(b) and sum(x != y for x, y in zip(a, b)) == 1


@pytest.mark.parametrize("kind", ("object", "colour", "material", "pose"))
def test_edit_keeps_what_the_caption_does_not_say(kind):
    for seed in range(25):
        edit = scenes.held_out_edit(seed, kind)
        a, b = edit.source.objs[0], edit.target.objs[0]
        assert (a.x, a.y, a.r, a.rot, a.phase) == (b.x, b.y, b.r, b.rot, b.phase)


def test_caption_says_what_the_picture_shows():
    rng = np.random.default_rng(1)
    for _ in range(300):
        scene = scenes.sample_scene(rng)
        told = scenes.parse_caption(scene.caption())
        assert (told["style"], told["ground"]) == (scene.style, scene.ground)
        assert told["objects"] == [dict(shape=o.shape, colour=o.colour, material=o.material,
                                        pose=scenes.POSES[o.tilted]) for o in scene.objs]
    with pytest.raises(ValueError, match="no caption"):
        scenes.parse_caption("a photo of a beige star on a grass background")


def test_impossible_edits_are_refused():
    empty = scenes.Scene((), "grass", "photo", 1)
    full = scenes.held_out_edit(0, "delete").source
    rng = np.random.default_rng(0)
    cases = ((empty, "colour", "needs an object"), (full, "add", "needs room"), (full, "crop", "no kind of edit"))
    for scene, kind, why in cases:
        with pytest.raises(ValueError, match=why):
            scenes.edit_scene(scene, kind, rng)


def test_autoencoder_keeps_26_db(miniature, held_out, round_trip):
    pictures, (latent, back) = held_out[1], round_trip
    assert latent.shape == (150, 4, 16, 16) and back.shape == pictures.shape
    assert -10 * (back - pictures).square().mean().log10() >= 26
    inside = miniature[0].model.process_latent_in(latent)
    assert (inside.std((0, 2, 3)) - 1).abs().max() < .15 and inside.mean((0, 2, 3)).abs().max() < .15


def test_host_nodes_take_the_vae(miniature, held_out):
    vae, picture = miniature[2], held_out[1][:1]
    latent, = host_nodes.VAEEncode().encode(vae, picture)
    plain, = host_nodes.VAEDecode().decode(vae, latent)
    tiled, = host_nodes.VAEDecodeTiled().decode(vae, latent, 64, overlap=32)
    assert plain.shape == tiled.shape == (1, 128, 128, 3)
    assert (plain - tiled).abs().mean() < .02
    odd, = host_nodes.VAEEncode().encode(vae, torch.rand(2, 100, 77, 4))
    assert odd["samples"].shape == (2, 4, 12, 9)


def test_reader_names_held_out_scenes(held_out, round_trip):
    drawn, pictures = held_out
    for images, floor in ((pictures, .97), (round_trip[1], .94)):
        right = {}
        for scene, seen in zip(drawn, reader.read(images)):
            for name, value in scenes.visible(scene).items():
                right.setdefault(name.removesuffix("#2"), []).append(seen.get(name) == value)
        for name, values in right.items():
            assert np.mean(values) >= floor, (name, np.mean(values))


def test_reader_refuses_other_sizes():
    with pytest.raises(ValueError, match="resize"):
        reader.read(torch.rand(1, 64, 64, 3))


def test_weights_fit_and_are_all_used(miniature):
    assert sum(f.stat().st_size for f in WEIGHTS.parent.glob("*.safetensors") if f != FLOW) <= 24e6
    model, clip, vae = miniature
    state = load_file(WEIGHTS)
    assert {k.split(".")[0] for k in state} == {"unet", "text", "ae", "vocab"}
    for prefix, module in (("unet.", model.model.diffusion_model), ("ae.", vae.first_stage_model)):
        loaded, wanted = module.state_dict(), _part(state, prefix)
        assert loaded.keys() == wanted.keys()
        assert all(torch.equal(loaded[k], wanted[k].to(loaded[k].dtype)) for k in wanted)


def test_it_is_an_ordinary_model_of_the_host(miniature):
    model, clip, vae = miniature
    assert type(model.model) is comfy.model_base.BaseModel and isinstance(model, comfy.model_patcher.ModelPatcher)
    assert model.model.model_type == comfy.model_base.ModelType.EPS and model.model.latent_format.scale_factor == .18215
    assert type(clip) is comfy.sd.CLIP and type(vae) is comfy.sd.VAE
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    assert sum(k.startswith("lora_unet_") for k in keys) > 50


def test_clip_equals_the_encoder_it_was_trained_as(miniature):
    clip, state = miniature[1], load_file(WEIGHTS)
    vocab, text = state["vocab"], {k: v.float() for k, v in _part(state, "text.").items()}
    twin = TextEncoder(len(vocab))
    twin.load_state_dict(text)
    row = {int(t): i for i, t in enumerate(vocab)}
    for caption in ("a photo of a tilted red striped star on a grass background", ""):
        tokens = clip.tokenize(caption)
        rows = torch.tensor([[row[t] for t, _ in tokens["l"][0]]])
        got = clip.encode_from_tokens(tokens)
        assert got.shape == (1, 77, CLIP["hidden_size"])
        assert torch.allclose(got.float().cpu(), twin(rows), atol=1e-4)


def test_every_word_of_the_grammar_has_a_row(miniature):
    clip, vocab = miniature[1], set(load_file(WEIGHTS)["vocab"].tolist())
    said = (scenes.SHAPES, scenes.COLOURS, scenes.MATERIALS[1:], scenes.GROUNDS, scenes.STYLES, ("tilted",))
    for word in (w for group in said for w in group):
        assert {t for t, _ in clip.tokenize(word)["l"][0]} <= vocab, word


def test_loading_twice_gives_the_same_bytes():
    pictures = []
    for _ in range(2):
        model, clip, vae = load_miniature()
        pictures.append(sample(model, clip, vae, ["a photo of a red star on a sand background"], steps=4, seed=5))
    assert torch.equal(*pictures)


def test_samples_show_what_captions_ask(miniature):
    drawn = [s for s in map(scenes.held_out_scene, range(500, 600)) if len(s.objs) == 1 and s.style == "photo"][:16]
    pictures = sample(*miniature, [s.caption() for s in drawn], steps=10, cfg=5., seed=1)
    hits = {}
    for scene, seen in zip(drawn, reader.read(pictures)):
        for name in ("shape", "colour", "ground"):
            hits.setdefault(name, []).append(seen[name] == scenes.visible(scene)[name])
    assert np.mean(hits["colour"]) >= .8 and np.mean(hits["ground"]) >= .9 and np.mean(hits["shape"]) >= .75, hits


def test_training_runs_from_nothing_to_weights_that_load(tmp_path):
    curve = train.train(.02, tmp_path / "work", tmp_path, count=64)
    again = train.train(.02, tmp_path / "work", tmp_path, count=64)
    shipped, made = load_file(WEIGHTS), load_file(tmp_path / WEIGHTS.name)
    assert {k: v.shape for k, v in made.items()} == {k: v.shape for k, v in shipped.items()}
    assert curve == again, "a finished training is not trained again"
    assert load_file(tmp_path / "reader.safetensors").keys() == load_file(reader.WEIGHTS).keys()


def test_latents_of_16_channels_load_and_sample(tmp_path):
    vocab, pictures = train.vocabulary(), torch.randint(0, 256, (4, 128, 128, 3), dtype=torch.uint8)
    ae, net = Autoencoder(z=16), torch.nn.ModuleDict(dict(unet=new_unet(z=16), text=TextEncoder(len(vocab))))
    z = train.encode(ae, pictures, tmp_path / "latents.pt")
    colours = train.preview(pictures, z)
    train.pack(tmp_path / WEIGHTS.name, vocab, ae, net, preview=colours)
    model, clip, vae = load_miniature(tmp_path / WEIGHTS.name)
    assert vae.encode(pictures / 255).shape == (4, 16, 16, 16)
    assert sample(model, clip, vae, ["a photo of a red star on a sand background"], steps=2).shape == (1, 128, 128, 3)
    previewer = latent_preview.Latent2RGBPreviewer(model.model.latent_format.latent_rgb_factors,
                                                   model.model.latent_format.latent_rgb_factors_bias)
    shown = np.array(previewer.decode_latent_to_preview(z[:1]), np.float32) / 127.5 - 1
    fitted = z[0].movedim(0, -1) @ colours[:-1] + colours[-1]
    assert np.abs(shown - fitted.clamp(-1, 1).numpy()).max() < .02


def test_an_interrupted_rendering_goes_on_where_it_stopped(tmp_path):
    part = np.lib.format.open_memmap(tmp_path / "scenes3.part", "w+", np.uint8, (3, 128, 128, 3))
    part[0] = 7
    del part
    pictures, drawn = train.make_scenes(3, tmp_path)
    assert (pictures[0] == 7).all()
    assert np.array_equal(pictures[2], np.rint(scenes.render(drawn[2]) * 255))
    assert not (tmp_path / "scenes3.part").exists()


def test_a_warm_start_takes_the_weights_that_fit():
    given = train.shipped(train.vocabulary())["ae"]
    wide = Autoencoder(z=16)
    fresh = {k: v.clone() for k, v in wide.state_dict().items()}
    loaded = train.fitting(wide, given).state_dict()
    same = {k for k, v in given.items() if torch.equal(loaded[k], v)}
    assert {k for k, v in given.items() if v.shape == loaded[k].shape} == same and len(same) > 20
    assert all(torch.equal(loaded[k], fresh[k]) for k in loaded.keys() - same)
