"""Blending: the line between two checkpoints, its ends bit for bit, and what may not be blended."""

import logging

import pytest
import torch

from medsr.blending import blend_checkpoints
from medsr.card import TrainingCard, TrainingInput
from medsr.checkpoint import CheckpointError, load_checkpoint, load_upscaler, save_checkpoint
from medsr.recipe import EsrganRecipe, NetworkRecipe, Recipe, RrdbRecipe, SrresnetRecipe
from tests.methods_asked import mammogram, noise

DENSE = {"features": 4, "blocks": 1, "growth": 2}
METHODS: dict[str, NetworkRecipe] = {
    "rrdb": RrdbRecipe(**DENSE),
    "srresnet": SrresnetRecipe(features=4, blocks=1),
    "batch": SrresnetRecipe(features=4, blocks=1, norm="batch"),
}


def scan(number: int) -> TrainingInput:
    return TrainingInput(name_hash=f"name{number}", sha256=f"hash{number}", shape=(9, 9))


def kept(path, method, *, seed, parents=(), **card):
    """A checkpoint of random weights."""
    torch.manual_seed(seed)
    network = method.build()
    with torch.no_grad():
        for parameter in network.parameters():  # zeros have a sign, which adding loses
            parameter.flatten()[:3] = -0.0
    for _ in range(seed):  # counts of batches differ
        network(noise(2, 1, 9, 8))
    facts = {"black": (0, 0), "white": (9, 9), "dtype": "uint16", "parents": parents, **card}
    save_checkpoint(path, network, Recipe(method=method), TrainingCard(**facts))
    return load_checkpoint(path)


@pytest.fixture(params=METHODS)
def pair(request, tmp_path):
    """A network, and one that was trained on from it."""
    method = METHODS[request.param]
    first = kept(
        tmp_path / "a.ckpt", method, seed=1, inputs=(scan(1), scan(2)), steps={"pixel": 30}, finished=True,
        spacing_um=((1.0, 1.0), None), validation={"psnr_db": 30.0},
    )  # fmt: skip
    other = EsrganRecipe(**DENSE) if request.param == "rrdb" else method
    second = kept(
        tmp_path / "b.ckpt", other, seed=2, parents=(first.sha256,), inputs=(scan(2), scan(3)), black=(-1, 0),
        steps={"pixel": 30, "adversarial": 20}, finished=True, spacing_um=((0.5, 2.0), (1.0, 1.0)),
    )  # fmt: skip
    return tmp_path, first, second


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_ends_are_the_parents_bit_for_bit(pair):
    folder, first, second = pair
    for alpha, parent in ((0, first), (1, second)):
        path = blend_checkpoints(folder / "a.ckpt", folder / "b.ckpt", alpha=alpha, out=folder / f"{alpha}.ckpt")
        found = load_checkpoint(path)
        assert same(found.network.state_dict(), parent.network.state_dict())
        assert found.sha256 == parent.sha256


def test_between_lies_the_line(pair, caplog):
    folder, first, second = pair
    with caplog.at_level(logging.WARNING):
        blend_checkpoints(folder / "a.ckpt", folder / "b.ckpt", alpha=0.8, out=folder / "c.ckpt")
    assert caplog.text == ""
    found = load_checkpoint(folder / "c.ckpt").network.state_dict()
    a, b = first.network.state_dict(), second.network.state_dict()
    for name, value in found.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, 0.2 * a[name] + 0.8 * b[name], rtol=1e-6, atol=1e-8)
        else:
            assert torch.equal(value, b[name])


def test_the_card_says_what_was_blended(pair):
    folder, first, second = pair
    blend_checkpoints(folder / "a.ckpt", folder / "b.ckpt", alpha=0.25, out=folder / "c.ckpt")
    card = load_checkpoint(folder / "c.ckpt").card
    assert card.parents == (first.sha256, second.sha256)
    assert card.blend == 0.25
    assert card.inputs == (scan(1), scan(2), scan(3))
    assert card.steps == second.card.steps
    assert card.black == (-1, 0)
    assert card.spacing_um == ((0.5, 2.0), None)
    assert card.validation == {}
    assert card.finished


def test_it_upscales_and_goes_gradually(pair):
    """The further from A, the further its picture."""
    folder, _, _ = pair
    low = mammogram()[..., :40, :40]
    estimates = []
    for number, alpha in enumerate((0.0, 0.3, 0.6, 1.0)):
        path = blend_checkpoints(folder / "a.ckpt", folder / "b.ckpt", alpha=alpha, out=folder / f"{number}.ckpt")
        with torch.no_grad():
            estimates.append(load_upscaler(path)(low))
    assert all(bool(estimate.isfinite().all()) for estimate in estimates)
    assert not torch.equal(estimates[1], estimates[2])


def test_a_run_folder_is_taken_as_its_best(pair):
    folder, first, second = pair
    run = folder / "run"
    run.mkdir()
    (folder / "b.ckpt").rename(run / "best.ckpt")
    path = blend_checkpoints(folder / "a.ckpt", run, alpha=0.5, out=folder / "c.ckpt")
    assert load_checkpoint(path).card.parents == (first.sha256, second.sha256)


def test_strangers_are_blended_with_a_warning(pair, caplog):
    folder, first, _ = pair
    kept(folder / "stranger.ckpt", first.recipe.method, seed=3)
    with caplog.at_level(logging.WARNING, logger="medsr.blending"):
        blend_checkpoints(folder / "a.ckpt", folder / "stranger.ckpt", alpha=0.5, out=folder / "c.ckpt")
    assert "trained on from" in caplog.text
    assert "found parents none" in caplog.text


def test_what_does_not_fit_is_refused(tmp_path):
    a, b, out = tmp_path / "a.ckpt", tmp_path / "b.ckpt", tmp_path / "c.ckpt"
    kept(a, RrdbRecipe(**DENSE), seed=1)
    for other, reason in (
        (RrdbRecipe(factor=(2, 1), **DENSE), r"expected factor 2,2, as .*a\.ckpt has it, found 2,1"),
        (RrdbRecipe(features=6, blocks=1, growth=2), "expected network RRDBNet.*features=4.*found RRDBNet.*features=6"),
        (SrresnetRecipe(features=4, blocks=1), "expected network RRDBNet.*found SRResNet"),
    ):
        kept(b, other, seed=1)
        with pytest.raises(CheckpointError, match=reason):
            blend_checkpoints(a, b, alpha=0.5, out=out)
    torch.manual_seed(1)
    method = RrdbRecipe(**DENSE)
    recipe = Recipe.model_validate({"method": method, "intensity": {"black": 0, "white": 4095}})
    save_checkpoint(b, method.build(), recipe, TrainingCard(black=(0, 0), white=(9, 9), dtype="uint16"))
    with pytest.raises(CheckpointError, match="intensity line as the file says.*found black 0 white 4095"):
        blend_checkpoints(a, b, alpha=0.5, out=out)
    assert not out.exists()


def test_a_share_beyond_the_line_and_a_file_that_exists_are_refused(pair):
    folder, _, _ = pair
    for alpha in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"within 0\.\.1"):
            blend_checkpoints(folder / "a.ckpt", folder / "b.ckpt", alpha=alpha, out=folder / "c.ckpt")
    with pytest.raises(CheckpointError, match="expected a new file"):
        blend_checkpoints(folder / "a.ckpt", folder / "b.ckpt", alpha=0.5, out=folder / "a.ckpt")
    with pytest.raises(CheckpointError, match="found no file"):
        blend_checkpoints(folder / "a.ckpt", folder / "none.ckpt", alpha=0.5, out=folder / "c.ckpt")
