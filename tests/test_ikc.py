"""IKC: a network that is told the blur, and what finds the blur of a scan."""

import copy
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from torch import Tensor

from medsr.blur import estimate_blur, estimate_blurs
from medsr.card import TrainingCard
from medsr.checkpoint import Checkpoint, TrainedUpscaler, load_checkpoint, load_upscaler, save_checkpoint
from medsr.degradation import Degradation, DegradationRange, Gaussian
from medsr.io.pseudonyms import Pseudonyms
from medsr.methods.correctors import Corrector, Predictor
from medsr.methods.ikc import IkcNetwork, IkcRecipe
from medsr.methods.kernel_code import blur_of, render_kernel
from medsr.methods.patches import signal_patches
from medsr.methods.sftmd import SFTMD, PublishedSFTMD
from medsr.recipe import Recipe, SrresnetRecipe
from medsr.scan import Grid, Intensity, Scan
from medsr.training import TrainingError, train
from medsr.training.alternation import learner
from medsr.training.correction import correct, to_learn
from medsr.training.phases import CorrectionPhase, PixelPhase
from medsr.training.start import expect_blurs, start_from
from medsr.upscaler import describe, fingerprint
from medsr.upscaling import upscale
from tests import laws
from tests.methods_asked import mammogram, noise, real_scan

BLURS = DegradationRange(fwhm_samples=(0.4, 2.4))
TINY = IkcRecipe(factor=(2, 2), features=8, blocks=2, tail_kernel=3, estimator_features=8, corrections=3)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def scan_of(unit: np.ndarray, spacing: float | None = 0.2, **line: Any) -> Scan:
    axes = ("z", "y", "x")[3 - unit.ndim :]
    grid = Grid(axes, None if spacing is None else (spacing,) * unit.ndim)
    return Scan(unit, grid, Intensity(line.get("black", 0.0), line.get("white", 1.0), unit.dtype))


def blurred(width: float, plane: int = 15) -> Tensor:
    """A plane of the shipped stack, made coarse with a blur; (1, 1, 128, 128)."""
    return Degradation((2, 2), kernel=Gaussian(fwhm_samples=width)).mean(real_scan()[:, :, plane])


@pytest.fixture(scope="module")
def ready() -> IkcNetwork:
    """A network that knows its blurs and claims to find them; its weights are new."""
    torch.manual_seed(0)
    network = TINY.build().eval().requires_grad_(False)
    network.expect(BLURS, [None], patch=(24, 24), seed=0)
    network.trained.fill_(1)
    return network


# ---------------------------------------------------------------- the networks


def test_the_papers_layers_have_the_papers_parameters() -> None:
    assert count(PublishedSFTMD((4, 4))) == 4_234_691
    assert count(Predictor(2, channels=3, published=True)) == 430_730
    assert count(Corrector(2, channels=3, published=True)) == 649_930
    network = PublishedSFTMD((4, 4), channels=1, features=8, blocks=1)
    low, code = noise(2, 1, 9, 8), noise(2, 10)
    estimate = network(low, code)
    assert estimate.shape == (2, 1, 36, 32)
    assert Predictor(2, features=8, published=True)(low).shape == (2, 10)
    assert Corrector(2, features=8, published=True)(estimate, low, code).shape == (2, 10)


