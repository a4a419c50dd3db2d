"""A checkpoint is data: what made it comes back with it, and a file that is none is refused by name."""

import hashlib
import io
import json
import os
import pickle
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from medsr.checkpoint import (
    FORMAT,
    CheckpointError,
    TrainedUpscaler,
    TrainingCard,
    TrainingInput,
    build_network,
    check_scan,
    load_checkpoint,
    load_upscaler,
    save_checkpoint,
)
from medsr.recipe import ContentLoss, DataRecipe, IntensityRule, Method, Recipe, SrganRecipe, SrresnetRecipe
from medsr.scan import Grid, Intensity, Scan
from medsr.upscaler import Upscaler, describe, fingerprint
from medsr.upscaling import upscale

CARD = TrainingCard(
    black=(0, 100),
    white=(2000, 4000),
    spacing_um=((0.2, 0.3), (0.2, 0.3)),
    dtype="uint16",
    inputs=(TrainingInput(name_hash="ab" * 8, sha256="cd" * 32, shape=(30, 256, 256)),),
    versions={"medsr": "0.1.0", "torch": torch.__version__},
    steps={"pixel": 100, "adversarial": 0},
    validation={"psnr_db": 31.5},
    finished=True,
)

TINY = SrresnetRecipe(features=4, blocks=1, head_kernel=3, tail_kernel=3)


def recipe(method: Method = TINY, **parts: object) -> Recipe:
    data = DataRecipe(patch=tuple(16 * f for f in method.factor))
    return Recipe.model_validate({"method": method, "data": data} | parts)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "best.ckpt"
    torch.manual_seed(1)
    save_checkpoint(path, build_network(TINY), recipe(), CARD)
    return path


def scan_of(shape: tuple[int, ...] = (24, 20), *, dtype: str = "uint16", spacing: float | None = 0.25) -> Scan:
    values = np.random.default_rng(0).integers(100, 2000, shape).astype(dtype)
    axes = ("t", "z", "y", "x")[-len(shape) :]
    grid = Grid(axes, None if spacing is None else (spacing,) * len(shape))
    return Scan(values, grid, Intensity(50, 3000, np.dtype(dtype)))


METHODS = [
    TINY,
    SrresnetRecipe(factor=(1, 2, 2), features=4, blocks=1, head_kernel=3, tail_kernel=3),
    SrganRecipe(factor=(4, 2), features=4, blocks=2, norm="batch"),
    SrresnetRecipe(factor=(2, 1, 1), features=4, blocks=1, norm="batch", head_kernel=5, tail_kernel=1),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.kind}-{m.norm}-{'x'.join(map(str, m.factor))}")
def test_what_is_saved_comes_back_bit_for_bit(tmp_path: Path, method: Method) -> None:
    network = build_network(method)
    save_checkpoint(tmp_path / "last.ckpt", network, recipe(method), CARD)
    loaded = load_upscaler(tmp_path)
    assert loaded.card == CARD
    assert loaded.recipe.method == method
    assert loaded.factor == method.factor
    assert loaded.halo == network.halo
    assert isinstance(loaded, Upscaler)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    low = torch.rand(2, 1, *(9,) * len(method.factor))
    with torch.inference_mode():
        assert torch.equal(loaded(low), network.eval()(low))


def test_the_same_weights_make_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(saved)
    again = tmp_path / "again.ckpt"
    save_checkpoint(again, checkpoint.network, checkpoint.recipe, checkpoint.card)
    assert again.read_bytes() == saved.read_bytes()
    assert load_checkpoint(again).sha256 == checkpoint.sha256


