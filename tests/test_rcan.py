"""RCAN: its published size, what its window changes, and what it refuses."""

import pytest
import torch

from medsr.methods import RCAN
from medsr.methods.attention import local_mean
from medsr.methods.rcan import ChannelAttention
from medsr.recipe import RcanRecipe
from tests import laws
from tests.methods_asked import mammogram, network, noise

TINY = {"features": 8, "groups": 1, "blocks": 1, "reduction": 2}


@pytest.mark.parametrize(("factor", "count"), [((4, 4), 15_592_355), ((2, 2), 15_444_643)])
def test_parameters_of_the_paper(factor, count):
    with torch.device("meta"):
        built = RCAN(factor, channels=3, published=True)
    assert sum(p.numel() for p in built.parameters()) == count


def test_the_published_network_is_refused_for_tiles():
    built = RCAN((2, 2), **TINY, published=True).eval()
    with torch.inference_mode():
        assert built(noise(1, 1, 9, 7)).shape == (1, 1, 18, 14)
    for ask in (lambda: built.adapt(None), built.stages, lambda: RCAN((2, 2), **TINY, window=None).adapt(None)):
        with pytest.raises(ValueError, match="RCAN: expected attention over a window"):
            ask()


def test_the_whole_image_decides_in_the_published_network_only():
    """Far from a change nothing changes where attention looks over a window; with the paper's everything does."""
    torch.manual_seed(0)
    low = noise(1, 1, 40, 40)
    changed = low.clone()
    changed[..., -4:] *= 3
    for published, same in ((True, False), (False, True)):
        built = RCAN((2, 2), **TINY, window=7, published=published).eval()
        with torch.inference_mode():
            near = built(changed)[..., :20] == built(low)[..., :20]
        assert bool(near.all()) is same


def test_quantitative_network_has_biases_in_its_attention_only():
    built = RCAN((2, 2), **TINY)
    biases = [name for name, _ in built.named_parameters() if "bias" in name]
    assert len(biases) == 2
    assert all("squeeze" in name or "excite" in name for name in biases)


@pytest.mark.parametrize("width", [5, 7, 9, 15, 21])
def test_local_mean_is_the_mean_over_the_window(width):
    features = noise(2, 3, 11, 17).double()
    radius = width // 2
    padded = torch.nn.functional.pad(features, (radius,) * 4, mode="replicate")
    expected = padded.unfold(2, width, 1).unfold(3, width, 1).mean((-2, -1))
    torch.testing.assert_close(local_mean(features, (width, width)), expected, rtol=0, atol=1e-14)


def test_local_mean_along_some_axes_of_a_stack():
    features = noise(1, 2, 4, 6, 5).double()
    found = local_mean(features, (1, 3, 1))
    padded = torch.nn.functional.pad(features, (0, 0, 1, 1, 0, 0), mode="replicate")
    torch.testing.assert_close(found, padded.unfold(3, 3, 1).mean(-1), rtol=0, atol=1e-14)


def test_attention_weighs_by_shape_and_not_by_contrast():
    torch.manual_seed(0)
    attention = ChannelAttention(2, 8, 2, 5).double()
    features = noise(1, 8, 12, 12).double() - 0.5
    with torch.inference_mode():
        weights = attention(features) / features
        for gain in (1e-30, 1e-6, 1e6):
            torch.testing.assert_close(attention(gain * features) / (gain * features), weights, rtol=1e-9, atol=0)
        assert float(attention(torch.zeros_like(features)).abs().max()) == 0
        assert float(weights.std(dim=(2, 3)).min()) > 0, "the weights are the same everywhere"


def test_gradients_are_finite_on_a_flat_patch():
    built = RCAN((2, 2), **TINY)
    built(torch.full((1, 1, 12, 12), 0.3)).square().mean().backward()
    assert all(bool(p.grad.isfinite().all()) for p in built.parameters() if p.grad is not None)


def test_training_starts_near_the_interpolation_even_when_deep():
    torch.manual_seed(0)
    low = mammogram()[..., :48, :48]
    deep = RCAN((2, 2), features=16, groups=4, blocks=6, reduction=4)
    with torch.inference_mode():
        detail = deep(low) - torch.nn.functional.interpolate(low, scale_factor=2, mode="bicubic")
    assert float(detail.std()) < 0.2 * float(low.std())


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_gray_levels_and_levels(half):
    built = network("rcan-2", 12)

    class Halved:
        factor, halo = built.factor, built.halo

        def __call__(self, low):
            with torch.autocast("cpu", dtype=half):
                return built(low)

    laws.gray_levels_survive(Halved())
    laws.flat_stays_flat(Halved(), (9, 9), levels=(0.7, 40.3), tolerance=1e-5)
    low = mammogram()[..., :64, :64]
    with torch.inference_mode():
        assert float((Halved()(low) - built(low)).abs().max()) < 5e-3


@pytest.mark.parametrize(
    ("change", "match"),
    [({"factor": (1, 1)}, "one above 1"), ({"groups": 0}, "counts of at least 1"), ({"window": 6}, "odd window")],
)
def test_what_cannot_be_built_is_refused(change, match):
    with pytest.raises(ValueError, match=match):
        RCAN(**{"factor": (2, 2), **TINY, **change})


def test_the_recipe_refuses_an_even_window():
    with pytest.raises(ValueError, match="expected an odd width"):
        RcanRecipe(window=8)