@pytest.mark.parametrize("factor", [(2, 2), (1, 2, 2)])
def test_whatever_the_code_flat_fields_stay_and_the_line_passes(factor: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    network = SFTMD(factor, features=8, blocks=2, tail_kernel=3)
    for parameter in network.parameters():  # weights of any kind, those of the transforms too
        torch.nn.init.normal_(parameter, std=0.15)
    network.double().requires_grad_(False)  # weights as wild as these raise rounding to what is seen

    class Told:
        halo = network.halo

        def __init__(self, code: Tensor) -> None:
            self.factor, self.code = factor, code

        def __call__(self, low: Tensor) -> Tensor:
            return network(low, self.code)

    low = noise(1, 1, *(9,) * len(factor))
    made = []
    for code in (torch.zeros(10), 3 * torch.randn(10), -2 * torch.ones(10)):
        laws.flat_stays_flat(Told(code), (7,) * len(factor), tolerance=1e-8)
        for gain, offset in ((1.0, 0.3), (0.01, 0.0), (3.0, -1.0)):
            laws.commutes_with_line(Told(code), low, gain, offset)
        made.append(Told(code)(low))
    assert float((made[0] - made[1]).abs().max()) > 1e-3  # the code decides
    codes = torch.stack([torch.zeros(10), torch.ones(10)])
    both = network(torch.cat([low, low]), codes)
    torch.testing.assert_close(both[:1], network(low, codes[0]), rtol=0, atol=1e-5)


def test_a_code_that_is_bound_is_in_the_stages(ready: IkcNetwork) -> None:
    bound = copy.deepcopy(ready)
    bound.code.copy_(bound.coder.members[7])
    low = noise(1, 1, 40, 37)
    stages = bound.stages(gain=1.7, offset=-0.3)
    made = stages.last(stages.rise(stages.body(stages.entry(low)))) + stages.base(low)
    expected = (bound(low * 1.7 - 0.3) + 0.3) / 1.7
    assert float((made - expected).abs().max()) < 2e-5
    assert float((ready(low) - bound(low)).abs().max()) > 1e-4
    kinds = {type(module).__name__ for module in stages.body.modules()}
    assert "Transform" not in kinds  # they cost nothing any more
    assert "Linear" not in kinds


def test_gain_and_offset_do_not_change_what_is_estimated(ready: IkcNetwork) -> None:
    low = blurred(1.2)[..., :48, :48]
    code = ready.coder.members[:1]
    for gain, offset in ((1.0, 0.5), (0.01, 0.0), (200.0, -40.0)):
        line = gain * low + offset
        torch.testing.assert_close(ready.predictor(line), ready.predictor(low), rtol=0, atol=2e-3)
        found = [ready.corrector(ready.sftmd(x, code), x, code) for x in (low, line)]
        torch.testing.assert_close(found[0], found[1], rtol=0, atol=2e-3)


# ---------------------------------------------------------------- a scan's blur


def test_the_code_of_a_scan_is_found_once_whatever_it_is_read_by(ready: IkcNetwork) -> None:
    unit = blurred(1.4)[0, 0].numpy()
    reads = []

    class Lazy:
        shape, dtype = unit.shape, unit.dtype

        def __getitem__(self, region: Any) -> np.ndarray:
            reads.append(region)
            return unit[region]

    whole, lazy = ready.adapt(scan_of(unit)), ready.adapt(replace(scan_of(unit), data=Lazy()))
    assert whole is not ready
    assert torch.equal(whole.code, lazy.code)
    assert 0 < len(reads) <= 256
    assert not torch.equal(whole.code, ready.code)
    assert whole.told.startswith("blur 0.")
    assert " um (" in whole.told
    assert "samples" in ready.adapt(scan_of(unit, None)).told
    assert " um" not in ready.adapt(scan_of(unit, None)).told
    assert ready.told == ""
    assert all(a is b for a, b in zip(whole.parameters(), ready.parameters(), strict=True))  # weights are shared
    assert torch.equal(whole.adapt(scan_of(unit)).code, whole.code)
    laws.tiled_equals_whole(whole, torch.from_numpy(unit)[None, None, :50, :47], (17, 23))


def test_nothing_to_see_or_nothing_learned_changes_nothing(ready: IkcNetwork) -> None:
    assert ready.adapt(scan_of(np.full((64, 64), 0.3, np.float32))) is ready
    assert ready.adapt(scan_of(np.full((64, 64), np.nan, np.float32))) is ready
    unlearned = TINY.build()
    assert unlearned.adapt(scan_of(blurred(1.0)[0, 0].numpy())) is unlearned


def test_patches_are_spread_over_the_scan_and_keep_out_of_holes() -> None:
    random = np.random.default_rng(0)
    image = random.random((40, 300, 310), np.float32)
    image[:, :, 200:] = 0.5  # nothing to see
    image[:, :100] = np.nan
    found = signal_patches(scan_of(image), (24, 24), count=16)
    assert found.shape == (16, 1, 24, 24)
    assert bool(torch.isfinite(found).all())
    assert float(found.flatten(1).std(1).min()) > 0.1
    assert len(torch.unique(found[:, 0, 0, 0])) == 16
    small = signal_patches(scan_of(image[0, 150:160, :12]), (24, 24), count=16)
    assert small.shape == (1, 1, 10, 12)


def upscaler_of(network: IkcNetwork, **parts: Any) -> TrainedUpscaler:
    recipe = Recipe(method=TINY, **parts)
    card = TrainingCard(black=(0, 0), white=(1, 1), dtype="float32")
    return TrainedUpscaler(Checkpoint(network, recipe, card, "0" * 64), path=Path("best.ckpt"))


def test_an_adapted_upscaler_is_the_same_in_another_process(ready: IkcNetwork, tmp_path: Path) -> None:
    scan = scan_of(blurred(1.6)[0, 0].numpy())
    upscaler = upscaler_of(ready)
    adapted = upscaler.adapt(scan)
    assert "blur" in describe(adapted)
    assert fingerprint(adapted) != fingerprint(upscaler)
    low = noise(1, 1, 20, 22)
    (tmp_path / "adapted.pickle").write_bytes(pickle.dumps(adapted))
    torch.save(low, tmp_path / "low.pt")
    program = (
        "import pickle, torch; torch.set_num_threads(1); "
        "adapted = pickle.load(open('adapted.pickle', 'rb')); low = torch.load('low.pt'); "
        "torch.save((adapted(low).detach(), repr(adapted)), 'made.pt')"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, env=_environment())
    made, name = torch.load(tmp_path / "made.pt")
    assert torch.equal(made, adapted(low))
    assert name == repr(adapted)
    small = scan_of(blurred(1.6)[0, 0, 40:80, 40:80].contiguous().numpy())
    assert "blur" in upscale(small, upscaler).history[-1]


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}