def test_loading_leaves_the_random_numbers_alone(saved: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    load_upscaler(saved)
    assert torch.equal(torch.rand(3), expected)


def test_a_run_folder_gives_best_before_last(saved: Path) -> None:
    run = saved.parent
    save_checkpoint(run / "last.ckpt", build_network(TINY), recipe(), CARD)
    assert load_upscaler(run).path == saved
    assert load_upscaler(str(run / "last.ckpt")).path == run / "last.ckpt"
    saved.unlink()
    assert load_upscaler(run).path == run / "last.ckpt"
    (run / "last.ckpt").unlink()
    with pytest.raises(CheckpointError, match=r"expected best.ckpt or last.ckpt .*found neither"):
        load_upscaler(run)


def test_no_path_of_the_training_machine_is_kept(tmp_path: Path) -> None:
    method = SrganRecipe(features=4, blocks=1, content=ContentLoss(kind="file", path=Path("/data/DOE/vgg.pt")))
    data = DataRecipe(folder=Path("/data/DOE_JANE"), validation_folder=Path("/data/DOE_JIM"), patch=(32, 32))
    made = Recipe(method=method, data=data, out=Path("runs/DOE"))
    save_checkpoint(tmp_path / "best.ckpt", build_network(method), made, CARD)
    assert b"DOE" not in (tmp_path / "best.ckpt").read_bytes()
    kept = load_checkpoint(tmp_path / "best.ckpt").recipe
    assert kept.training == made.training
    assert kept.data.folder is not None


def test_a_checkpoint_appears_whole_or_not_at_all(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(saved, build_network(TINY), recipe(), CARD)
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == ["best.ckpt"]


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.mark),)


def hostile_files(mark: Path) -> dict[str, bytes]:
    legacy, archive, zipped = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save({"state_dict": Hostile(mark)}, legacy, _use_new_zipfile_serialization=False)
    torch.save({"state_dict": Hostile(mark)}, archive)
    with zipfile.ZipFile(zipped, "w") as stream:
        stream.writestr("archive/data.pkl", pickle.dumps(Hostile(mark)))
    old = pickle.dumps(Hostile(mark), protocol=0)
    return {"pickle": pickle.dumps(Hostile(mark)), "text pickle": old, "legacy": legacy.getvalue(),
            "torch": archive.getvalue(), "zip": zipped.getvalue()}  # fmt: skip


@pytest.mark.parametrize("kind", ["pickle", "text pickle", "legacy", "torch", "zip"])
def test_a_hostile_pickle_executes_nothing(tmp_path: Path, kind: str) -> None:
    path, mark = tmp_path / "best.ckpt", tmp_path / "executed"
    path.write_bytes(hostile_files(mark)[kind])
    with pytest.raises(CheckpointError) as caught:
        load_upscaler(tmp_path)
    assert not mark.exists()
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{path}: expected a checkpoint of medsr (safetensors), found ")
    if kind != "text pickle":
        assert "found a pickle" in str(caught.value)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 100, 2000, -1, -1000])
def test_a_torn_file_is_refused(saved: Path, size: int) -> None:
    saved.write_bytes(saved.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"best.ckpt: expected .* found .*; .+"):
        load_checkpoint(saved)


def test_any_flipped_byte_of_the_header_is_refused_or_harmless(saved: Path) -> None:
    """Never another kind of error, whatever the header says."""
    whole = saved.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    generator = np.random.default_rng(0)
    refused = 0
    for place in [*range(9), *generator.integers(8, length, 150)]:
        broken = bytearray(whole)
        broken[place] ^= int(generator.integers(1, 128))
        saved.write_bytes(broken)
        try:
            load_checkpoint(saved)
        except CheckpointError as error:
            refused += "\n" not in str(error)
    assert refused > 60


@pytest.mark.parametrize(
    "data",
    [b"hello, I am text", b"\x89PNG\r\n\x1a\n" + bytes(50), bytes(100), b"\xff" * 100, b"\x02" + bytes(7) + b"{}"],
)
def test_another_file_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.ckpt").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"x.ckpt: expected a checkpoint of medsr.* found "):
        load_checkpoint(tmp_path / "x.ckpt")


def test_absent_files_and_folders_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.ckpt", tmp_path, tmp_path / "none" / "run"):
        with pytest.raises(CheckpointError, match="expected a checkpoint.*found (no file|a folder)"):
            load_checkpoint(path)


def rewrite(path: Path, *, notes: object = None, weights: dict[str, torch.Tensor | None] | None = None) -> None:
    """The checkpoint with some weights changed (None: removed), or with other notes."""
    from safetensors import safe_open

    with safe_open(path, "pt") as stored:
        old = json.loads(stored.metadata()["medsr"])
    merged = load_file(path) | (weights or {})
    text = json.dumps(old | notes) if isinstance(notes, dict) else json.dumps(old) if notes is None else str(notes)
    save_file({k: v.clone() for k, v in merged.items() if v is not None}, path, metadata={"medsr": text})


