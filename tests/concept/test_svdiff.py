"""SVDiff against Eq. 2 and its authors' program."""
import dataclasses
import json
import math
from pathlib import Path

import folder_paths
import pytest
import torch
from palimpsest.concept.dreambooth import AllWeights
from palimpsest.concept.lora import LoRA
from palimpsest.concept.svdiff import SpectralShifts
from palimpsest.editing.compact_files import KEY
from palimpsest.editing.compact_files import SUFFIX as FEW
from palimpsest.editing.learning import applied, learn_concept
from palimpsest.editing.run_files import SUFFIX as RUN
from palimpsest.host.concept_files import lora_file
from palimpsest.nodes.concept.learn import PalimpsestSaveConcept
from palimpsest.nodes.concept.words import PalimpsestLoadConcept
from safetensors.torch import load_file

import tiny
from concepts import images, next_losses, prediction
from node_execution import executor  # noqa: F401  runs every test as the host does
from runs import relative

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (6, 4, 3, 3)])
def test_the_shifted_weight_is_eq_2(shape):
    weight, basis = torch.randn(shape, generator=torch.Generator().manual_seed(0)), SpectralShifts(1e-3)
    theta = basis.start(weight, torch.Generator())
    assert not basis.delta(theta, weight).count_nonzero()
    theta["δ"] = torch.randn(theta["δ"].shape, generator=torch.Generator().manual_seed(1))
    theta["δ"][1] = -99
    u, sigma, v = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    shifted = (sigma + theta["δ"]).clamp(min=0)
    assert (shifted == 0).any()
    expected = sum(shifted[i] * torch.outer(u[:, i], v[i]) for i in range(len(sigma)))
    assert relative(weight + basis.delta(theta, weight), expected.view(shape)) < 1e-5


@pytest.mark.parametrize("case", range(2))
def test_weight_and_gradient_are_those_of_the_authors_program(case):
    """tests/data/svdiff.json has what it gave, one singular value cut at 0."""
    known = json.loads((ROOT / "tests/data/svdiff.json").read_text(encoding="utf-8"))["cases"][case]
    weight, toward = (torch.randn(known["shape"], generator=torch.Generator().manual_seed(seed)) for seed in (0, 2))
    with torch.inference_mode(False):
        weight, basis = weight.clone(), SpectralShifts(1e-3)
        theta = {name: part.detach().clone() for name, part in basis.start(weight, torch.Generator()).items()}
        shifts = torch.randn(theta["δ"].shape, generator=torch.Generator().manual_seed(1))
        shifts[1] = -99
        theta["δ"] = shifts.requires_grad_()
        shifted = weight + basis.delta(theta, weight)
        (shifted * toward.clone()).sum().backward()
    assert relative(shifted.detach().flatten(), torch.tensor(known["weight"])) < 1e-5
    assert relative(shifts.grad, torch.tensor(known["gradient"])) < 1e-5


def test_only_the_shifts_learn():
    model = tiny.sd15()
    learned = learn_concept(model, tiny.clip(), images(model), [SpectralShifts(1e-2)], steps=2)
    matrices = [w for w in model.model.diffusion_model.parameters() if w.ndim > 1]
    assert sum(t.numel() for t in learned.state["theta"]) == sum(min(w.flatten(1).shape) for w in matrices)
    assert len(learned.weights) == len(matrices) and all(v.count_nonzero() for v in learned.weights.values())


@pytest.mark.parametrize("shape", [(6, 4), (4, 6, 3, 3)])
def test_the_gradient_of_the_shifts_is_that_of_finite_differences(shape):
    """Also where a singular value is cut at 0, whose gradient is 0."""
    weight, basis = torch.randn(shape, generator=torch.Generator().manual_seed(0)), SpectralShifts(1e-3)
    with torch.inference_mode(False):
        theta = {name: part.detach().clone().double() for name, part in basis.start(weight, torch.Generator()).items()}
        shifts = torch.tensor([0.3, -99.0, -0.1, 0.5], dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda δ: basis.delta({**theta, "δ": δ}, weight.clone()), shifts)


def test_in_training_a_shift_has_its_share_of_the_weights_gradient():
    """∂L/∂δ_i = u_iᵀ (∂L/∂W) v_i, at δ = 0. AdamW's first mean is a tenth of a gradient."""
    model, clip = tiny.sd15(), tiny.clip()
    few, every = (learn_concept(model, clip, images(model), [basis], steps=1, norm=math.inf)
                  for basis in (SpectralShifts(1e-3), AllWeights(1e-3)))
    of, whole = ({name: state["exp_avg"] for name, state in zip(run.weights, run.state["optimiser"]["state"].values(),
                                                                strict=True)} for run in (few, every))
    names = {name for name, mean in whole.items() if mean.ndim > 1}
    assert of.keys() == names
    inside = [w for w in model.model.diffusion_model.parameters() if w.ndim > 1]
    pairs = []
    for name, weight in zip(few.weights, inside, strict=True):
        u, _, v = torch.linalg.svd(weight.float().flatten(1), full_matrices=False)
        pairs.append((of[name], (u.T @ whole[name].flatten(1) @ v.T).diagonal()))
    assert relative(*map(torch.cat, zip(*pairs))) < 1e-5