def test_what_estimate_blur_says_and_refuses(ready: IkcNetwork) -> None:
    unit = blurred(1.6)[0, 0].numpy()
    stored = (unit * 4000 + 100).astype(np.float32)
    found = estimate_blur(scan_of(unit), upscaler_of(ready))
    again = estimate_blur(scan_of(stored, black=100.0, white=4100.0), upscaler_of(ready))
    assert found.fwhm_samples == pytest.approx(again.fwhm_samples, abs=0.02)
    assert found.axes == ("y", "x")
    assert found.fwhm_um == pytest.approx([0.2 * width for width in found.fwhm_samples])
    assert found.history[-1] == found.fwhm_samples
    assert 2 <= len(found.history) <= 4
    assert 1 < found.patches <= 24
    assert found.range_samples[0] == pytest.approx((0.4, 2.4), abs=0.02)
    assert "patches" in str(found)
    assert estimate_blur(scan_of(unit, None), upscaler_of(ready)).fwhm_um == (None, None)
    with pytest.raises(ValueError, match="blur is unknown"):
        estimate_blur(scan_of(np.zeros((64, 64), np.float32)), upscaler_of(ready))
    with pytest.raises(ValueError, match=r"correction_steps above 0"):
        estimate_blur(scan_of(unit), upscaler_of(TINY.build()))
    other = SrresnetRecipe.small((2, 2))
    plain = upscaler_of(ready)
    plain.network = other.build()  # type: ignore[assignment]
    with pytest.raises(ValueError, match="expected a checkpoint that finds blur"):
        estimate_blur(scan_of(unit), plain)


def test_a_table_of_blurs_names_what_cannot_be_read_and_no_patient(ready: IkcNetwork, tmp_path: Path) -> None:
    scans = tmp_path / "Zyxwinski"
    scans.mkdir()
    tifffile.imwrite(scans / "Zyxwinski_a.tif", (blurred(1.6)[0, 0].numpy() * 4000).astype(np.uint16))
    (scans / "Zyxwinski_torn.tif").write_bytes((scans / "Zyxwinski_a.tif").read_bytes()[:300])
    said: list[str] = []
    table = tmp_path / "blurs.csv"
    plain = estimate_blurs(scans, upscaler_of(ready))
    assert {row["scan"] for row in plain.rows} == {"Zyxwinski_a"}
    assert plain.failed[0][0] == "Zyxwinski_torn"
    hidden = estimate_blurs(
        scans, upscaler_of(ready), out=table, pseudonyms=Pseudonyms(tmp_path / "key"), note=said.append
    )
    assert len(hidden.rows) == len(plain.rows) == 2
    assert [row["fwhm_samples"] for row in hidden.rows] == [row["fwhm_samples"] for row in plain.rows]
    assert hidden.exit_code == 1
    assert "zyxwinski" not in (repr(hidden) + table.read_text() + repr(said)).lower()


# ---------------------------------------------------------------- learning


