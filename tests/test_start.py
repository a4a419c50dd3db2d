"""Weights of an earlier run are taken over only where all that decides their meaning is the same."""

from pathlib import Path
from typing import Any

import pytest
import torch

from medsr.card import TrainingCard
from medsr.checkpoint import save_checkpoint
from medsr.recipe import Recipe
from medsr.training import TrainingError
from medsr.training.start import start_from

SMALL = {"features": 8, "groups": 1, "blocks": 1, "reduction": 4}
CARD = TrainingCard(black=(0, 0), white=(1, 1), dtype="uint16")


def kept(method: dict[str, Any], path: Path, **parts: Any) -> Recipe:
    """The recipe of a run whose new weights were kept."""
    recipe = Recipe.model_validate({"method": method, **parts})
    torch.manual_seed(0)
    save_checkpoint(path, recipe.method.build().eval(), recipe, card=CARD)
    return recipe


@pytest.mark.parametrize(
    ("method", "changes", "words"),
    [
        ({"kind": "rcan", **SMALL, "window": 15}, {"window": 7}, "window=15, not 7"),
        ({"kind": "dfcan", **SMALL, "window": 15}, {"window": 7}, "window=15, not 7"),
        ({"kind": "scn", "atoms": 8}, {"published": True}, "published=False, not True"),
        ({"kind": "srresnet", "features": 8, "blocks": 1}, {"features": 12}, "features=8, not 12"),
        ({"kind": "scn", "atoms": 8}, {"kind": "espcn", "atoms": None}, "ScnNetwork.*, not EspcnNetwork"),
    ],
    ids=["rcan", "dfcan", "scn", "size", "kind"],
)
def test_a_setting_that_has_no_weights_counts_too(
    tmp_path: Path, method: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    old = kept(method, tmp_path / "a.ckpt")
    same = old.method.build()
    start_from(tmp_path / "a.ckpt", same, old, spacings=[None])
    plain = {name: value for name, value in {**method, **changes}.items() if value is not None}
    new = Recipe.model_validate({"method": plain})
    with pytest.raises(TrainingError, match=rf"training\.start: expected weights of the recipe's network.*{words}"):
        start_from(tmp_path / "a.ckpt", new.method.build(), new, spacings=[None])


@pytest.mark.parametrize(("old", "new"), [(None, 900.0), (900.0, None), (900.0, 1000.0)])
def test_another_intensity_line_is_refused(tmp_path: Path, old: float | None, new: float | None) -> None:
    method = {"kind": "srresnet", "features": 8, "blocks": 1}
    before, after = ({} if white is None else {"black": 0.0, "white": white} for white in (old, new))
    same = kept(method, tmp_path / "a.ckpt", intensity=before)
    start_from(tmp_path / "a.ckpt", same.method.build(), same, spacings=[None])
    other = Recipe.model_validate({"method": method, "intensity": after})
    with pytest.raises(TrainingError, match=r"training\.start: expected weights for the recipe's intensity line.*not"):
        start_from(tmp_path / "a.ckpt", other.method.build(), other, spacings=[None])


def test_a_game_may_follow_pixels_of_the_same_network(tmp_path: Path) -> None:
    method = {"features": 8, "blocks": 1}
    old = kept({"kind": "srresnet", **method}, tmp_path / "a.ckpt")
    new = Recipe.model_validate({"method": {"kind": "srgan", **method}})
    torch.manual_seed(1)
    network = new.method.build()
    start_from(tmp_path / "a.ckpt", network, new, spacings=[None])
    torch.manual_seed(0)
    for name, value in old.method.build().state_dict().items():
        assert torch.equal(value, network.state_dict()[name])