def test_weights_that_do_not_fit_are_named(saved: Path) -> None:
    whole = saved.read_bytes()
    cases: list[tuple[dict[str, torch.Tensor | None], str]] = [
        ({"tail.weight": None}, "tail.weight is missing"),
        ({"extra": torch.zeros(1)}, "extra is unknown"),
        ({"tail.weight": torch.zeros(2, 2)}, r"tail.weight has shape \(2, 2\), not \(1, 4, 3, 3\)"),
        ({"tail.weight": torch.zeros(1, 4, 3, 3).double()}, "expected tail.weight in torch.float32, found torch.float"),
        ({"tail.weight": torch.full((1, 4, 3, 3), torch.nan)}, "NaN or infinity in tail.weight; the training diverged"),
        ({"tail.weight": torch.full((1, 4, 3, 3), torch.inf)}, "NaN or infinity in tail.weight"),
    ]
    for weights, reason in cases:
        saved.write_bytes(whole)
        rewrite(saved, weights=weights)
        with pytest.raises(CheckpointError, match=reason):
            load_checkpoint(saved)


def test_a_huge_network_without_weights_is_refused_before_it_is_built(saved: Path) -> None:
    """A file of a few bytes must not make the reader allocate gigabytes."""
    method = {"kind": "srresnet", "factor": [2, 2], "features": 1024, "blocks": 256}
    rewrite(saved, notes={"recipe": {"method": method}})
    with pytest.raises(CheckpointError, match="expected .* weights that fit its recipe"):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    "notes, reason",
    [
        ({"format": FORMAT + 1}, f"format {FORMAT} or lower, found {FORMAT + 1}; it was written by a newer medsr"),
        ({"factor": [4, 4]}, "found 4,4 beside a recipe of 2,2"),
        ({"recipe": {"method": {"kind": "unheard"}}}, "another content"),
        ({"card": {"dtype": "object", "black": [0, 0], "white": [1, 1]}}, "another content"),
        ("[1, 2]", "another content"),
        ("{}", "another content"),
        ("not json", "another content"),
        ("[" * 100_000, "another content"),
    ],
)
def test_notes_that_are_none_are_refused(saved: Path, notes: object, reason: str) -> None:
    rewrite(saved, notes=notes)
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_checkpoint(saved)
    assert "\n" not in str(caught.value)


def test_notes_of_the_first_format_can_be_read(saved: Path) -> None:
    rewrite(saved, notes={"format": 1})
    assert load_checkpoint(saved).recipe == load_checkpoint(saved).recipe
    assert load_checkpoint(saved).card == CARD


def words_of(schema: object) -> Iterator[str]:
    """Names of fields and the words that may stand in them."""
    if isinstance(schema, dict):
        for name, inner in schema.items():
            if name in ("properties", "$defs"):
                yield from (f"{name} {key}" for key in inner)
            if name in ("enum", "const"):
                yield f"{name} {inner}"
            elif name not in ("default", "title", "description"):
                yield from words_of(inner)
    elif isinstance(schema, list):
        for inner in schema:
            yield from words_of(inner)


def test_the_format_rises_with_what_recipe_and_card_can_say() -> None:
    """Where this fails: raise FORMAT, unless it is above that of the last release already; then set the digest."""
    words = sorted(word for model in (Recipe, TrainingCard) for word in words_of(model.model_json_schema()))
    assert len(words) > 100
    digest = hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]
    assert (FORMAT, digest) == (2, "51316b70321b02b7")


def test_foreign_safetensors_are_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="found weights without a recipe; give best.ckpt or last.ckpt"):
        load_checkpoint(tmp_path / "x.safetensors")


def test_another_factor_than_wanted_is_refused(saved: Path) -> None:
    assert load_upscaler(saved, factor=(2, 2)).factor == (2, 2)
    with pytest.raises(CheckpointError, match=r"expected a checkpoint of factor 4,4, found one of 2,2; leave --factor"):
        load_upscaler(saved, factor=(4, 4))


def test_a_scan_without_the_axes_of_the_factor_is_refused(tmp_path: Path) -> None:
    method = METHODS[1]
    save_checkpoint(tmp_path / "best.ckpt", build_network(method), recipe(method), CARD)
    with pytest.raises(ValueError, match="expected at most one entry for each spatial axis"):
        upscale(scan_of((20, 20)), load_upscaler(tmp_path))


