"""Editors beside everything a user may put beside them: batches, prompts, other patches, ControlNet, areas, samplers,
guiders, dtypes, and however the host batches. What can be stated as an equality is."""
from collections import Counter, defaultdict
from dataclasses import dataclass

import comfy.cldm.cldm
import comfy.controlnet
import comfy.samplers
import nodes as host
import pytest
import tiny
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_custom_sampler import DualCFGGuider, DualModelGuider, KSamplerSelect, SamplerCustom
from comfy_extras.nodes_freelunch import FreeU
from comfy_extras.nodes_hypertile import HyperTile
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_perpneg import PerpNegGuider
from editors import ACTS, CONCEPTS, CROSS_END, EDITORS, FAMILIES, FEATURES, MOVES, READS, SELF_END, STEPS, WORDS, each, each_with
from palimpsest.attention.control import AttentionEdit, host_attention, positions
from palimpsest.host.session import attach
from palimpsest.nodes.attention import PalimpsestAttentionInject
from palimpsest.nodes.inversion import PalimpsestReplay
from runs import Case, kept

LONG = "soft light, " * 26  # 78 tokens
PROMPTS = {"plain": ("a red cat on a mat", "a blue cat on a mat"),
           "weights": ("a (red:1.3) cat on a mat", "a (blue:0.7) cat on a (mat:1.2)"),
           "target long": ("a red cat on a mat", f"a blue cat on a mat, {LONG}"),
           "source long": (f"a red cat on a mat, {LONG}", "a blue cat on a mat"),
           "both long": (f"a red cat on a mat, {LONG}", f"a blue cat on a mat, {LONG}")}
each_family = pytest.mark.parametrize("family", tiny.UNETS)


@kept
def made(family, source, targets, size=8, dtype=torch.float32, picture=None):
    """A Case of one picture, of the second of two (1) or of both (2)."""
    pictures = tiny.latent(tiny.UNETS[family](), 2, size)
    latent = None if picture is None else pictures if picture == 2 else pictures[picture:picture + 1]
    return Case(family, source, targets, steps=STEPS, size=size, dtype=dtype, latent=latent)


def case(family, prompts="plain", **kwargs):
    source, target = PROMPTS[prompts]
    return made(family, source, (target,), **kwargs)


def near(case, rows, seed=8):
    """Starts of their own for several rows, near enough to the inverted noise to be edits of it."""
    noise = torch.randn((rows, *case.noise.shape[1:]), generator=torch.Generator().manual_seed(seed))
    return case.noise.repeat(rows // len(case.noise), 1, 1, 1) + 0.2 * case.noise.std() * noise


def assert_close(a, b, tolerance=2e-5):
    """Equal to fp32 rounding: a forward rounds some hundred times (1e-6), CFG 7.5 and four steps carry it tenfold."""
    worst = float((a - b).abs().max() / b.abs().max())
    assert worst <= tolerance, worst


def differ(a, b):
    return float((a - b).abs().max() / b.abs().max()) > 1e-3


@dataclass(frozen=True)
class Chunk:
    """One cond entry's part of a forward: the list it stands in, "reference", or "added" and its number where an editor added the
    list; the list and place it comes from, its prediction, whether a ControlNet acted, and how many chunks the forward had."""
    sigma: float
    role: str
    entry: "tuple | None"
    x0: torch.Tensor
    controlled: bool
    together: int


def watch(case, model, guider=None, order=("positive", "negative"), run=None, cfg=7.5, **kwargs):
    """(result, Chunks) of one run. A chunk whose entry is none of the guider's is the reference's. Beside another's
    wrapper, such as this one, the source is read at one σ a forward."""
    noted = []

    def apply(executor, x, t, c_concat, c_crossattn, control, options, *args, **extra):
        x0 = executor(x, t, c_concat, c_crossattn, control, options, *args, **extra)
        if x.requires_grad:  # a forward for an editor's gradient
            return x0
        chunks = list(zip(options["cond_or_uncond"], options["uuids"], x0.chunk(len(options["uuids"]))))
        noted.extend((float(options["sigmas"][0]), *chunk, control is not None, len(chunks)) for chunk in chunks)
        return x0

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "watch", apply)
    positive, negative = kwargs.pop("positive", case.target), kwargs.pop("negative", case.null)
    if guider is None:
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(positive, negative)
        guider.set_cfg(cfg)
    else:
        guider = guider(model)
    result = (run or case.sample)(guider=guider, **kwargs)
    entries = {e["uuid"]: (name, i) for name, found in guider.original_conds.items() for i, e in enumerate(found)}
    roles = dict(enumerate(order))
    return result, [Chunk(sigma, roles.get(index, f"added {index}") if uuid in entries or index else "reference",
                          entries.get(uuid), *rest) for sigma, index, uuid, *rest in noted]


