"""SRResNet: its size, symmetry, start, precision, weights and limits; the pixel shuffle."""

import copy
import io
import math

import pytest
import torch
from torch import nn

from medsr.methods import Cubic, SRResNet
from medsr.methods.shuffle import pixel_shuffle, prime_stages
from medsr.methods.srresnet import UpsamplingStage
from medsr.recipe import SrganRecipe, SrresnetRecipe
from tests import laws
from tests.methods_asked import NETWORKS, SMALL, as_method, coarse_and_fine, mammogram, network, noise, real_scan, sizes


@pytest.mark.parametrize(
    ("factor", "channels", "count"),
    [
        ((4, 4), 3, 1_547_350),
        ((4, 4), 1, 1_526_612),
        ((2, 2), 3, 1_399_637),
        ((2, 2), 1, 1_378_899),
        ((8, 8), 3, 1_695_063),
        ((8, 8), 1, 1_674_325),
    ],
)
def test_parameters_of_the_paper(factor, channels, count):
    built = SRResNet(factor, channels=channels, norm="batch")
    assert sum(p.numel() for p in built.parameters()) == count


def test_quantitative_network_has_no_bias():
    built = SRResNet((2, 2), **SMALL)
    assert not [name for name, _ in built.named_parameters() if "bias" in name]
    assert not list(built.buffers())
    assert all(m.num_parameters == 1 for m in built.modules() if isinstance(m, nn.PReLU))


