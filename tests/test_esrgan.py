"""ESRGAN: the published sizes, the equalities, the U-Net that judges, and a short game on a shipped sample."""

import copy

import pytest
import torch
from torch import nn

from medsr.checkpoint import load_checkpoint, load_upscaler
from medsr.methods import Cubic, RRDBNet, UnetDiscriminator
from medsr.methods.rrdb import published_names, repeated
from medsr.recipe import EsrganRecipe, Recipe
from medsr.training import train
from medsr.training.phases import build_discriminator
from tests import laws
from tests.methods_asked import coarse_and_fine, mammogram, noise


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def tiny(factor=(2, 2), **settings) -> RRDBNet:
    torch.manual_seed(0)
    return RRDBNet(factor, **{"features": 6, "blocks": 2, "growth": 3, **settings}).eval()


# ---------------------------------------------------------------- the network


def test_the_published_network_has_its_size():
    with torch.device("meta"):
        assert parameters(RRDBNet((4, 4), channels=3, published=True)) == 16_697_987
        assert parameters(RRDBNet((4, 4), channels=3, blocks=6, published=True)) == 4_467_779
        assert parameters(RRDBNet((4, 4), published=True)) == 16_695_681
        assert parameters(RRDBNet((4, 4), features=32, blocks=8, growth=16, published=True)) == 1_477_601
        assert parameters(RRDBNet((4, 4))) == parameters(RRDBNet((4, 4), published=True)) - biases((4, 4))


def biases(factor) -> int:
    return sum(p.numel() for n, p in RRDBNet(factor, published=True).named_parameters() if n.endswith("bias"))


def test_the_published_layers_by_hand():
    """The layers of figure 4, written down once more with torch's own modules."""
    network = tiny((4, 4), channels=3, published=True)
    weights = network.state_dict()
    conv = nn.functional.conv2d

    def layer(name, x):
        return conv(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)

    def leaky(x):
        return nn.functional.leaky_relu(x, 0.2)

    low = noise(1, 3, 9, 7)
    first = layer("conv_first", low)
    x = first
    for block in range(2):
        outer = x
        for dense in (1, 2, 3):
            seen, own = [x], f"body.{block}.rdb{dense}"
            for number in range(1, 5):
                seen.append(leaky(layer(f"{own}.conv{number}", torch.cat(seen, 1))))
            x = x + 0.2 * layer(f"{own}.conv5", torch.cat(seen, 1))
        x = outer + 0.2 * x
    x = first + layer("conv_body", x)
    for number in (1, 2):
        x = leaky(layer(f"conv_up{number}", nn.functional.interpolate(x, scale_factor=2, mode="nearest")))
    expected = layer("conv_last", leaky(layer("conv_hr", x)))
    with torch.no_grad():
        assert float((network(low) - expected).abs().max()) < 1e-5


@pytest.mark.parametrize("factor", [(2, 2), (6, 1), (1, 2, 2)])
def test_the_published_halo_is_exact(factor):
    network = tiny(factor, features=2, blocks=1, growth=1, published=True).double()
    laws.halo_is_exact(network, tuple(2 * h + 4 for h in network.halo))


@pytest.mark.parametrize("published", [False, True])
def test_tiles_are_the_whole(published):
    network = tiny((2, 2), blocks=1, published=published)
    low = mammogram()[..., :70, :61]
    for tile in laws.tile_sizes((70, 61)):
        laws.tiled_equals_whole(network, low, tile)


@pytest.mark.parametrize("edges", [True, False])
def test_stages_of_the_published_network(edges):
    """With its biases and zeros, on the line of another scan too."""
    network = tiny((4, 2), blocks=1, published=True)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        low, gain, offset = noise(1, 1, 14, 11), 1.7, -0.3
        stages = network.stages(edges=edges, gain=gain, offset=offset)
        assert stages.base is None
        found = stages.last(stages.rise(stages.body(stages.entry(low))))
        assert float((found - (network(low * gain + offset) - offset) / gain).abs().max()) < 1e-5


def test_a_new_network_adds_little_to_the_interpolation():
    """The dense blocks start small, and so does the last convolution."""
    low = mammogram()[..., :64, :64]
    with torch.no_grad():
        detail = tiny((2, 2), features=32, growth=16)(low) - Cubic((2, 2))(low)
    assert 0 < float(detail.std()) < 0.1 * float(low.std())