def predictions(case, model, positive=None, **kwargs):
    """Chunks with the rows at the source's own latent at every σ, whatever was predicted before."""
    return watch(case, model, run=lambda guider: case.predictions(None, None, guider=guider),
                 positive=positive or case.target, **kwargs)[1]


def of(chunks, role):
    return [c for c in chunks if c.role == role]


@each
def test_every_editor_edits(editor, family):
    c = case(family)
    assert differ(c.sample(EDITORS[editor](c)), c.sample())


@each_with("cfg", [1.0, 7.5])
def test_four_rows_of_one_picture_are_four_runs(editor, family, cfg):
    c = case(family)
    model, starts = EDITORS[editor](c), near(c, 4)
    together = c.sample(model, latent=starts, cfg=cfg)
    for row, start in zip(together, starts):
        assert_close(row, c.sample(model, latent=start[None], cfg=cfg)[0])


@each_with("prompts", ["plain", "both long"])
def test_two_targets_in_a_batch_are_two_runs(editor, family, prompts):
    """Of the same start; four rows repeat the two targets."""
    source, target = PROMPTS[prompts]
    targets = (target, target.replace("blue", "green"))
    c, alone = made(family, source, targets), [made(family, source, (t,)) for t in targets]
    together = c.sample(EDITORS[editor](c), latent=c.noise.repeat(4, 1, 1, 1))
    found = [a.sample(EDITORS[editor](a)) for a in alone]
    assert differ(*found)
    assert_close(together, torch.cat(found + found))


@each
def test_each_row_reads_its_own_picture(editor, family):
    """Two pictures, each with its own prompt, in one INVERSION: row i reads picture i mod 2."""
    sources, targets = ("a red cat on a mat", "a black dog on a mat"), ("a blue cat on a mat", "a black pig on a mat")
    both = made(family, sources, targets, picture=2)
    alone = [made(family, s, (t,), picture=i) for i, (s, t) in enumerate(zip(sources, targets))]
    starts = near(both, 4)
    together = both.sample(EDITORS[editor](both), latent=starts)
    for i, (row, start) in enumerate(zip(together, starts)):
        a = alone[i % 2]
        assert_close(row, a.sample(EDITORS[editor](a), latent=start[None])[0])


@each
def test_guidance_is_the_hosts_and_the_null_prompt_is_never_edited(editor, family):
    """At equal latents the target's rows are those of CFG 1, and the null prompt's those of the plain model."""
    if editor in MOVES:
        pytest.skip("it moves the latent at which every prompt is predicted")
    c = case(family)
    model = EDITORS[editor](c)
    guided, lone, plain = predictions(c, model), predictions(c, model, cfg=1.0), predictions(c, c.model)
    assert not of(lone, "negative")
    for role, wanted in (("positive", lone), ("negative", plain)):
        for a, b in zip(of(guided, role), of(wanted, role), strict=True):
            assert_close(a.x0, b.x0)
    for a, b in zip(of(guided, "positive"), of(plain, "positive"), strict=True):
        assert differ(a.x0, b.x0) == acts(editor, c, a.sigma)


def acts(editor, case, sigma, editors=ACTS):
    return editor in editors and sigma >= limit(case, CROSS_END)


def reads(editor, case, sigma):
    return acts(editor, case, sigma, READS)


def limit(case, percent):
    return case.model.get_model_object("model_sampling").percent_to_sigma(percent)