def test_the_fixed_line_of_a_recipe_is_kept_for_scans_with_another(tmp_path: Path) -> None:
    """With batch normalization the unit matters: a checkpoint trained on a fixed line sees that line again."""
    method = SrresnetRecipe(features=4, blocks=1, norm="batch", head_kernel=3, tail_kernel=3)
    torch.manual_seed(0)
    network = build_network(method)
    with torch.no_grad():
        for bend in network.parameters():  # a fresh network is proportional to the contrast; a trained one is not
            if bend.ndim == 1:
                bend.uniform_(-0.5, 0.5)
    free, fixed = recipe(method), recipe(method, intensity=IntensityRule(black=0, white=4000))
    save_checkpoint(tmp_path / "free.ckpt", network, free, CARD)
    save_checkpoint(tmp_path / "fixed.ckpt", network, fixed, CARD)
    scan = scan_of()
    on_line = replace(scan, intensity=replace(scan.intensity, black=0, white=4000))
    expected = upscale(on_line, load_upscaler(tmp_path / "free.ckpt")).read().astype(int)
    kept = upscale(scan, load_upscaler(tmp_path / "fixed.ckpt"))
    assert kept.intensity == scan.intensity
    assert np.abs(kept.read().astype(int) - expected).max() <= 1
    assert np.abs(upscale(scan, load_upscaler(tmp_path / "free.ckpt")).read() - expected).max() > 1
    loaded = load_upscaler(tmp_path / "fixed.ckpt")
    assert loaded.adapt(on_line) is loaded
    assert "black 0 white 4000" in describe(loaded)
    converting = loaded.adapt(scan)
    assert fingerprint(converting) != fingerprint(loaded), "the line decides the numbers, too"
    low, stages = torch.rand(1, 1, 9, 11, generator=torch.Generator().manual_seed(0)), converting.stages()
    with torch.inference_mode():
        composed = stages.last(stages.rise(stages.body(stages.entry(low))))
        composed = composed if stages.base is None else composed + stages.base(low)
        torch.testing.assert_close(composed, converting(low), atol=1e-5, rtol=0)
        assert not torch.allclose(composed, loaded(low), atol=1e-4)


def test_a_trained_upscaler_goes_to_another_process_and_names_its_weights(saved: Path) -> None:
    loaded = load_upscaler(saved)
    copy = pickle.loads(pickle.dumps(loaded))
    assert isinstance(copy, TrainedUpscaler)
    assert fingerprint(copy) == fingerprint(loaded)
    low = torch.rand(1, 1, 8, 8)
    assert torch.equal(copy(low), loaded(low))
    assert describe(loaded) == f"srresnet x2,2, 1,083 parameters, weights {load_checkpoint(saved).sha256[:12]}"
    done = upscale(scan_of(), loaded)
    assert describe(loaded) in done.history[-1]


def test_a_scan_like_the_training_raises_no_doubt() -> None:
    assert check_scan(CARD, scan_of()) == []
    assert check_scan(CARD, scan_of((3, 24, 20))) == []
    assert check_scan(CARD.model_copy(update={"spacing_um": None}), scan_of(spacing=None)) == []
    assert check_scan(CARD, scan_of(spacing=0.3 * 1.09)) == []


def test_a_scan_outside_the_training_raises_doubts() -> None:
    assert check_scan(CARD, scan_of(spacing=0.5)) == [
        f"spacing along {axis} is 0.5 um, outside the 0.2 to 0.3 um the checkpoint was trained for; judge the result "
        "with care or train on such scans"
        for axis in "yx"
    ]
    assert len(check_scan(CARD, scan_of(spacing=0.2 / 1.11))) == 2
    assert check_scan(CARD, scan_of(spacing=None))[0].startswith("spacing along y is unknown; the checkpoint was")
    floats = scan_of(dtype="float32")
    assert check_scan(CARD, floats) == ["the scan holds floats (float32), the checkpoint was trained on uint16"]
    dim = scan_of()
    dim = replace(dim, intensity=replace(dim.intensity, black=0, white=30))
    assert check_scan(CARD, dim)[0].startswith("black to white spans 30 stored values, more than tenfold off")
    inverted = replace(dim, intensity=replace(dim.intensity, black=4000, white=0))
    assert check_scan(CARD, inverted) == []


def test_a_card_holds_numbers_only() -> None:
    for wrong in ("object", "str", "nonsense"):
        with pytest.raises(ValueError, match="expected a type of numbers"):
            TrainingCard(black=(0, 0), white=(1, 1), dtype=wrong)
