"""ESPCN, FSRCNN and the fast network: the papers' counts, the deconvolution's sums and places, engines, cost."""

import json
import math

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from medsr.engines import EngineChoice, build_engine
from medsr.methods import EspcnNetwork, FastNetwork, FsrcnnNetwork, SRResNet
from medsr.methods.coarse import Deconvolution
from medsr.methods.interpolation import interpolate
from medsr.methods.shuffle import pixel_shuffle
from medsr.recipe import EspcnRecipe, FastRecipe, FsrcnnRecipe
from tests.methods_asked import mammogram, network, noise
from tests.test_benchmarks import rows_of, run

SMALL = {
    "espcn": EspcnNetwork((2, 2)),
    "fsrcnn": FsrcnnNetwork((2, 2)),
    "fast": FastNetwork((2, 2), features=8, blocks=2),
}


def count(module, *, least_axes=0):
    return sum(p.numel() for p in module.parameters() if p.ndim >= least_axes)


# ---------------------------------------------------------------- the papers' networks


@pytest.mark.parametrize(("factor", "parameters"), [(2, 21_284), (3, 22_729), (4, 24_752)])
def test_published_espcn_has_the_papers_count(factor, parameters):
    assert count(EspcnNetwork((factor, factor), published=True)) == parameters


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_published_fsrcnn_has_the_papers_count_of_weights(factor):
    """12,464 are the weights of the convolutions; biases and slopes come on top."""
    built = FsrcnnNetwork((factor, factor), published=True)
    assert count(built, least_axes=4) == 12_464
    assert count(built) == 12_464 + 173 + 172


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_published_fsrcnn_is_its_layers(factor):
    """Far from the edges, the layers of the paper one by one, with torch's own transposed convolution."""
    torch.manual_seed(1)
    built = FsrcnnNetwork((factor, factor), published=True).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.copy_(0.2 * torch.randn_like(parameter))
        low = noise(1, 1, 24, 24)
        features = functional.conv2d(low, built.head.weight, built.head.bias, padding=2)
        for layer in built.body:
            if isinstance(layer, torch.nn.Conv2d):
                features = functional.conv2d(features, layer.weight, layer.bias, padding=layer.kernel_size[0] // 2)
            else:
                features = functional.prelu(features, layer.weight)
        expected = functional.conv_transpose2d(
            features, built.tail.weight, built.tail.bias, stride=factor, padding=4, output_padding=factor - 1
        )
        inner = (..., slice(8 * factor, 16 * factor), slice(8 * factor, 16 * factor))
        torch.testing.assert_close(built(low)[inner], expected[inner], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [EspcnNetwork, FsrcnnNetwork])
def test_published_stages_carry_gain_and_offset(kind):
    torch.manual_seed(0)
    built = kind((2, 2), published=True).eval()
    low = noise(1, 1, 20, 21)
    with torch.no_grad():
        stages = built.stages(gain=1.7, offset=-0.3)
        found = stages.last(stages.rise(stages.body(stages.entry(low))))
        torch.testing.assert_close(found, (built(low * 1.7 - 0.3) + 0.3) / 1.7, rtol=0, atol=2e-5)
    assert stages.base is None


# ---------------------------------------------------------------- the deconvolution


@pytest.mark.parametrize(("factor", "width"), [(2, 10), (3, 9), (4, 10), (5, 9), (2, 2), (7, 9)])
def test_a_deconvolution_is_a_transposed_convolution(factor, width):
    layer = Deconvolution((factor, factor), 3, (width, width), bias=False)
    torch.nn.init.normal_(layer.weight)
    features = torch.randn(1, 3, 11, 11)
    kernel, _ = layer.folded(torch.float32)
    assert kernel.shape == (factor**2, 3, *(2 * r + 1 for r in layer.reach))
    found = pixel_shuffle(functional.conv2d(features, kernel), layer.factor)
    whole = functional.conv_transpose2d(features, layer.weight, stride=factor)
    first, ends = layer.first[0], layer.reach[0]
    inner = slice(first + ends * factor, first + (11 - ends) * factor)
    torch.testing.assert_close(found, whole[..., inner, inner], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("factor", [(2, 2), (3, 3), (4, 3), (1, 2, 2), (9, 8), (5, 1)])
def test_a_deconvolution_puts_samples_where_the_grid_says(factor):
    """A kernel that is the same from both ends makes of one sample a spot around the center of its cell."""
    torch.manual_seed(0)
    layer = FsrcnnNetwork(factor, features=1, shrunk=1, mappings=0).tail
    with torch.no_grad():
        layer.weight.copy_(layer.weight.normal_() + layer.weight.flip(list(range(2, layer.weight.ndim))))
        one = torch.zeros(1, 1, *(9,) * len(factor))
        one[(0, 0, *(4,) * len(factor))] = 1
        convolve = functional.conv2d if one.ndim == 4 else functional.conv3d
        spot = pixel_shuffle(convolve(one, layer.folded(torch.float32)[0], padding=layer.reach), factor)
    torch.testing.assert_close(spot, spot.flip(list(range(2, spot.ndim))))
    assert float(spot.sum()) == pytest.approx(float(layer.weight.detach().sum()), rel=1e-4, abs=1e-4), "taps are lost"


def test_a_kernel_off_the_center_is_refused():
    with pytest.raises(ValueError, match="even where it is even"):
        Deconvolution((2, 2), 3, (9, 9), bias=False)
    with pytest.raises(ValueError, match="at least the factor"):
        Deconvolution((4, 4), 3, (2, 2), bias=False)


# ---------------------------------------------------------------- as they are made


@pytest.mark.parametrize("name", SMALL)
def test_a_new_one_is_near_the_interpolation_without_a_lattice(name):
    built, low = SMALL[name], mammogram()[..., :40, :40]
    with torch.no_grad():
        detail = built(low) - interpolate(low, (2, 2))
    assert 0 < float(detail.std()) < 0.3 * float(low.std())
    cells = detail.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
    assert float((cells.amax(-1) - cells.amin(-1)).max()) < 1e-6


@pytest.mark.parametrize("name", SMALL)
def test_half_precision_inside_keeps_the_gray_levels(name):
    built, low = SMALL[name], mammogram()[..., :40, :40]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = built(low)
    assert found.dtype == torch.float32
    assert not torch.equal(found.bfloat16().float(), found)
    with torch.no_grad():
        assert 0 < float((found - built(low)).abs().max()) < 0.02


@pytest.mark.parametrize(
    ("name", "engine", "precision"),
    [
        ("espcn-1-2-2", "compiled", "float32"),
        ("fsrcnn-2", "compiled", "bfloat16"),
        ("fast-4", "compiled", "bfloat16"),
        ("fsrcnn-2", "openvino", "float32"),
        ("fast-1-2-2", "openvino", "float32"),
    ],
)
def test_engines_agree(name, engine, precision):
    if engine == "openvino":
        pytest.importorskip("openvino")
    built = network(name, 12)
    low = noise(2, 1, *(2 * h + 5 for h in built.halo))
    made = build_engine(built, EngineChoice(engine, precision, 0.0, math.inf), device=torch.device("cpu"))
    with torch.no_grad():
        expected = built(low)
    torch.testing.assert_close(made(low), expected, atol=1e-5 if precision == "float32" else 0.02, rtol=0)
    keep = tuple(slice(h * f, (h + 5) * f) for h, f in zip(built.halo, built.factor, strict=True))
    torch.testing.assert_close(made(low, keep), made(low)[(..., *keep)], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: EspcnNetwork((1, 1)), "one above 1"),
        (lambda: EspcnNetwork((2, 2), features=(0, 4)), "at least 1, found"),
        (lambda: FsrcnnNetwork((2,)), "two or three entries"),
        (lambda: FsrcnnNetwork((2, 2), mappings=-1), "0 mappings"),
        (lambda: FastNetwork((2, 2), blocks=0), "1 block, found 32 and 0"),
    ],
)
def test_what_cannot_be_made_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_recipes_build_what_they_say():
    assert repr(EspcnRecipe(published=True).build()) == "EspcnNetwork((2, 2), features=(64, 32), published=True)"
    assert "shrunk=16, mappings=2, published=False" in repr(FsrcnnRecipe(shrunk=16, mappings=2).build())
    assert repr(FastRecipe(factor=(1, 2, 2)).build()) == "FastNetwork((1, 2, 2), features=32, blocks=4)"
    with pytest.raises(ValidationError, match="blocks"):
        FastRecipe(blocks=0)


# ---------------------------------------------------------------- what it costs


def test_fast_is_ten_times_cheaper_than_srresnet():
    """In multiply-adds of a coarse sample, both of their default sizes."""
    counted = []
    for built in (FastNetwork((2, 2)), SRResNet((2, 2))):
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            built(noise(1, 1, 16, 16))
        counts = counter.get_flop_counts()["Global"]
        counted.append(sum(n for operation, n in counts.items() if "conv" in str(operation)))
    assert 10 * counted[0] <= counted[1]


def test_the_benchmark(tmp_path):
    done = run("fast.py", "--size", 32, "--rounds", 1, "--engines", "torch", "--json", tmp_path / "raw.json")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = rows_of(done.stdout)
    assert float(rows["srresnet, 16 blocks"][1]) >= 10
    assert rows["fast"][1::2] == ["1.00", "1.00"]
    raw = json.loads((tmp_path / "raw.json").read_text())[0]["rounds"]
    assert raw["srresnet, 16 blocks"][0]["nanoseconds"] > 3 * raw["fast"][0]["nanoseconds"]