@pytest.mark.parametrize("prompts, null, family", [
    (p, null, FAMILIES[(i + j) % 3]) for i, p in enumerate(PROMPTS) for j, null in enumerate(["", LONG])])
def test_source_as_target_changes_no_prediction(family, prompts, null):
    """With the host's repetition of columns where prompt and null prompt differ in length."""
    c = case(family, prompts)
    same = made(family, c.edit.pairs[0].source.text, (c.edit.pairs[0].source.text,))
    negative = tiny.encode(c.clip, null)
    for editor in ("swap", "refine"):
        edited = predictions(same, EDITORS[editor](same), negative=negative)
        plain = predictions(same, same.model, negative=negative)
        for a, b in zip([e for e in edited if e.role != "reference"], plain, strict=True):
            assert (a.sigma, a.entry, a.together) == (b.sigma, b.entry, b.together)
            assert_close(a.x0, b.x0)


@pytest.fixture
def split(monkeypatch):
    """Makes the host run every cond entry in a forward of its own, for lack of memory."""
    return lambda case: monkeypatch.setattr(case.model.model, "memory_usage_factor", 1e15)


@each_with("prompts", PROMPTS)
def test_the_same_result_however_the_host_batches(editor, family, prompts, split):
    """Together, where the shorter prompt's columns are repeated, and apart."""
    c = case(family, prompts)
    model = EDITORS[editor](c)
    together, chunks = watch(c, model)
    assert {k.together for k in chunks if k.role != "reference"} == {2 + CONCEPTS.get(editor, 0)}
    split(c)
    apart, chunks = watch(c, model)
    assert {k.together for k in chunks} == {1}
    assert_close(apart, together)


@each_with("sampler", ["euler", "heun", "dpmpp_2m", "dpmpp_2m_sde"])
def test_the_source_is_read_once_a_sigma_and_only_where_an_editor_reads(editor, family, sampler):
    c = case(family)
    result, chunks = watch(c, EDITORS[editor](c), sampler=sampler)
    sigmas = [k.sigma for k in of(chunks, "positive")]
    assert len(sigmas) == (2 * STEPS - 1 if sampler == "heun" else STEPS)
    read = [s for s in dict.fromkeys(sigmas) if reads(editor, c, s)]
    assert [k.sigma for k in of(chunks, "reference")] == read and len(read) < STEPS
    assert differ(result, c.sample(sampler=sampler))


def lora(model):
    """A LoRA of rank 2 on every attention key."""
    generator, patched = torch.Generator().manual_seed(8), model.clone()
    weights = {}
    for name, p in model.model.named_parameters():
        if name.endswith("to_k.weight"):
            up, down = (torch.randn(size, generator=generator) for size in ((p.shape[0], 2), (2, p.shape[1])))
            weights[name] = ("diff", (up @ down * p.shape[1] ** -0.5,))
    assert len(patched.add_patches(weights)) == len(weights) > 4
    return patched


def pag(model):
    return PerturbedAttentionGuidance.execute(model, 3.0).result[0]


def free_u(model):
    return FreeU.execute(model, 1.1, 1.2, 0.9, 0.2).result[0]


def hyper_tile(model):
    return HyperTile.execute(model, 32, 1, 1, False)[0]


@each_with("other", [lora, pag, free_u, hyper_tile])
def test_another_packs_patch_acts_before_and_after_the_editor_alike(editor, family, other):
    """With tiles of 4 × 4 cells where HyperTile cuts them: on the grid where self-attention is edited too."""
    c = case(family, size=16 if other is hyper_tile else 8)
    before, after = EDITORS[editor](c, other(c.model)), other(EDITORS[editor](c))
    found, chunks = watch(c, before)
    assert torch.equal(found, watch(c, after)[0])
    assert differ(found, c.sample(EDITORS[editor](c))) and differ(found, c.sample(other(c.model)))
    read = Counter(k.sigma for k in of(chunks, "reference"))
    assert all(n == 1 for n in read.values()) and bool(read) == (editor in READS)


