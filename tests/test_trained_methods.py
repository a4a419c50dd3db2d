"""What every trained method of the recipe union is asked, beside the laws: it learns, and a checkpoint keeps it."""

from typing import get_args

import pytest
import torch

from medsr.card import TrainingCard
from medsr.checkpoint import build_network, load_upscaler, save_checkpoint
from medsr.methods.network import Network
from medsr.metrics import psnr_db
from medsr.recipe import Method, NetworkRecipe, Recipe
from medsr.upscaler import Staged
from tests.methods_asked import NETWORKS, noise, real_scan, sizes

UNION: tuple[type[NetworkRecipe], ...] = get_args(get_args(Method)[0])
KINDS = {kind.model_fields["kind"].default: kind for kind in UNION}


def test_every_kind_is_asked_the_laws():
    """One instance in the contract test for each method; those of an adversary share their network with another."""
    asked = {recipe.kind for recipe in NETWORKS.values()}
    assert set(KINDS) - asked <= {"srgan", "esrgan"}


@pytest.mark.parametrize("name", KINDS)
def test_it_learns_one_pair_by_heart(name):
    """Above 40 dB after 300 steps on one pair of 64 x 64 fine samples, of which cubic knows 34.9 dB."""
    torch.manual_seed(0)
    network = KINDS[name].small((2, 2)).build().train()
    high = real_scan()[:, :, 0, 64:128, 64:128]
    low = torch.nn.functional.avg_pool2d(high, 2)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    for _ in range(300):
        optimizer.zero_grad()
        (network(low) - high).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        found = psnr_db(network.eval()(low)[0, 0].numpy(), high[0, 0].numpy(), data_range=1.0)
    assert found > 40, f"{name}: {found:.2f} dB"


@pytest.mark.parametrize("name", KINDS)
def test_a_small_one_is_kept_and_found_again(name, tmp_path):
    method = KINDS[name].small((2, 2))
    torch.manual_seed(0)
    network = build_network(method).eval()
    assert isinstance(network, Network)
    assert isinstance(network, Staged)
    path = tmp_path / "best.ckpt"
    card = TrainingCard(black=(0, 0), white=(9, 9), dtype="uint16")
    save_checkpoint(path, network, Recipe(method=method), card)
    low = noise(1, 1, 24, 20)
    with torch.no_grad():
        assert torch.equal(load_upscaler(path)(low), network(low))


@pytest.mark.parametrize("name", NETWORKS)
def test_stages_are_the_network(name):
    """Cut for an engine, with edges and inside a whole halo, with a gain and an offset in the kernels."""
    torch.manual_seed(0)
    network = NETWORKS[name].build().eval()
    factor, halo = network.factor, network.halo
    low = noise(1, 1, *(n + 2 * h for n, h in zip(sizes(network), halo, strict=True)))
    gain, offset = 1.7, -0.3
    with torch.no_grad():
        expected = (network(low * gain + offset) - offset) / gain
        found = made(network.stages(gain=gain, offset=offset), low)
        assert float((found - expected).abs().max()) < 2e-5
        inner = tuple(slice(h * f, (n - h) * f) for n, h, f in zip(low.shape[2:], halo, factor, strict=True))
        parts = network.stages(edges=False, gain=gain, offset=offset)
        features = parts.body(parts.entry(low))
        lost = [(n - m) // 2 for n, m in zip(low.shape[2:], features.shape[2:], strict=True)]
        detail = parts.last(parts.rise(features))
        base = 0.0 if parts.base is None else parts.base(low)
        kept = tuple(slice(s.start - n * f, s.stop - n * f) for s, n, f in zip(inner, lost, factor, strict=True))
        whole = detail[(..., *kept)] + (base if parts.base is None else base[(..., *inner)])
        assert float((whole - expected[(..., *inner)]).abs().max()) < 2e-5


def made(stages, low):
    detail = stages.last(stages.rise(stages.body(stages.entry(low))))
    return detail if stages.base is None else detail + stages.base(low)