def test_half_precision_stays_inside():
    """Under autocast the levels are kept: a ramp of 16 bits through the network is one of 16 bits."""
    network = tiny((2, 2), blocks=1)
    low = torch.linspace(0, 1, 4096).reshape(1, 1, 1, -1).expand(1, 1, 8, -1).contiguous()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = network(low)
    with torch.no_grad():
        assert found.dtype == torch.float32
        assert float((found - network(low)).abs().max()) < 1e-5


@pytest.mark.parametrize("factor", [2, 3, 5, 7, 11, 13])
def test_repetition_is_exact_for_primes(factor):
    x = torch.arange(300.0).reshape(1, 1, 1, -1)
    assert torch.equal(repeated(x, (1, factor)), x.repeat_interleave(factor, 3))


def test_older_names_are_translated():
    network = tiny((4, 4), published=True)
    new = network.state_dict()
    old = {old_name(name, blocks=2, rises=2): value for name, value in new.items()}
    assert set(old) & set(new) == set()
    back = published_names(old)
    assert back.keys() == new.keys()
    assert all(back[name] is value for name, value in new.items())
    assert published_names(new) == new


def old_name(name: str, *, blocks: int, rises: int) -> str:
    """Where the first implementation of ESRGAN keeps a layer: each layer is counted, activations too."""
    layer, kind = name.rsplit(".", 1)
    parts = layer.split(".")
    if parts[0] == "body":
        return f"model.1.sub.{parts[1]}.{parts[2].upper()}.{parts[3]}.0.{kind}"
    places = {"conv_first": "0", "conv_body": f"1.sub.{blocks}", "conv_hr": str(3 * rises + 2)}
    places["conv_last"] = str(3 * rises + 4)
    places |= {f"conv_up{n}": str(3 * n) for n in range(1, rises + 1)}
    return f"model.{places[layer]}.{kind}"


def test_impossible_networks_are_refused():
    with pytest.raises(ValueError, match="two or three entries with one above 1"):
        RRDBNet((1, 1))
    with pytest.raises(ValueError, match="of at least 1, found 0"):
        RRDBNet((2, 2), blocks=0)


# ---------------------------------------------------------------- the discriminator


def test_the_discriminator_has_the_published_size():
    assert parameters(UnetDiscriminator(2, channels=3)) == 4_376_897
    assert parameters(UnetDiscriminator(2)) == 4_375_745


@pytest.mark.parametrize("norm", ["batch", "spectral", "none"])
@pytest.mark.parametrize(
    "patch", [(32, 32), (16, 16), (8, 8), (33, 17), (5, 7), (24, 24, 24), (4, 32, 32), (1, 16, 16)]
)
def test_it_judges_every_sample_of_any_patch(patch, norm):
    images = noise(2, 1, *patch).requires_grad_()
    judge = UnetDiscriminator(len(patch), features=4, patch=patch, norm=norm)
    logits = judge(images)
    assert logits.shape == images.shape
    features = judge.features(images)
    assert len(features) == 9
    assert torch.equal(judge.eval().verdict(judge.features(images)), judge(images))
    (gradient,) = torch.autograd.grad(logits.sum() + sum(f.square().sum() for f in features), images)
    assert float(gradient.abs().max()) > 0


def test_it_judges_other_sizes_than_it_was_made_for():
    judge = UnetDiscriminator(2, features=4, patch=(32, 32))
    for size in ((32, 32), (64, 48), (35, 57)):
        assert judge(noise(1, 1, *size)).shape == (1, 1, *size)


def test_all_but_the_first_and_last_layers_are_bounded():
    torch.manual_seed(0)
    judge = UnetDiscriminator(2, features=8)
    for _ in range(30):
        judge(noise(1, 1, 32, 32))
    free = (judge.head, judge.first[0])
    bounded = [m for m in judge.modules() if isinstance(m, nn.Conv2d) and m not in free]
    assert len(bounded) == 8
    assert not any("parametrizations" in name for layer in free for name, _ in layer.named_parameters())
    for module in bounded:
        assert float(torch.linalg.matrix_norm(module.weight.detach().flatten(1), 2)) == pytest.approx(1, abs=0.05)