@pytest.mark.parametrize("prompts", ["plain", "target long"])
@each_family
def test_tiles_are_the_same_however_the_host_batches(family, prompts, split):
    """HyperTile gives q more rows than k and v have: rows are found in each by itself."""
    c = case(family, prompts, size=16)
    model, starts = hyper_tile(EDITORS["swap"](c)), near(c, 2)
    together = c.sample(model, latent=starts)
    split(c)
    assert_close(c.sample(model, latent=starts), together)


def test_tiles_cut_at_random_are_refused():
    """HyperTile draws them anew at every call, so the source's are not the target's."""
    c = case("sd15", size=16)
    everywhere = 0.0, 0.8, 0.0, 0.5, 1.0, 1.0, "", ""
    model = PalimpsestAttentionInject.execute(c.model, c.inversion, c.edit, *everywhere).result[0]
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=r"tiles of \d+ tokens, the target's of \d+.*swap_size"):
        c.sample(HyperTile.execute(model, 32, 3, 0, False)[0])


@each_with("place", [("attn1",), ("attn2", 0), ("attn2",), ("attn1", 0)])
def test_another_packs_attention_is_called_wherever_the_hosts_would_be(editor, family, place):
    """Under the host's two kinds of key, on either side of the editor, for target, null prompt and source."""
    c, seen, (slot, *depth) = case(family), defaultdict(set), place

    def patch(q, k, v, options):
        for uuid in options["uuids"]:
            seen[uuid].add(float(options["sigmas"][0]))
        return 1.5 * host_attention(q, k, v, options)

    def patched(model, function=patch):
        model = model.clone()
        model.set_model_patch_replace(function, slot, "middle", 0, *depth)
        return model

    before, after = EDITORS[editor](c, patched(c.model)), patched(EDITORS[editor](c))
    found, chunks = watch(c, before)
    wanted = [sorted({k.sigma for k in of(chunks, role)}) for role in {k.role for k in chunks}]
    assert sorted(map(sorted, seen.values())) == sorted(wanted)
    assert torch.equal(found, watch(c, after)[0])
    edited, _ = watch(c, EDITORS[editor](c))
    assert differ(found, edited) and differ(found, c.sample(patched(c.model)))
    assert torch.equal(watch(c, patched(EDITORS[editor](c), host_attention))[0], edited)


def test_of_two_patches_at_one_place_the_hosts_choice_is_called():
    """The key with a depth wins over the key without."""
    c, called = case("sdxl"), []

    def patch(name):
        def function(q, k, v, options):
            called.append((name, options["block_index"]))
            return host_attention(q, k, v, options)
        return function

    model = EDITORS["swap"](c)
    model.set_model_attn1_replace(patch("all"), "middle", 0)
    model.set_model_attn1_replace(patch("first"), "middle", 0, 0)
    c.sample(model)
    assert set(called) == {("first", 0), ("all", 1)}


@kept
def control_net(family):
    """A small ControlNet of the host's, shaped like the family's U-Net."""
    config = dict(case(family).model.model.model_config.unet_config, dtype=torch.float32)
    with torch.inference_mode():
        net = tiny.fill(comfy.cldm.cldm.ControlNet(hint_channels=3, **config))
    return comfy.controlnet.ControlNet(net, load_device=torch.device("cpu"))


def hint(case):
    height, width = case.latent.shape[-2:]
    return torch.rand(1, height * 8, width * 8, 3, generator=torch.Generator().manual_seed(4))


def plainly(case):
    """(positive, negative) of Apply ControlNet on the target, which the host gives to the null prompt too."""
    return host.ControlNetApply().apply_controlnet(case.target, control_net(case.family), hint(case), 0.7)[0], case.null


def advanced(case):
    """The same of Apply ControlNet (Advanced), on the target alone and for a part of the schedule."""
    return host.ControlNetApplyAdvanced().apply_controlnet(
        case.target, case.null, control_net(case.family), hint(case), 0.7, 0.2, 0.6)[0], case.null


