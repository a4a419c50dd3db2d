"""DFCAN: its published size, its local spectra, stacks plane by plane, and what it refuses."""

import math

import pytest
import torch

from medsr.methods import DFCAN
from medsr.methods.dfcan import POWER, TRANSFORM, FourierAttention, GlobalFourierAttention, spectral_filters
from medsr.recipe import DfcanRecipe
from tests import laws
from tests.methods_asked import mammogram, network, noise, real_scan

TINY = {"features": 8, "groups": 1, "blocks": 1, "reduction": 2}


@pytest.mark.parametrize(("factor", "count"), [((2, 2), 1_930_753), ((3, 3), 2_115_393)])
def test_parameters_of_the_paper(factor, count):
    assert sum(p.numel() for p in DFCAN(factor, published=True).parameters()) == count


def test_the_published_network_is_refused_for_tiles():
    built = DFCAN((2, 2), **TINY, published=True).eval()
    with torch.inference_mode():
        fine = built(noise(1, 1, 9, 7))
    assert fine.shape == (1, 1, 18, 14)
    assert 0 < float(fine.min()) < float(fine.max()) < 1, "the paper ends in a sigmoid"
    for ask in (lambda: built.adapt(None), built.stages):
        with pytest.raises(ValueError, match="DFCAN: expected attention over a window"):
            ask()


def test_local_spectra_are_windowed_fourier_transforms():
    """|FFT|^POWER of the windowed neighborhood of a sample; one of each pair of opposite frequencies."""
    image = noise(1, 1, 12, 12).double()
    attention = FourierAttention((3, 3), 4, 4, 9).double()
    attention.transforms = torch.cat((spectral_filters().real, spectral_filters().imag[1:]))[:, None].double()
    found = attention._power(image)[0, :, 6, 5]
    hann = torch.hann_window(TRANSFORM + 2, periodic=False, dtype=torch.float64)[1:-1]
    hood = image[0, 0, 4:9, 3:8] * (hann[:, None] * hann) / hann.sum() ** 2
    spectrum = torch.fft.fft2(hood).abs().pow(POWER)
    half = TRANSFORM // 2
    expected = [spectrum[ky, kx] for ky in range(half + 1) for kx in range(-half, half + 1) if (ky, kx) >= (0, 0)]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-6, atol=1e-9)
    assert len(expected) == attention.frequencies == (TRANSFORM**2 + 1) // 2


def test_attention_weighs_by_shape_and_not_by_contrast():
    torch.manual_seed(0)
    attention = FourierAttention((3, 3), 8, 2, 9).double()
    features = noise(1, 8, 14, 14).double() - 0.5
    with torch.inference_mode():
        weights = attention(features) / features
        for gain in (1e-4, 1e6):
            torch.testing.assert_close(attention(gain * features) / (gain * features), weights, rtol=1e-6, atol=0)
        assert float(attention(torch.zeros_like(features)).abs().max()) == 0
        assert float(weights.std(dim=(2, 3)).min()) > 0, "the weights are the same everywhere"


def test_attention_tells_wide_stripes_from_narrow_ones():
    """Inside stripes the descriptor of a channel changes with their width alone, and the weights follow."""
    torch.manual_seed(0)
    attention = FourierAttention((3, 3), 4, 1, 9)
    place = torch.arange(32)
    weights = []
    for period in (16, 3):
        image = torch.sin(2 * math.pi * (place + 0.25) / period).expand(1, 4, 32, 32)
        with torch.inference_mode():
            weights.append((attention(image) / image)[0, :, 16, 8:24])
    between = (weights[0].mean(-1) - weights[1].mean(-1)).abs()
    within = torch.stack([w.std(-1) for w in weights]).amax(0)
    assert float((between / within).max()) > 3


def test_gradients_are_finite_on_a_flat_patch():
    built = DFCAN((2, 2), **TINY)
    built(torch.full((1, 1, 12, 12), 0.3)).square().mean().backward()
    built(torch.zeros(1, 1, 12, 12)).square().mean().backward()
    assert all(bool(p.grad.isfinite().all()) for p in built.parameters() if p.grad is not None)


@pytest.mark.parametrize("published", [False, True])
def test_a_stack_is_upscaled_plane_by_plane(published):
    torch.manual_seed(0)
    flat, deep = (DFCAN(f, **TINY, published=published).eval() for f in ((2, 2), (1, 2, 2)))
    deep.load_state_dict(
        {k: v.reshape(deep.state_dict()[k].shape) for k, v in flat.state_dict().items()}
    )  # the same numbers, with an axis of one plane
    stack = real_scan()[..., 12:15, 96:126, 96:130]
    with torch.inference_mode():
        planes = torch.stack([flat(stack[:, :, z]) for z in range(3)], 2)
        torch.testing.assert_close(deep(stack), planes, rtol=0, atol=1e-5)
    assert deep.halo[0] == 0


def test_the_published_spectrum_is_that_of_the_whole_image():
    """Shifted around the edges an image has the same magnitudes, hence the same weights."""
    torch.manual_seed(0)
    attention = GlobalFourierAttention((3, 3), 4, 2).double()
    features = noise(1, 4, 12, 12).double()
    with torch.inference_mode():
        moved = attention(features.roll((3, 5), (2, 3)))
        torch.testing.assert_close(moved, attention(features).roll((3, 5), (2, 3)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_gray_levels_and_levels(half):
    built = network("dfcan-2", 12)

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


def test_z_is_not_refined():
    with pytest.raises(ValueError, match="DFCAN: expected a factor of two entries, or of three that starts with 1"):
        DFCAN((4, 1, 1), **TINY)
    with pytest.raises(ValueError, match="kind: rcan to refine z"):
        DfcanRecipe(factor=(2, 2, 2))
    assert DfcanRecipe.small((1, 2, 2)).build().factor == (1, 2, 2)