def test_the_file_predicts_as_in_training():
    model, clip = tiny.sd15(), tiny.clip()
    given, trained = images(model), [SpectralShifts(1e-1)]
    learned = learn_concept(model, clip, given, trained, steps=3)
    m, c = applied(model, clip, learned)
    training, served = next_losses(model, clip, given, trained, learned, (m, c), "a photo of sks")
    assert served == pytest.approx(training, rel=1e-5)
    prompt = tiny.encode(clip, "a photo of sks")
    assert relative(prediction(model, prompt)[1], prediction(m, prompt)[1]) > 1e-2


@pytest.fixture
def output(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_the_shifts_alone_make_the_change_again(dtype, output):
    """Of a MODEL under another LoRA, whose weights are loaded when the file is read, or not."""
    model, clip = tiny.sd15(dtype=dtype), tiny.clip()
    other = learn_concept(model, clip, images(model), [LoRA(1e-1)], steps=2)
    m, c = applied(model, clip, other, 0.7)
    learned = learn_concept(m, c, images(m), [SpectralShifts(1e-1)], steps=2)
    whole, few = PalimpsestSaveConcept.execute(learned, "mine", "fp32").result[0].split("\n")
    assert few == "concepts/mine_00001_.spectral.safetensors"
    file = f"{few} [output]"
    assert file in PalimpsestLoadConcept.define_schema().inputs[0].options
    assert PalimpsestLoadConcept.validate_inputs(file) is True
    shifts = sum(v.numel() for v in learned.compact.values())
    assert shifts == sum(min(w.flatten(1).shape) for w in m.model.diffusion_model.parameters() if w.ndim > 1)
    assert (output / few).stat().st_size < 4 * shifts + 200 * len(learned.weights) < (output / whole).stat().st_size
    for _ in range(2):
        loaded, = PalimpsestLoadConcept.execute(file, m).result
        assert loaded.weights.keys() == learned.weights.keys()
        assert max(relative(loaded.weights[name], v) for name, v in learned.weights.items()) < 1e-5
        prediction(m, tiny.encode(clip, "a photo"))  # its weights are loaded then
    assert PalimpsestSaveConcept.execute(loaded, "too", "fp32").result[0].endswith("too_00001_.spectral.safetensors")


def test_a_loaded_run_saves_its_shifts_alone_too(output):
    model, clip = tiny.sd15(), tiny.clip()
    learned = learn_concept(model, clip, images(model), [SpectralShifts(1e-1)], steps=2)
    PalimpsestSaveConcept.execute(learned, "mine", "fp32", True)
    run, = output.rglob(f"*{RUN}")
    again, = PalimpsestLoadConcept.execute(f"concepts/{run.name} [output]").result
    PalimpsestSaveConcept.execute(again, "again", "fp32")
    first, second = (load_file(path) for path in output.rglob(f"*{FEW}"))
    assert first.keys() == learned.compact.keys() == second.keys()
    assert all(torch.equal(v, first[name]) for name, v in second.items())


def test_shifts_of_another_model_are_refused(output):
    model, clip = tiny.sd15(), tiny.clip()
    learned = learn_concept(model, clip, images(model), [SpectralShifts(1e-1)], steps=1)
    file = PalimpsestSaveConcept.execute(learned, "mine", "fp16").result[0].split("\n")[1] + " [output]"
    with pytest.raises(ValueError, match="holds shifts of a MODEL's weights.*no MODEL: connect"):
        PalimpsestLoadConcept.execute(file)
    with pytest.raises(ValueError, match="another family.*Connect the MODEL"):
        PalimpsestLoadConcept.execute(file, tiny.sdxl())
    with pytest.raises(ValueError, match="shifts do not fit the [0-9]+ singular values.*connect the MODEL"):
        PalimpsestLoadConcept.execute(file, tiny.sd15(model_channels=64))
    with pytest.raises(ValueError, match="of the .* weights that the concept changes are not in this MODEL"):
        PalimpsestLoadConcept.execute(file, tiny.sd15(num_res_blocks=[1, 0]))
    broken = output / "concepts" / "broken.spectral.safetensors"
    broken.write_bytes(lora_file({"lora_unet_x": torch.full((2,), math.nan)}, {KEY: json.dumps(
        {"version": 1, "fingerprint": dataclasses.asdict(learned.fingerprint), "notes": {}})}))
    with pytest.raises(ValueError, match="make no whole concept in few numbers"):
        PalimpsestLoadConcept.execute(f"concepts/{broken.name} [output]", model)