@each_with("apply", [plainly, advanced])
def test_a_control_net_on_the_target_never_meets_the_source(editor, family, apply, split):
    c = case(family)
    model, (positive, negative) = EDITORS[editor](c), apply(c)
    found, chunks = watch(c, model, positive=positive, negative=negative)
    free, unguided = watch(c, model)
    percents = (0.2, 0.6) if apply is advanced else (0.0, 1.0)
    for k in chunks:
        within = limit(c, percents[0]) >= k.sigma >= limit(c, percents[1])
        assert k.controlled == (within and (k.role == "positive" or k.role == "negative" and apply is plainly))
    assert {k.controlled for k in of(chunks, "positive")} == ({True} if apply is plainly else {True, False})
    for a, b in zip(of(chunks, "reference"), of(unguided, "reference"), strict=True):
        assert torch.equal(a.x0, b.x0)
    assert differ(found, free) and differ(found, c.sample(positive=positive, negative=negative))
    split(c)
    assert_close(c.sample(model, positive, negative=negative), found)


def area(conditioning, width, height, x=0, y=0):
    """Conditioning (Set Area), in cells of the latent."""
    return host.ConditioningSetArea().append(conditioning, *(8 * n for n in (width, height, x, y)), 1.0)[0]


def combine(*conditionings):
    return [entry for c in conditionings for entry in c]


@each
def test_an_area_of_the_whole_picture_is_no_area(editor, family):
    """On the target; and on the null prompt, where the host gives the target a second entry for it."""
    c = case(family, size=16)
    model = EDITORS[editor](c)
    free = c.sample(model)
    assert_close(c.sample(model, area(c.target, 16, 16)), free)
    assert_close(c.sample(model, negative=area(c.null, 16, 16)), free)


@dataclass(frozen=True, eq=False)
class Noted(AttentionEdit):
    """Notes the source's features that the target's entries are given."""
    inversion: object
    notes: dict

    def reads(self, run, sigma):
        return True

    def acts(self, run, site, sigma):
        return True

    def keeps(self, run, site, sigma):
        return "qkv"

    def attend(self, rows, site, q, k, v, source, attention):
        place = rows.entry.get("area", (*rows.call.run.shape[-2:], 0, 0))
        self.notes.setdefault((rows.call.sigma, site.kind, site.position), {})[place] = (site, source)
        return attention(q, k, v)


@each_family
def test_an_area_reads_the_same_window_of_the_source(family):
    c, notes = case(family, size=16), {}
    places = [(8, 8, 8, 8), (10, 12, 2, 4)]  # height, width, y, x
    positive = combine(c.target, *(area(c.target, w, h, x, y) for h, w, y, x in places))
    c.sample(attach(c.model, Noted(c.inversion, notes)), positive)
    assert len(notes) == STEPS * 2 * len(positions(c.model.model.diffusion_model))
    for (_, kind, _), found in notes.items():
        site, full = found.pop((16, 16, 0, 0))
        assert found.keys() == set(places)
        for (h, w, y, x), (part, source) in found.items():
            cells = [slice(int(n * site.share), int((n + size) * site.share)) for n, size in ((y, h), (x, w))]
            assert part.grid == tuple(s.stop - s.start for s in cells)
            for name in "qkv":
                whole, window = getattr(full, name), getattr(source, name)
                if name == "q" or kind == "self":
                    whole = whole.unflatten(1, site.grid)[:, cells[0], cells[1]].flatten(1, 2)
                assert torch.equal(window, whole)


@each
def test_entries_that_prompt_edit_did_not_make_keep_their_own_cross_attention(editor, family):
    """Beside them the target is edited as if it stood alone: seen at the source's latents, before the host's mean."""
    if editor in MOVES:
        pytest.skip("it moves the latent at which every prompt is predicted")
    c = case(family, size=16)
    model = EDITORS[editor](c)
    other = area(tiny.encode(c.clip, "a green parrot"), 8, 16)
    beside, alone, plain = (predictions(c, m, positive=p) for m, p in (
        (model, combine(c.target, other)), (model, c.target), (c.model, combine(c.target, other))))
    parrots = [[k for k in of(chunks, "positive") if k.entry == ("positive", 1)] for chunks in (beside, plain)]
    targets = [[k for k in of(chunks, "positive") if k.entry == ("positive", 0)] for chunks in (beside, alone)]
    for a, b in zip(*targets, strict=True):
        assert_close(a.x0, b.x0)
    end = CROSS_END if editor in FEATURES else SELF_END
    for a, b in zip(*parrots, strict=True):
        if a.sigma < limit(c, end):  # where the picture's own features are left alone
            assert_close(a.x0, b.x0)
    assert any(k.sigma < limit(c, end) for k in parrots[0])


