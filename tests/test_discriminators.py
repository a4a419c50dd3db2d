"""Discriminators: the published sizes, any patch, the gradient, and that they learn."""

import pytest
import torch
from torch import nn

from medsr.methods import Cubic, PatchDiscriminator, SrganDiscriminator
from tests.methods_asked import coarse_and_fine, noise


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_discriminators_have_the_published_size():
    assert parameters(SrganDiscriminator(2, channels=3, patch=(96, 96))) == 23_563_649
    assert parameters(SrganDiscriminator(2, patch=(96, 96))) == 23_562_497
    assert parameters(PatchDiscriminator(2, channels=3, norm="batch")) == 2_765_633


PATCHES = [(96, 96), (32, 32), (16, 16), (8, 8), (33, 17), (24, 24, 24), (4, 32, 32), (1, 16, 16)]


@pytest.mark.parametrize("norm", ["batch", "spectral", "none"])
@pytest.mark.parametrize("patch", PATCHES, ids=str)
def test_discriminators_judge_any_patch(patch, norm):
    images = noise(2, 1, *patch).requires_grad_()
    for judge in (
        SrganDiscriminator(len(patch), features=4, patch=patch, norm=norm),
        SrganDiscriminator(len(patch), features=4, norm=norm),
        PatchDiscriminator(len(patch), features=4, patch=patch, norm=norm),
    ):
        logits = judge(images)
        assert logits.shape[:2] == (2, 1)
        assert logits.ndim == (2 if isinstance(judge, SrganDiscriminator) else len(patch) + 2)
        features = judge.features(images)
        assert len(features) == (8 if isinstance(judge, SrganDiscriminator) else 4)
        assert min(float(f.detach().min()) for f in features) < 0, "a leaky rectifier lets some of the negative through"
        (gradient,) = torch.autograd.grad(logits.sum() + sum(f.square().sum() for f in features), images)
        assert float(gradient.abs().max()) > 0


def test_patch_discriminator_sees_70_samples():
    judge = PatchDiscriminator(2, features=4, norm="none").double()
    images = noise(1, 1, 128, 128).double().requires_grad_()
    logits = judge(images)
    assert logits.shape == (1, 1, 14, 14)
    (gradient,) = torch.autograd.grad(logits[0, 0, 7, 7], images)
    used = torch.nonzero(gradient[0, 0].abs().amax(1)).flatten()
    assert int(used.max() - used.min()) + 1 == 70


def test_spectral_norm_bounds_the_judge():
    torch.manual_seed(0)
    judge = PatchDiscriminator(2, features=8)
    for _ in range(30):
        judge(noise(1, 1, 32, 32))
    for module in judge.modules():
        if isinstance(module, nn.Conv2d):
            assert float(torch.linalg.matrix_norm(module.weight.detach().flatten(1), 2)) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("kind", [SrganDiscriminator, PatchDiscriminator])
def test_discriminators_learn_to_tell(kind):
    """Real fine patches against interpolated coarse ones: 100 steps bring the loss well below chance, 2 log 2."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    judge = kind(2, features=8, patch=(32, 32))
    optimizer = torch.optim.Adam(judge.parameters(), 1e-3)
    losses = []
    for _ in range(100):
        low, high = coarse_and_fine((4, 4), (32, 32), 8, generator)
        real, fake = judge(high), judge(Cubic((4, 4))(low))
        loss = nn.functional.softplus(-real).mean() + nn.functional.softplus(fake).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-20:]) / 20 < 1.2


def test_discriminators_refuse_what_they_cannot_judge():
    with pytest.raises(ValueError, match=r"expected patches of \(32, 32\), found \(16, 16\)"):
        SrganDiscriminator(2, features=4, patch=(32, 32))(noise(1, 1, 16, 16))
    with pytest.raises(ValueError, match="2 or 3 dimensions, found 1"):
        PatchDiscriminator(1)
    with pytest.raises(ValueError, match="a patch of 3 sizes"):
        SrganDiscriminator(3, patch=(32, 32))
    with pytest.raises(ValueError, match="found 'instance'"):
        PatchDiscriminator(2, norm="instance")