def test_a_few_rounds_lower_the_error_of_the_codes_and_leave_the_upscaling_alone(ready: IkcNetwork) -> None:
    """Twenty kernels; the estimates are those of the network as it is."""
    network = copy.deepcopy(ready)
    to_learn(network, blur=True)
    widths = torch.linspace(0.5, 2.3, 20).tolist()
    lows = torch.cat([blurred(width)[..., 40:64, 40:64] for width in widths])
    kernels = torch.stack([render_kernel(Gaussian(fwhm_samples=width), (2, 2), size=21) for width in widths])
    learn = [learner(torch.optim.Adam(part.parameters(), 3e-3)) for part in (network.predictor, network.corrector)]
    before = copy.deepcopy(network.state_dict())
    losses = []
    for _ in range(12):
        found = correct(network, [(lows, lows, kernels)], learn_predictor=learn[0], learn_corrector=learn[1])
        losses.append([float(loss) for loss in found[:3]])
    assert losses[-1][0] < 0.7 * losses[0][0]
    assert losses[-1][1] < 0.7 * losses[0][1]
    for name, value in network.state_dict().items():
        if name.startswith(("sftmd", "coder", "code")):
            assert torch.equal(value, before[name]), name
        elif name.startswith(("predictor", "corrector")):
            assert not torch.equal(value, before[name]), name


def recipe_of(folder: Path | None, out: Path, **parts: Any) -> Recipe:
    plain: dict[str, Any] = {
        "method": {**TINY.model_dump(), "features": 4, "blocks": 1, "estimator_features": 4, "corrections": 2},
        "data": {"folder": folder, "patch": (32, 32), "validation": 0.3, "validation_crops": 1},
        "degradation": {"fwhm_samples": (0.4, 2.4), "read_noise": (0.0, 0.01)},
        "training": {
            "pixel_steps": 5, "correction_steps": 5, "batch": 2, "learning_rate": 1e-3, "ema": 0.9,
            "validate_every_steps": 3, "device": "cpu",
        },
        "seed": 3, "out": out,
    }  # fmt: skip
    for name, changes in parts.items():
        plain[name] = {**plain.get(name, {}), **changes}
    return Recipe.model_validate(plain)


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    for plane in (5, 14, 22):
        stored = (real_scan()[0, 0, plane, :80, :96].numpy() * 4000).clip(0, 65535)
        tifffile.imwrite(folder / f"{plane}.tif", stored.astype(np.uint16))
    return folder


@pytest.fixture(scope="module")
def undisturbed(scans: Path) -> Path:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    run = train(recipe_of(scans, scans.parent / "run"))
    torch.set_num_threads(before)
    return run


def same(run: Path, other: Path, name: str) -> bool:
    one, two = (load_checkpoint(folder / name).network.state_dict() for folder in (run, other))
    return all(torch.equal(one[key], two[key]) for key in one)


class PowerCutError(Exception):
    """The process dies."""


