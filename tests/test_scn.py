"""SCN: the paper's count and sums, what passes through, flat patches, planes of a volume, engines."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional

from medsr.engines import EngineChoice, build_engine
from medsr.methods import ScnNetwork
from medsr.methods.interpolation import interpolate
from medsr.recipe import Recipe, ScnRecipe
from tests import laws
from tests.methods_asked import mammogram, network, noise, real_scan


def free(built):
    """With feature kernels that see the level."""
    with torch.no_grad():
        for coder in built.coders:
            coder.gradients.add_(0.1 * torch.randn_like(coder.gradients))
    return built.eval()


@pytest.mark.parametrize(("factor", "stages"), [((2, 2), 1), ((4, 4), 2), ((3, 3), 1), ((1, 4, 4), 2), ((6, 2), 2)])
@pytest.mark.parametrize("published", [False, True])
def test_a_stage_has_the_papers_count(factor, stages, published):
    built = ScnNetwork(factor, published=published)
    assert sum(p.numel() for p in built.parameters()) == 40_509 * stages
    assert sum(b.numel() for b in built.buffers()) == 2_194 * stages


def test_it_is_the_papers_sum_over_patches():
    """One fine sample, patch by patch in float64: normalize, two shrinkages, atoms, norm and mean given back."""
    torch.manual_seed(3)
    built = free(ScnNetwork((2, 2), atoms=16, published=True)).double()
    coder, low = built.coders[0], noise(1, 1, 12, 12).double()
    with torch.no_grad():
        coder.weights.copy_(torch.rand(25))
        blurred = interpolate(low, (2, 2))[0, 0]
        y, x = 11, 12
        total = torch.zeros((), dtype=torch.float64)
        for i in range(5):
            for j in range(5):
                cy, cx = y + 2 - i, x + 2 - j  # of the patch whose sample (i, j) is the one asked for
                window = blurred[cy - 4 : cy + 5, cx - 4 : cx + 5]
                patch = blurred[cy - 2 : cy + 3, cx - 2 : cx + 3]
                seen = coder.gradients @ window.flatten()
                excited = coder.encode @ (seen / seen.norm())
                again = excited + coder.inhibit @ functional.softshrink(excited, 1.0)
                atoms = coder.decode @ functional.softshrink(again, 1.0)
                spread = (patch - patch.mean()).norm()
                total += coder.weights[5 * i + j] * (1.1 * spread * atoms / atoms.norm())[5 * i + j] + patch.mean() / 25
        assert float(built(low)[0, 0, y, x]) == pytest.approx(float(total), abs=1e-6)


@pytest.mark.parametrize("gain", [1e-3, 250.0, -2.0])
def test_gain_and_offset_pass_whatever_the_weights(gain):
    """Shrinkage is odd, so a negative gain passes too."""
    torch.manual_seed(0)
    built = free(ScnNetwork((2, 2), atoms=16))
    low = noise(1, 1, 20, 20)
    with torch.no_grad():
        left, right = built(gain * low + 3), gain * built(low) + 3
    assert float((left - right).abs().max()) < 2e-5 * abs(gain) + 2e-6


def test_published_keeps_flat_fields_and_gain_but_no_offset():
    built = free(ScnNetwork((2, 2), atoms=16, published=True))
    laws.flat_stays_flat(built, (9, 9))
    low = noise(1, 1, 20, 20)
    laws.commutes_with_line(built, low, 3.0, 0.0)
    with pytest.raises(AssertionError, match="change the picture"):
        laws.commutes_with_line(built, low, 1.0, 2.0)
    stages = built.stages(gain=1.7, offset=-0.3)
    with torch.no_grad():
        expected = (built(low * 1.7 - 0.3) + 0.3) / 1.7
        torch.testing.assert_close(stages.last(stages.rise(stages.body(stages.entry(low)))), expected)


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_gradients_of_flat_and_half_flat_patches_are_finite(published, level):
    torch.manual_seed(0)
    built = ScnNetwork((2, 2), atoms=8, published=published)
    for low in (torch.full((1, 1, 16, 16), level), torch.full((1, 1, 16, 16), level)):
        if level == 0.3:
            low[..., 8:] += noise(1, 1, 16, 8)
        low.requires_grad_()
        built.zero_grad()
        (built(low) - 0.5).square().mean().backward()
        for name, value in [("low", low), *built.named_parameters()]:
            assert value.grad is not None
            assert torch.isfinite(value.grad).all(), name
            assert float(value.grad.abs().max()) < 1e3, name


def test_a_new_one_is_better_than_its_interpolation():
    """Edges are sharper before anything is learned, on planes of the shipped stack without most of their noise."""
    fine = functional.avg_pool2d(real_scan()[0].movedim(1, 0)[8:16], 3, 1)
    low = functional.avg_pool2d(fine, 2)
    torch.manual_seed(0)
    with torch.no_grad():
        found = (ScnNetwork((2, 2))(low) - fine).square().mean()
    assert float(found) < 0.9 * float((interpolate(low, (2, 2)) - fine).square().mean())


def test_a_volume_is_upscaled_plane_by_plane():
    low = noise(2, 1, 3, 12, 14)
    torch.manual_seed(0)
    volume = ScnNetwork((1, 2, 2), atoms=8).eval()
    planes = ScnNetwork((2, 2), atoms=8).eval()
    planes.load_state_dict(volume.state_dict())
    with torch.no_grad():
        found = volume(low)
        for z in range(3):
            torch.testing.assert_close(found[:, :, z], planes(low[:, :, z]))
    assert volume.halo == (0, *planes.halo)


@pytest.mark.parametrize("factor", [(2, 1, 1), (4, 1, 1), (2, 2, 2)])
def test_z_is_refused_early(factor):
    with pytest.raises(ValueError, match="To refine along z, use another method"):
        ScnNetwork(factor)
    with pytest.raises(ValidationError, match="To refine along z, use another method"):
        Recipe.model_validate({"method": {"kind": "scn", "factor": factor}, "data": {"patch": (32, 32, 32)}})
    assert ScnRecipe(factor=(1, 3, 2)).build().halo[0] == 0


def test_too_few_atoms_are_refused():
    with pytest.raises(ValueError, match="at least 4 atoms, found 2"):
        ScnNetwork((2, 2), atoms=2)


def test_autocast_changes_nothing():
    built, low = network("scn-2", 12), mammogram()[..., :24, :24]
    with torch.no_grad():
        expected = built(low)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(built(low), expected)


@pytest.mark.parametrize(
    ("name", "engine", "precision"),
    [
        ("scn-3-2", "compiled", "float32"),
        ("scn-4", "compiled", "bfloat16"),
        ("scn-1-2-2", "compiled", "bfloat16"),
        ("scn-4", "openvino", "float32"),
        ("scn-1-2-2", "openvino", "bfloat16"),
    ],
)
def test_engines_agree_in_any_precision(name, engine, precision):
    """Half precision hands the picture on in three parts, without loss."""
    if engine == "openvino":
        pytest.importorskip("openvino")
    built = network(name, 12)
    low = mammogram()[..., 40:71, 60:87] if len(built.factor) == 2 else real_scan()[..., 5:8, 80:105, 90:113]
    made = build_engine(built, EngineChoice(engine, precision, 0.0, math.inf), device=torch.device("cpu"))
    with torch.no_grad():
        expected = built(low.contiguous())
    torch.testing.assert_close(made(low), expected, atol=2e-5, rtol=0)
    torch.testing.assert_close(made(low[..., :20, :17]), built(low[..., :20, :17]).detach(), atol=2e-5, rtol=0)