def test_it_learns_to_tell():
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    judge = UnetDiscriminator(2, features=8, patch=(32, 32))
    optimizer = torch.optim.Adam(judge.parameters(), 1e-3)
    losses = []
    for _ in range(140):
        low, high = coarse_and_fine((4, 4), (32, 32), 8, generator)
        real, fake = judge(high), judge(Cubic((4, 4))(low))
        loss = nn.functional.softplus(-real).mean() + nn.functional.softplus(fake).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-40:]) / 40 < 1.2  # chance: 2 log 2


def test_impossible_discriminators_are_refused():
    with pytest.raises(ValueError, match="2 or 3 dimensions, found 1"):
        UnetDiscriminator(1)
    with pytest.raises(ValueError, match="a patch of 3 sizes"):
        UnetDiscriminator(3, patch=(32, 32))
    with pytest.raises(ValueError, match="found 'instance'"):
        UnetDiscriminator(2, norm="instance")


# ---------------------------------------------------------------- the recipe and the game


def test_the_defaults_are_those_of_the_paper():
    recipe = EsrganRecipe()
    assert (recipe.features, recipe.blocks, recipe.growth) == (64, 23, 32)
    assert recipe.adversary == "relativistic"
    assert (recipe.adversarial_weight, recipe.pixel_weight, recipe.content.weight) == (5e-3, 1e-2, 1.0)
    assert recipe.pixel_loss == "l1"
    assert recipe.pixel_name == "rrdb"


@pytest.mark.parametrize(("asked", "bounded"), [("auto", True), ("none", False)])
def test_the_recipe_builds_the_u_net(asked, bounded):
    recipe = EsrganRecipe(discriminator="unet", discriminator_norm=asked, discriminator_features=4)
    judge = build_discriminator(recipe, (32, 32))
    assert isinstance(judge, UnetDiscriminator)
    assert any("parametrizations" in name for name, _ in judge.named_parameters()) == bounded


def test_a_short_game_with_the_u_net(tmp_path):
    """Pixels, then the game, on a shipped sample: weights that change, and know what they came from."""
    recipe = Recipe.model_validate({
        "method": {
            "kind": "esrgan", "factor": (2, 2), "features": 6, "blocks": 1, "growth": 3, "discriminator": "unet",
            "discriminator_features": 4,
        },
        "data": {"sample": "nuclei", "patch": (32, 32), "validation_crops": 1, "foreground": 0.0},
        "degradation": {
            "fwhm_samples": (0.2, 1.0), "photons": (500, 2000),
            "second": {"fwhm_samples": (0.0, 0.6), "read_noise": (0.0, 0.01), "ringing": (0.8, 1.0)},
        },
        "training": {
            "pixel_steps": 4, "adversarial_steps": 4, "batch": 2, "validate_every_steps": 2, "device": "cpu",
            "ema": 0.0,
        },
        "seed": 1,
        "out": tmp_path / "run",
    })  # fmt: skip
    run = train(recipe)
    pixel, best = load_checkpoint(run / "pixel.ckpt"), load_checkpoint(run / "best.ckpt")
    assert pixel.card.parents == ()
    assert best.card.parents == (pixel.sha256,)
    assert best.card.steps == {"pixel": 4, "adversarial": 4}
    before, after = pixel.network.state_dict(), best.network.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before)
    upscaler = load_upscaler(run)
    assert repr(upscaler).startswith("esrgan x2,2")
    assert repr(load_upscaler(run / "pixel.ckpt")).startswith("rrdb x2,2")
    laws.flat_stays_flat(upscaler, (9, 8))


def test_weights_a_run_starts_from_are_its_parents(tmp_path):
    plain = {
        "method": {"kind": "rrdb", "features": 4, "blocks": 1, "growth": 2},
        "data": {"sample": "nuclei", "patch": (32, 32), "validation_crops": 1, "foreground": 0.0},
        "training": {"pixel_steps": 2, "batch": 1, "validate_every_steps": 1, "device": "cpu"},
        "out": tmp_path / "first",
    }
    first = train(Recipe.model_validate(plain))
    training = {**plain["training"], "start": first}
    second = train(Recipe.model_validate({**plain, "training": training, "out": tmp_path / "second"}))
    start = load_checkpoint(first / "best.ckpt").sha256
    assert load_checkpoint(second / "best.ckpt").card.parents == (start,)
    assert load_checkpoint(second / "last.ckpt").card.parents == (start,)


def test_the_network_is_copied_with_its_halo():
    network = tiny((3, 2))
    assert copy.deepcopy(network).halo == network.halo
    assert "features=6, blocks=2, growth=3" in repr(network)