@pytest.mark.parametrize(("phase", "step"), [(PixelPhase, 4), (CorrectionPhase, 0), (CorrectionPhase, 4)])
def test_killed_and_resumed_equals_never_stopped(
    scans: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: type, step: int
) -> None:
    recipe = recipe_of(scans, tmp_path / "run")
    whole = phase.training_step

    def training_step(self: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == step:
            raise PowerCutError
        whole(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(phase, "training_step", training_step)
        with pytest.raises(PowerCutError):
            train(recipe)
    torch.rand(7)
    train(recipe, resume=True)
    for name in ("last.ckpt", "best.ckpt", "pixel.ckpt"):
        assert same(undisturbed, tmp_path / "run", name)


def test_what_a_run_leaves_behind(undisturbed: Path) -> None:
    best, pixel = load_checkpoint(undisturbed / "best.ckpt"), load_checkpoint(undisturbed / "pixel.ckpt")
    assert best.card.steps["pixel"] == 5
    assert best.card.steps["correction"] in (3, 5)
    assert best.card.finished
    assert isinstance(best.network, IkcNetwork)
    assert isinstance(pixel.network, IkcNetwork)
    assert best.network.trained
    assert not pixel.network.trained
    # What it was told of the blurs to come is kept with the weights.
    assert best.network.coder.known
    assert best.network.patch.tolist() == [16, 16]
    assert float(best.network.coder.match(best.network.code[None]).fwhm_samples[0, 0]) == pytest.approx(1.4, abs=0.01)
    for name, value in best.network.sftmd.state_dict().items():  # the correction leaves it alone
        assert torch.equal(value, pixel.network.sftmd.state_dict()[name])
    last = load_upscaler(undisturbed / "last.ckpt")
    assert isinstance(last.network, IkcNetwork)
    found = last.adapt(scan_of(blurred(1.0)[0, 0].numpy()))
    assert found is not last
    assert repr(last).startswith("ikc x2,2")


def test_the_correction_starts_from_other_weights_and_keeps_their_codes(
    scans: Path, undisturbed: Path, tmp_path: Path
) -> None:
    start = {"start": undisturbed / "pixel.ckpt", "pixel_steps": 0, "correction_steps": 1}
    run = train(recipe_of(scans, tmp_path / "run", training=start).model_copy(update={"seed": 8}))
    one, other = load_checkpoint(run / "best.ckpt").network, load_checkpoint(undisturbed / "pixel.ckpt").network
    for name in ("coder.basis", "coder.members", "code", "sftmd.tail.weight"):
        assert torch.equal(one.state_dict()[name], other.state_dict()[name])


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"degradation": {"fwhm_samples": (0.5, 3.5)}}, r"fwhm_samples \[0\.4, 2\.4\], not \[0\.5, 3\.5\]"),
        ({"degradation": {"anisotropy": 1.5}}, r"anisotropy 1\.0, not 1\.5"),
        ({"data": {"patch": (48, 48)}}, r"patches of \[16, 16\] coarse samples, not \[24, 24\]"),
        ({"method": {"kernel_size": 25}}, "kernel_size=21, not 25"),
        ({"method": {"corrections": 4}}, "corrections=2, not 4"),
        ({"intensity": {"black": 0.0, "white": 900.0}}, "that of each file, not black 0 white 900"),
    ],
    ids=["range", "turned", "patch", "kernel", "corrections", "line"],
)  # fmt: skip
def test_a_start_that_was_told_other_blurs_is_refused(
    scans: Path, undisturbed: Path, tmp_path: Path, parts: dict[str, Any], words: str
) -> None:
    start = {"start": undisturbed / "pixel.ckpt", "pixel_steps": 0, "correction_steps": 1}
    recipe = recipe_of(scans, tmp_path / "run", training=start, **parts)
    with pytest.raises(TrainingError, match=rf"training\.start: expected .*found others.*{words}"):
        train(recipe)


def test_a_start_of_other_micrometers_a_sample_is_refused(tmp_path: Path) -> None:
    """The same range in micrometers stands for other codes where the spacing is another."""
    degradation = {"fwhm_samples": None, "fwhm_um": (0.1, 0.5), "read_noise": None}
    recipe = recipe_of(None, tmp_path, degradation=degradation)
    network = recipe.method.build().eval()
    assert isinstance(network, IkcNetwork)
    expect_blurs(network, recipe, [(0.1, 0.1)])
    save_checkpoint(tmp_path / "a.ckpt", network, recipe, card=TrainingCard(black=(0, 0), white=(1, 1), dtype="uint16"))
    again = recipe.model_copy(update={"seed": 9})
    start_from(tmp_path / "a.ckpt", recipe.method.build(), again, spacings=[(0.1, 0.1)])
    with pytest.raises(TrainingError, match=r"narrowest blur .* coarse samples, not .*take scans of its spacing"):
        start_from(tmp_path / "a.ckpt", recipe.method.build(), again, spacings=[(0.12, 0.12)])
    other = recipe.model_copy(update={"degradation": recipe.degradation.model_copy(update={"psf": "airy"})})
    with pytest.raises(TrainingError, match=r"degradation\.psf gaussian, not airy"):
        start_from(tmp_path / "a.ckpt", recipe.method.build(), other, spacings=[(0.2, 0.2)])


def test_pixels_alone_unlearn_to_find_the_blur(scans: Path, undisturbed: Path, tmp_path: Path) -> None:
    """The log says that the middle of the blurs is assumed for every scan, and so it is."""
    assert load_checkpoint(undisturbed / "best.ckpt").network.trained  # type: ignore[union-attr]
    start = {"start": undisturbed / "best.ckpt", "pixel_steps": 1, "correction_steps": 0}
    run = train(recipe_of(scans, tmp_path / "run", training=start))
    network = load_checkpoint(run / "last.ckpt").network
    assert isinstance(network, IkcNetwork)
    assert not network.trained
    assert network.adapt(scan_of(blurred(1.0)[0, 0].numpy())) is network
    both = {"start": undisturbed / "best.ckpt", "pixel_steps": 1, "correction_steps": 1}
    run = train(recipe_of(scans, tmp_path / "both", training=both))
    trained = [load_checkpoint(run / name).network.trained for name in ("pixel.ckpt", "last.ckpt")]  # type: ignore[union-attr]
    assert [int(each) for each in trained] == [0, 1]


