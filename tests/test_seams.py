"""A measured halo: less than the layers reach, enough for tiles, told apart from what cannot be measured."""

from functools import cache

import pytest
import torch
from torch import nn

from medsr.checkpoint import load_checkpoint, load_upscaler
from medsr.methods import RCAN, SRResNet
from medsr.methods.attention import Residual
from medsr.methods.seams import HALF_A_GRAY_LEVEL, MARGIN, measured_halo, with_margin
from medsr.recipe import RcanRecipe, Recipe
from medsr.training import train
from tests import laws
from tests.methods_asked import mammogram, real_scan
from tests.test_training import PowerCutError


def loud(built: RCAN, *, tail: float) -> RCAN:
    """Residuals and detail as strong as after a long training: new ones are quiet, and hardly reach beyond the skip."""
    with torch.no_grad():
        for module in built.modules():
            if isinstance(module, Residual):
                convolutions = [layer for layer in module.layers if isinstance(layer, (nn.Conv2d, nn.Conv3d))]
                for layer in convolutions[-1:]:
                    layer.weight.mul_(10)
        built.tail.weight.mul_(tail)
    return built.eval()


@cache
def deep() -> RCAN:
    """A network whose layers reach much further than its weights do."""
    torch.manual_seed(0)
    return loud(RCAN((2, 2), features=8, groups=3, blocks=4, reduction=2, window=15), tail=10)


class Measured:
    """A network with another halo than its layers reach."""

    def __init__(self, network, halo):
        self.network, self.factor, self.halo = network, network.factor, halo

    def __call__(self, low):
        return self.network(low)


def test_a_measured_halo_is_enough_for_tiles():
    low = mammogram()
    halo = measured_halo(deep(), low[..., :128])
    used = with_margin(deep(), [halo])
    assert deep().halo == (115, 115)
    assert all(h <= u < e / 2 for h, u, e in zip(halo, used, deep().halo, strict=True)), (halo, used)
    other = real_scan()[:, :, 14, :128, :]  # neither the scan nor the microscope it was measured on
    for scan in (low, other):
        laws.tiled_equals_whole(Measured(deep(), used), scan, (48, 60))


def test_a_halo_that_is_too_small_is_seen():
    """The law that the measured one passes fails with a quarter of it."""
    low = mammogram()
    halo = measured_halo(deep(), low[..., :128])
    with pytest.raises(AssertionError, match="differ from the whole"):
        laws.tiled_equals_whole(Measured(deep(), tuple(h // 4 for h in halo)), low, (48, 60))


def test_a_lower_tolerance_needs_more():
    low = mammogram()[..., :96]
    halos = [measured_halo(deep(), low, tolerance=t) for t in (1e-2, HALF_A_GRAY_LEVEL)]
    assert all(a < b for a, b in zip(*halos, strict=True)), halos


def test_where_the_scan_is_too_small_the_layers_decide():
    low = mammogram()
    assert measured_halo(deep(), low[..., :24, :24]) == deep().halo
    short = measured_halo(deep(), low[..., :128, :24])
    assert short[0] < deep().halo[0]
    assert short[1] == deep().halo[1]


def test_it_is_never_more_than_the_layers_reach():
    torch.manual_seed(0)
    built = SRResNet((2, 2), features=8, blocks=2, head_kernel=3, tail_kernel=3).eval()
    # detail so strong that nothing of the reach can be left out
    with torch.no_grad():
        built.tail.weight.mul_(1e4)
    halo = measured_halo(built, mammogram()[..., :96, :96])
    assert all(h <= e for h, e in zip(halo, built.halo, strict=True))
    assert with_margin(built, [halo, halo]) == built.halo
    assert with_margin(deep(), [(9, 20), (11, 8)]) == (round(11 * MARGIN + 0.4), round(20 * MARGIN))


def test_other_axes_are_refused():
    with pytest.raises(ValueError, match="expected .* with 2 sizes"):
        measured_halo(deep(), real_scan())


def test_a_stack_is_measured_along_each_axis():
    torch.manual_seed(0)
    built = loud(RCAN((1, 2, 2), features=4, groups=2, blocks=2, reduction=2, window=9), tail=1)
    low = real_scan()[..., :16, 64:160, 64:160]
    halo = measured_halo(built, low)
    assert halo[0] == built.halo[0], "sixteen planes tell nothing of a reach of thirty"
    assert max(halo[1:]) < built.halo[1]
    laws.tiled_equals_whole(Measured(built, with_margin(built, [halo])), low, (16, 40, 40))


def recipe(tmp_path, *, halo):
    method = RcanRecipe(features=8, groups=3, blocks=4, reduction=2, window=7, halo=halo)
    plain = {
        "method": method,
        "data": {"sample": "nuclei", "patch": [16, 16], "foreground": 0.0, "patches_per_scan": 4},
        "training": {"pixel_steps": 2, "batch": 2, "validate_every_steps": 2, "device": "cpu"},
        "out": tmp_path / halo,
    }
    return Recipe.model_validate(plain)


def test_training_measures_the_halo_and_keeps_it(tmp_path, caplog):
    with caplog.at_level("INFO", logger="medsr.training"):
        folder = train(recipe(tmp_path, halo="measured"))
    upscaler = load_upscaler(folder)
    exact = upscaler.network.halo
    assert upscaler.card.halo == upscaler.halo != exact
    assert load_checkpoint(folder / "last.ckpt").card.halo is not None
    assert upscaler.card.finished
    said = [line for line in caplog.messages if line.startswith("halo measured on")]
    assert len(said) == 1
    assert f"used: {list(upscaler.halo)} (times {MARGIN:g}), the layers reach {list(exact)}" in said[0]
    assert all(h < e for h, e in zip(upscaler.halo, exact, strict=True))
    laws.tiled_equals_whole(upscaler, mammogram(), (64, 50))
    with torch.inference_mode():
        parts = upscaler.stages(edges=False)
        low = mammogram()[..., :80, :80]
        made = parts.last(parts.rise(parts.body(parts.entry(low)))) + parts.base(low)
        torch.testing.assert_close(made, upscaler(low), rtol=0, atol=2e-5)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed."""
    return train(recipe(tmp_path_factory.mktemp("whole"), halo="measured"))


@pytest.mark.parametrize("cut", [0, 2])  # before anything was measured; when best.ckpt has its halo, last.ckpt not yet
def test_killed_while_measuring_and_resumed_equals_never_stopped(whole, tmp_path, monkeypatch, cut):
    disturbed, calls = recipe(tmp_path / "cut", halo="measured"), []

    def measured(*args, **kwargs):
        calls.append(args)
        if len(calls) > cut:
            raise PowerCutError
        return measured_halo(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr("medsr.training.context.measured_halo", measured)
        with pytest.raises(PowerCutError):
            train(disturbed)
    folder = disturbed.out
    halos = [load_checkpoint(folder / name).card.halo is not None for name in ("best.ckpt", "last.ckpt")]
    assert halos == [cut > 0, False]
    assert not load_upscaler(folder).card.finished
    train(disturbed, resume=True)
    for name in ("best.ckpt", "last.ckpt"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()


def test_a_recipe_may_ask_for_the_exact_reach(tmp_path):
    folder = train(recipe(tmp_path, halo="exact"))
    assert load_upscaler(folder).card.halo is None
    assert load_upscaler(folder).halo == load_upscaler(folder).network.halo