def dual(case, middle):
    def make(model):
        return DualCFGGuider.execute(model, case.target, middle, case.null, 7.5, 3.0, "regular").result[0]
    return make, ("negative", "middle", "positive")


def perp_neg(case, middle):
    def make(model):
        return PerpNegGuider.execute(model, case.target, middle, case.null, 7.5, 1.0).result[0]
    return make, ("positive", "negative", "empty_negative_prompt")


def dual_model(case, middle):
    """The null prompt on a MODEL of its own, which is not edited."""
    def make(model):
        return DualModelGuider.execute(model, case.target, 7.5, case.model.clone(), middle).result[0]
    return make, ("positive",)


@each_with("guider", [dual, perp_neg, dual_model])
def test_of_every_guiders_prompts_the_positive_alone_is_edited(editor, family, guider):
    """At equal latents, every other prompt is predicted as the plain model predicts it."""
    if editor in MOVES:
        pytest.skip("it moves the latent at which every prompt is predicted")
    c = case(family)
    make, order = guider(c, tiny.encode(c.clip, "a dull photo"))
    edited, plain = (predictions(c, m, guider=make, order=order) for m in (EDITORS[editor](c), c.model))
    edited, plain = ([k for k in found if k.role in order] for found in (edited, plain))
    assert {k.entry[0] for k in edited} >= set(order)
    for a, b in zip(edited, plain, strict=True):
        assert a.entry == b.entry
        if a.entry[0] == "positive":
            assert differ(a.x0, b.x0) == acts(editor, c, a.sigma)
        else:
            assert_close(a.x0, b.x0)
    assert differ(watch(c, EDITORS[editor](c), make, order)[0], watch(c, c.model, make, order)[0])


@each_with("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_near_fp32(editor, family, dtype):
    """A prediction in half precision is off by some 2 eps of its norm, and CFG 7.5 adds two of them 7.5 and 6.5 times,
    as independent errors ten times one: 20 eps. The edit itself is larger. Where words' maps meet a threshold a cell may
    fall on its other side, and a sign may turn, so such editors are held to the predictions at the source's latents."""
    half, full = case(family, dtype=dtype), case(family)
    found, wanted = (c.sample(EDITORS[editor](c)) for c in (half, full))
    assert found.isfinite().all()
    edit = (wanted - full.sample()).norm() / wanted.norm()
    if editor in WORDS:
        found, wanted = (torch.cat([k.x0 for k in of(predictions(c, EDITORS[editor](c)), "positive")])
                         for c in (half, full))
    assert (found - wanted).norm() / wanted.norm() <= 20 * torch.finfo(dtype).eps < edit


OTHER_NOISE = "starts from other noise"


@each_with("replayed", [(0.0, "euler"), (0.5, "dpmpp_2m"), (0.0, "dpmpp_2m_sde")])
def test_other_noise_is_said_once_a_run_and_never_of_replays_latent(editor, family, replayed, caplog):
    c, (start, sampler) = case(family), replayed
    model, solver, sigmas, latent = PalimpsestReplay.execute(
        EDITORS[editor](c), c.inversion, start, KSamplerSelect.execute(sampler).result[0]).result
    SamplerCustom.execute(model, True, 3, 7.5, c.target, c.null, solver, sigmas, latent)
    assert OTHER_NOISE not in caplog.text
    solver = KSamplerSelect.execute(sampler).result[0]
    for run in (1, 2):
        SamplerCustom.execute(model, True, 3, 7.5, c.target, c.null, solver, c.sigmas, {"samples": c.noise})
        assert caplog.text.count(OTHER_NOISE) == run