def test_pixels_alone_are_learned_with_one_blur(scans: Path, tmp_path: Path) -> None:
    one = {"degradation": {"fwhm_samples": (1.0, 1.0)}, "training": {"pixel_steps": 1, "correction_steps": 0}}
    run = train(recipe_of(scans, tmp_path / "run", **one))
    network = load_checkpoint(run / "last.ckpt").network
    assert isinstance(network, IkcNetwork)
    assert not network.coder.known


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"degradation": {"fwhm_samples": (1.0, 1.0)}}, "expected a range of blurs"),
        ({"degradation": {"fwhm_samples": None}}, "expected a range of blurs"),
        ({"degradation": {"fwhm_samples": None, "na": 0.5, "wavelength_um": 0.52, "axial_fwhm_um": (0.5, 1.0)}},
         "expected a range of blurs"),
        ({"degradation": {"second": {}}}, "find the blur of one pass"),
        ({"data": {"folder": None, "pairs": Path("pairs")}, "degradation": {"fwhm_samples": None, "read_noise": None},
          "training": {"correction_steps": 0}}, "blurs that are known"),
        ({"method": {"kernel_size": 8}}, "odd width"),
    ],
)  # fmt: skip
def test_recipes_that_cannot_be_learned_from_are_refused(tmp_path: Path, parts: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        recipe_of(None, tmp_path, **parts)


def test_only_ikc_corrects(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="use kind: ikc"):
        Recipe.model_validate({"method": {"kind": "srresnet"}, "training": {"correction_steps": 3}})


def test_a_blur_that_does_not_fit_is_said_before_the_first_step(scans: Path, tmp_path: Path) -> None:
    with pytest.raises((TrainingError, ValueError), match=r"raise method\.kernel_size"):
        train(recipe_of(scans, tmp_path / "run", method={"kernel_size": 5}))


def test_a_known_blur_is_told_and_kept():
    """A width measured with beads is bound as it is, and a scan changes it no more."""
    coder_family = DegradationRange(fwhm_samples=(0.5, 3.0))
    torch.manual_seed(0)
    network = IkcRecipe.small((2, 2)).build().eval()
    network.expect(coder_family, [None], patch=(24, 24), seed=0)
    network.trained.fill_(1)
    told = network.tell((2.0, 2.0))
    assert told.fwhm_samples == (2.0, 2.0)
    assert "2.00 x 2.00 samples" in told.told
    assert told.adapt(None) is told
    nearest = network.coder.match(told.code[None])
    assert float((nearest.fwhm_samples[0] - 2.0).abs().max()) < 0.1
    assert network.fwhm_samples == ()
    low = mammogram()[..., :24, :24]
    with torch.no_grad():
        assert not torch.equal(network(low), told(low))


@pytest.mark.parametrize("psf", ["airy", "detector"])
def test_what_is_told_and_found_has_the_shape_it_learned(psf: str) -> None:
    """A width that is known is told as that of an Airy pattern or a detector, and the scan's degradation says so."""
    blurs = DegradationRange(psf=psf, fwhm_um=(0.1, 0.3), anisotropy=1.0)
    recipe = TINY.model_copy(update={"kernel_size": 31})
    network = recipe.build().eval().requires_grad_(False)
    network.expect(blurs, [(0.1, 0.1)], patch=(24, 24), seed=0)
    network.trained.fill_(1)
    told = network.tell((1.1, 1.1))
    kernel = blur_of(blurs.model_copy(update={"fwhm_um": (0.22, 0.22)}).center((2, 2), (0.1, 0.1)))
    true = network.coder.encode(render_kernel(kernel, (2, 2), (0.1, 0.1), size=31)[None])[0]
    torch.testing.assert_close(told.code, true, rtol=0, atol=1e-4)
    gaussian = render_kernel(Gaussian(fwhm_samples=1.1), (2, 2), size=31)[None]
    assert float((network.coder.encode(gaussian)[0] - true).abs().max()) > 0.05
    upscaler = upscaler_of(told, degradation=blurs)
    assert upscaler.found_degradation is not None
    low = Degradation((2, 2), kernel=kernel, spacing_um=(0.1, 0.1)).mean(real_scan()[:, :, 3])
    torch.testing.assert_close(upscaler.found_degradation.mean(real_scan()[:, :, 3]), low, rtol=0, atol=1e-5)