def mirror_symmetric(built: SRResNet) -> SRResNet:
    """All kernels made symmetric under mirrors; those before a shuffle together with their place in the cell."""
    dims = len(built.factor)
    with torch.no_grad():
        for module in built.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                for axis in range(2, 2 + dims):
                    module.weight.copy_((module.weight + module.weight.flip(axis)) / 2)
        for stage in built.upsampling:
            shape = stage.conv.weight.shape
            weight = torch.randn(shape[0] // math.prod(stage.factor), *stage.factor, *shape[1:])
            for axis in range(dims):
                weight = (weight + weight.flip((1 + axis, 2 + dims + axis))) / 2
            stage.conv.weight.copy_(weight.reshape(shape) / 10)
    return built


@pytest.mark.parametrize("name", ["srresnet-2", "srresnet-4", "srresnet-3-2", "srresnet-1-2-2", "srresnet-4-1-1"])
def test_no_layer_shifts(name):
    """A network of mirror-symmetric kernels commutes with mirrors: every layer is centered, half-pixel exact."""
    torch.manual_seed(3)
    built = mirror_symmetric(NETWORKS[name].build()).double()
    low = noise(1, 1, *(n // 2 for n in sizes(built))).double()
    with torch.inference_mode():
        for axis in range(2, low.ndim):
            torch.testing.assert_close(built(low.flip(axis)), built(low).flip(axis), atol=1e-12, rtol=0)


def test_upsampling_starts_without_checkerboard():
    torch.manual_seed(0)
    for stage in SRResNet((3, 2), **SMALL).upsampling:
        assert isinstance(stage, UpsamplingStage)
        fine = stage(noise(1, 8, 6, 6)).detach()
        cells = fine.unflatten(3, (6, stage.factor[1])).unflatten(2, (6, stage.factor[0]))
        assert float(cells.std(dim=(3, 5)).max()) < 1e-6
        assert float(fine.std()) > 0.01


def test_training_starts_near_the_interpolation():
    torch.manual_seed(0)
    low, high = coarse_and_fine((2, 2), (128, 128), 4, torch.Generator().manual_seed(0))
    with torch.inference_mode():
        new = SRResNet((2, 2), features=16, blocks=8)(low)
    assert psnr(new, high) > psnr(Cubic((2, 2))(low), high) - 1


def psnr(estimate: torch.Tensor, truth: torch.Tensor) -> float:
    return -10 * math.log10(float(((estimate - truth) ** 2).mean()))


@pytest.mark.parametrize(("norm", "blocks", "width"), [("none", 2, 3), ("batch", 3, 5)])
def test_learns_one_pair_by_heart(norm, blocks, width):
    """300 steps on one real 64 x 64 patch: above 40 dB (and far above cubic)."""
    torch.manual_seed(0)
    plane = real_scan()[:, 0, 12:13]
    high = plane[..., 96:160, 96:160]
    low = nn.functional.avg_pool2d(high, 2)
    built = SRResNet((2, 2), features=32, blocks=blocks, norm=norm, head_kernel=width, tail_kernel=width)
    optimizer = torch.optim.Adam(built.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=300)
    for _ in range(300):
        optimizer.zero_grad()
        loss = ((built(low) - high) ** 2).mean()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.inference_mode():
        assert psnr(built.eval()(low), high) > 40
        assert psnr(Cubic((2, 2))(low), high) < 32


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("how", ["autocast", "weights"])
def test_half_precision_keeps_gray_levels_and_levels(half, how):
    built = copy.deepcopy(network("srresnet-2", 12))
    precise = copy.deepcopy(built)
    if how == "weights":
        built = built.to(half)

    def run(low):
        with torch.autocast("cpu", dtype=half, enabled=how == "autocast"):
            return built(low)

    wrapped = as_method((2, 2), run)
    laws.gray_levels_survive(wrapped)
    laws.flat_stays_flat(wrapped, (9, 9), levels=(0.7, 40.3), tolerance=1e-5)
    low = mammogram()[..., :64, :64] + 10
    with torch.inference_mode():
        assert run(low).dtype == torch.float32
        assert float((run(low) - precise(low)).abs().max()) < 5e-3


def test_last_layer_and_sum_are_float32_under_autocast():
    built = network("srresnet-2", 0)
    seen = {}
    handles = [
        built.body[0].first[0].register_forward_hook(lambda _m, _i, out: seen.update(body=out.dtype)),
        built.upsampling[0].register_forward_hook(lambda _m, _i, out: seen.update(up=out.dtype)),
    ]
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert built(noise(1, 1, 8, 8)).dtype == torch.float32
        detail = built._detail(noise(1, 1, 8, 8))
    for handle in handles:
        handle.remove()
    assert seen == {"body": torch.bfloat16, "up": torch.bfloat16}
    assert float((detail.bfloat16() == detail).float().mean()) < 0.1, "the last layer was computed in half precision"


def test_the_network_of_the_paper_comes_from_a_recipe():
    for kind in (SrresnetRecipe, SrganRecipe):
        built = kind(factor=(4, 4), norm="batch", published=True).build()
        assert not built.residual
        assert sum(p.numel() for p in built.parameters()) == 1_526_612
        assert kind(factor=(4, 4), norm="batch").build().residual
        with pytest.raises(ValueError, match="published: expected norm: batch"):
            kind(factor=(4, 4), published=True)


def test_published_network_has_neither_skip_nor_blindness():
    torch.manual_seed(0)
    built = SRResNet((2, 2), **SMALL, norm="batch", residual=False).eval()
    low = noise(1, 1, 12, 12)
    with torch.inference_mode():
        assert float((built(low + 1) - built(low) - 1).abs().max()) > 0.1
    bias_free = SRResNet((2, 2), **SMALL, residual=False)
    with torch.inference_mode():
        torch.testing.assert_close(bias_free(3 * low), 3 * bias_free(low), atol=1e-5, rtol=0)


def test_batch_norm_is_refused_in_training_mode():
    built = SRResNet((2, 2), **SMALL, norm="batch")
    with pytest.raises(ValueError, match=r"expected eval mode.*network\.eval\(\)"):
        built.adapt(None)
    assert built.eval().adapt(None) is built
    assert SRResNet((2, 2), **SMALL).train().adapt(None)


@pytest.mark.parametrize("name", ["srresnet-4", "batch-1-2-2"])
def test_weights_travel_as_plain_tensors(name):
    built = network(name, 12)
    state = built.state_dict()
    assert all(type(value) is torch.Tensor for value in state.values())
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    other = NETWORKS[name].build().eval()
    other.load_state_dict(torch.load(file, weights_only=True))
    low = noise(1, 1, *(9,) * len(built.factor))
    with torch.inference_mode():
        assert torch.equal(other(low), built(low))


@pytest.mark.parametrize("name", ["srresnet-4", "srresnet-1-2-2", "batch-2"])
def test_compiles_whole_and_exports(name):
    built = network(name, 0)
    low = noise(2, 1, *(15,) * len(built.factor))
    with torch.inference_mode():
        expected = built(low)
    graph = torch.compile(built, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(graph(low), expected, atol=1e-6, rtol=0)
    torch.compiler.reset()
    free = {0: torch.export.Dim.DYNAMIC} | dict.fromkeys(range(2, low.ndim), torch.export.Dim.DYNAMIC)
    exported = torch.export.export(built, (low,), dynamic_shapes=(free,)).module()
    other = noise(3, 1, *(19,) * len(built.factor))
    with torch.no_grad():
        torch.testing.assert_close(exported(other), built(other), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"factor": (2,)}, "two or three entries"),
        ({"factor": (1, 1)}, "one above 1"),
        ({"factor": (2, 0)}, "whole numbers"),
        ({"factor": (2, 2), "norm": "instance"}, "'none' or 'batch', found 'instance'"),
        ({"factor": (2, 2), "tail_kernel": 4}, "odd kernel widths"),
        ({"factor": (2, 2), "head_kernel": 1}, "at least 3"),
        ({"factor": (2, 2), "blocks": 0}, "at least 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(arguments, problem):
    with pytest.raises(ValueError, match=problem):
        SRResNet(**arguments)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_keeps_levels_and_gray_levels():
    """TF32 is on for convolutions by default; neither the levels nor the last layer may feel it."""
    built = copy.deepcopy(network("srresnet-2", 12)).cuda()
    wrapped = as_method((2, 2), lambda low: built(low.cuda()).cpu())
    before = torch.backends.cudnn.conv.fp32_precision
    laws.gray_levels_survive(wrapped)
    laws.flat_stays_flat(wrapped, (9, 9), levels=(0.7, 40.3), tolerance=1e-5)
    laws.commutes_with_line(wrapped, noise(1, 1, 20, 20), 1.0, 40.0)
    assert torch.backends.cudnn.conv.fp32_precision == before


# ---------------------------------------------------------------- stages

CUTS = [
    ((2, 2), {}),
    ((3, 3), {}),
    ((4, 4), {"norm": "batch"}),
    ((4, 4), {"residual": False}),
    ((2, 4), {"norm": "batch", "residual": False}),
    ((2, 4), {"tail_kernel": 1, "blocks": 5}),
    ((1, 2, 2), {"head_kernel": 3, "tail_kernel": 5}),
    ((1, 2, 2), {"norm": "batch", "head_kernel": 3, "tail_kernel": 3}),
    ((2, 2, 2), {"head_kernel": 5, "tail_kernel": 3}),
]


def trained_like(factor, **settings) -> SRResNet:
    """Random weights as far from their start as training leaves them: slopes, biases and statistics differ."""
    torch.manual_seed(5)
    built = SRResNet(factor, **{**SMALL, **settings}).eval()
    with torch.no_grad():
        for module in built.modules():
            if isinstance(module, nn.PReLU):
                module.weight.uniform_(0.05, 0.6)
            elif isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
            elif isinstance(module, (nn.Conv2d, nn.Conv3d)):
                module.weight.add_(torch.randn_like(module.weight) * module.weight.std() / 2)
                if module.bias is not None:
                    module.bias.normal_(0, 0.02)
    return built


def composed(stages, low):
    features = stages.body(stages.entry(low))
    lost = (low.shape[2] - features.shape[2]) // 2
    low = low[(..., *(slice(lost, n - lost) for n in low.shape[2:]))]
    detail = stages.last(stages.rise(features))
    return detail if stages.base is None else detail + stages.base(low)


@pytest.mark.parametrize(("factor", "settings"), CUTS)
def test_stages_together_are_the_network(factor, settings):
    built = trained_like(factor, **settings)
    margin = 3
    for size in ((17, 14), (2, 1)) if len(factor) == 2 else ((9, 10, 11), (1, 2, 3)):
        low = noise(2, 1, *size)
        with torch.inference_mode():
            expected = built(low)
            assert float((expected - Cubic(factor)(low)).std()) > 1e-3, "the network adds nothing"
            torch.testing.assert_close(composed(built.stages(), low), expected, atol=1e-5, rtol=0)
            line = built.stages(gain=-0.6, offset=1.3)
            converted = (built(low * -0.6 + 1.3) - 1.3) / -0.6
            torch.testing.assert_close(composed(line, low), converted, atol=1e-5, rtol=0)
    low = noise(1, 1, *(2 * h + margin for h in built.halo))
    with torch.inference_mode():
        found, expected = composed(built.stages(edges=False), low), built(low)
    for axis, (h, f) in enumerate(zip(built.halo, factor, strict=True), start=2):
        lost = (expected.shape[axis] - found.shape[axis]) // 2
        found = found.narrow(axis, h * f - lost, margin * f)
        expected = expected.narrow(axis, h * f, margin * f)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("factor", "settings"), CUTS)
@pytest.mark.parametrize("edges", [True, False])
def test_rise_halo_is_exact(factor, settings, edges):
    """What lies beyond the halo of a cell changes nothing in it; what lies on the halo's rim does."""
    stages = trained_like(factor, **settings).stages(edges=edges)
    for axis, reach in enumerate(stages.rise_halo):
        size = [2 * r + 5 for r in stages.rise_halo]
        center = size[axis] // 2
        features, low = noise(1, 8, *size), noise(1, 1, *size)
        for side in (-1, 1):
            for distance, felt in ((reach + 1, False), (reach, reach > 0)):
                moved = [part.clone() for part in (features, low)]
                for part in moved:
                    part.select(2 + axis, center + side * distance).add_(1)
                with torch.inference_mode():
                    before, after = (
                        (stages.last(stages.rise(f)) + (0 if stages.base is None else stages.base(b))).narrow(
                            2 + axis, center * factor[axis], factor[axis]
                        )
                        for f, b in ((features, low), moved)
                    )
                assert (not torch.equal(before, after)) is felt


def test_stages_are_frozen_copies_in_float32():
    built = trained_like((2, 2), norm="batch").bfloat16()
    stages = built.stages()
    parts = (stages.entry, stages.body, stages.rise, stages.last, stages.base)
    assert {p.dtype for part in parts for p in part.parameters()} == {torch.float32}
    own = {p.data_ptr() for p in built.parameters()}
    assert not [p for part in parts for p in part.parameters() if p.requires_grad or p.data_ptr() in own]
    before = stages.base(torch.zeros(1, 1, 9, 9))
    stages.rise.double()
    assert torch.equal(stages.base(torch.zeros(1, 1, 9, 9)), before), "the base shares layers with the rise"
    with pytest.raises(ValueError, match="expected eval mode"):
        built.train().stages()


# ---------------------------------------------------------------- shuffle


def test_pixel_shuffle():
    features = noise(2, 12, 3, 4)
    assert torch.equal(pixel_shuffle(features, (2, 2)), nn.PixelShuffle(2)(features))
    features = noise(2, 5 * 2 * 3, 2, 3, 4)
    fine = pixel_shuffle(features, (2, 1, 3))
    assert fine.shape == (2, 5, 4, 3, 12)
    assert torch.equal(fine[:, 3, 1::2, :, 2::3], features[:, 3 * 6 + 1 * 3 + 2])


@pytest.mark.parametrize(
    ("factor", "stages"),
    [
        ((4, 4), ((2, 2), (2, 2))),
        ((1, 2, 2), ((1, 2, 2),)),
        ((4, 1, 1), ((2, 1, 1), (2, 1, 1))),
        ((3, 3), ((3, 3),)),
        ((2, 4), ((2, 2), (1, 2))),
        ((6, 2), ((2, 2), (3, 1))),
    ],
)
def test_prime_stages(factor, stages):
    assert prime_stages(factor) == stages
