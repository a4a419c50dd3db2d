"""The audit says what became of structures in real scans, whoever upscales them, and writes no name that is hidden."""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

import medsr
from medsr import Audit, Cubic, Scan, audit
from medsr.card import TrainedWidths, TrainingInput
from medsr.checkpoint import TrainingCard, load_checkpoint, save_checkpoint
from medsr.cli import app
from medsr.consistency.noise_curve import estimate_noise
from medsr.io.digest import input_digest
from medsr.methods.widths import Widths
from medsr.recipe import DataRecipe, FastRecipe, Recipe
from medsr.trial import Trial, survey_of
from medsr.trust import roc_area
from medsr.trust.audit_methods import audited_methods
from medsr.trust.audit_tables import AREAS, KEPT, STRUCTURES
from medsr.trust.fields import Field

SMALL: dict[str, Any] = {"fields": 1, "planted": 40, "removed": 10, "device": "cpu"}
TINY = FastRecipe(factor=(2, 2), features=4, blocks=1)
CARD = TrainingCard(black=(0, 100), white=(2000, 4000), dtype="uint16")


def saved(path: Path, seed: int, card: TrainingCard = CARD, *, widths: bool = True) -> str:
    """A checkpoint with first weights; returns the SHA-256 of its weights."""
    torch.manual_seed(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    recipe = Recipe.model_validate({"method": TINY, "data": DataRecipe(patch=(32, 32))})
    learned = Widths((2, 2), features=4, blocks=1) if widths else None
    if learned is not None:
        card = card.model_copy(update={"widths": TrainedWidths(features=4, blocks=1, share=0.1, steps=1)})
    save_checkpoint(path, TINY.build(), recipe, card, widths=learned)
    return load_checkpoint(path).sha256


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two phases, as far as an audit can tell."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    parent = saved(folder / "pixel.ckpt", 0)
    saved(folder / "best.ckpt", 1, CARD.model_copy(update={"parents": (parent,)}))
    return folder


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plane of the shipped stack as a file of its own."""
    path = tmp_path_factory.mktemp("scans") / "nuclei_plane.tif"
    tifffile.imwrite(path, tifffile.imread(medsr.NUCLEI)[15])
    return path


@pytest.fixture(scope="module")
def made(run: Path, plane: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Audit, Path]:
    """An audit, and where it lies."""
    out = tmp_path_factory.mktemp("audits") / "audit"
    return audit(run, plane, out=out, **SMALL), out


class Spotted:
    """Cubic interpolation with bright spots that no measurement asked for, at places of the whole scan."""

    factor, halo = (2, 2), (8, 8)

    def __init__(self, places: Sequence[tuple[int, int]], amount: float) -> None:
        self.places, self.amount, self._cubic = tuple(places), amount, Cubic((2, 2))

    def adapt(self, scan: Scan) -> "Spotted":
        return self

    def at(self, origin: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
        def run(low: Tensor) -> Tensor:
            fine = self._cubic(low).clone()
            top, left = (2 * o for o in origin[-2:])
            for y, x in self.places:
                rows, columns = (slice(max(0, c - o - 2), max(0, c - o + 2)) for c, o in ((y, top), (x, left)))
                fine[..., rows, columns] += self.amount
            return fine

        return run

    def __call__(self, low: Tensor, /) -> Tensor:
        return self.at((0, 0))(low)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def rows_of(made: Audit, method: str) -> Iterator[dict[str, Any]]:
    return (row for row in made.structures if row["method"] == method)


def test_methods_and_maps_are_those_of_the_run(made: tuple[Audit, Path]) -> None:
    found, _ = made
    assert found.methods == ("cubic", "parent", "fast", "fast, projected")
    assert sorted(found.maps) == [
        "departure from cubic",
        "departure from the parent",
        "departure from the parent's interval",
        "detail beside the parent",
        "half width of the interval",
        "null-space energy, band 1: periods of 1 to 2 coarse samples",
        "null-space energy, band 2: periods above 2 coarse samples",
        "unseen detail",
    ]
    assert found.exit_code == 0
    scored = {row["method"]: {n for n in found.maps if row[n] is not None} for row in found.candidates}
    assert "departure from the parent" not in scored["parent"]
    assert scored["fast"] == set(found.maps)


def test_every_method_is_asked_of_the_same_structures(made: tuple[Audit, Path]) -> None:
    found, _ = made
    keys = ("done", "kind", "size", "y", "x", "truth")
    asked = {method: [tuple(row[k] for k in keys) for row in rows_of(found, method)] for method in found.methods}
    assert all(each == asked["cubic"] for each in asked.values())
    assert [what for what, *_ in asked["cubic"]].count("planted") > 20


def test_the_summary_is_that_of_its_structures(made: tuple[Audit, Path]) -> None:
    found, _ = made
    for method in found.methods:
        (row,) = [r for r in found.kept if r["method"] == method and r["kind"] == "all" and r["cnr"] == "all"]
        outcomes = [r["outcome"] for r in rows_of(found, method) if r["done"] == "planted"]
        seen = len(outcomes) - outcomes.count("unseen")
        assert (row["planted"], row["seen"]) == (len(outcomes), seen)
        assert row["kept"] == pytest.approx(outcomes.count("kept") / seen)
        assert row["kept"] + row["lost"] == pytest.approx(1)
        shares = [r["recovered"] for r in rows_of(found, method) if r["done"] == "planted"]
        assert row["recovered"] == pytest.approx(float(np.median(shares)))
        back = [r["outcome"] == "back" for r in rows_of(found, method) if r["done"] == "removed"]
        assert row["removed"] == len(back)
        assert row["back"] == (sum(back) / len(back) if back else None)
        parts = [r for r in found.kept if r["method"] == method and r["kind"] != "all" and r["cnr"] != "all"]
        assert sum(r["planted"] for r in parts) == row["planted"]
        own = [c for c in found.candidates if c["method"] == method]
        assert (row["candidates"], row["invented"]) == (len(own), sum(c["invented"] for c in own))
        assert row["invented_per_mm2"] is None  # the plane says no spacing


def test_areas_are_those_of_the_candidates(made: tuple[Audit, Path]) -> None:
    found, _ = made
    bands = {"all": (4.0, np.inf), "4 to 6": (4.0, 6.0), "6 to 10": (6.0, 10.0), "10 and more": (10.0, np.inf)}
    for row in found.areas:
        if row["method"] != "fast" or row["kind"] != "all":
            continue
        low, high = bands[row["cnr"]]
        some = [c for c in found.candidates if c["method"] == "fast" and low <= c["cnr"] < high]
        groups = [[c[row["map"]] for c in some if c["invented"] == kind] for kind in (1, 0)]
        area = roc_area(*[[np.nan if v is None else v for v in g] for g in groups])
        assert (row["invented"], row["real"]) == (area.positives, area.negatives)
        assert row["area"] == (None if area.reason else area.value)


def test_detail_is_that_of_the_null_space(made: tuple[Audit, Path], run: Path, plane: Path, tmp_path: Path) -> None:
    """Spots that stand nowhere in the truth add energy and no agreement; a method without them has less of both."""
    found, _ = made
    assert [row["method"] for row in found.detail] == [m for m in found.methods for _ in range(2)]
    spotted = audit(
        run, plane, out=tmp_path / "out", more={"spotted": Spotted([(y, 128) for y in range(50, 210, 9)], 0.6)}, **SMALL
    )
    cubic, other = ([r for r in spotted.detail if r["method"] == name] for name in ("cubic", "spotted"))
    for without, put in zip(cubic, other, strict=True):
        assert put["energy"] > 1.2 * without["energy"]
        assert 0 < put["agreement"] < without["agreement"] <= 1


def test_tables_and_pictures_are_written(made: tuple[Audit, Path]) -> None:
    found, out = made
    assert tuple(read(out / "audit.csv")[0]) == KEPT
    assert tuple(read(out / "structures.csv")[0]) == STRUCTURES
    assert tuple(read(out / "areas.csv")[0]) == AREAS
    assert len(read(out / "structures.csv")) == len(found.structures)
    assert len(read(out / "candidates.csv")) == len(found.candidates)
    notes = json.loads((out / "provenance.json").read_text())
    assert list(notes["methods"]) == list(found.methods)
    assert notes["seed"] == 0
    for name in ("audit.png", "nuclei_plane.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 400
            assert len(np.unique(np.asarray(picture.convert("L")))) > 20
    assert sorted(p.name for p in out.iterdir()) == [
        "areas.csv",
        "audit.csv",
        "audit.png",
        "candidates.csv",
        "detail.csv",
        "nuclei_plane.png",
        "provenance.json",
        "structures.csv",
    ]


def test_the_same_again_gives_the_same_bytes_and_another_seed_other_places(
    made: tuple[Audit, Path], run: Path, plane: Path, tmp_path: Path
) -> None:
    found, out = made
    again = audit(run, plane, out=tmp_path / "again", **SMALL)
    assert again == found
    for name in ("audit.csv", "areas.csv", "structures.csv", "candidates.csv", "provenance.json", "nuclei_plane.png"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes(), name
    other = audit(run, plane, out=tmp_path / "other", seed=1, **SMALL)
    assert {(r["y"], r["x"]) for r in other.structures}.isdisjoint({(r["y"], r["x"]) for r in found.structures})


def test_what_a_method_adds_is_called_invented_and_the_null_space_tells(run: Path, plane: Path, tmp_path: Path) -> None:
    """Spots of four samples, put where nothing is: found, called invented, and told by the maps."""
    places = [(y, x) for y in range(50, 210, 20) for x in range(50, 210, 20)]
    found = audit(run, plane, out=tmp_path / "out", more={"spotted": Spotted(places, 0.6)}, kind="punctum", **SMALL)
    invented = [c for c in found.candidates if c["method"] == "spotted" and c["invented"]]
    near = [min(np.hypot(c["y"] - y + 0.5, c["x"] - x + 0.5) for y, x in places) for c in invented]
    assert len(invented) > 20
    assert np.mean(np.array(near) < 3) > 0.9
    assert found.area("spotted", "departure from cubic").value > 0.9
    assert found.area("spotted", "null-space energy, band 1: periods of 1 to 2 coarse samples").value > 0.7
    with pytest.raises(KeyError, match="expected a method of"):
        found.area("nobody", "departure from cubic")


def test_maps_of_a_field_are_those_of_the_whole(run: Path, plane: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The window that an audit cuts out holds all the context that methods and maps need."""
    module: Any = import_module("medsr.trust.auditing")
    monkeypatch.setattr("medsr.trust.nullspace.TRUNCATE", 3.0)  # so that the context is smaller than the plane
    upscaler = medsr.load_upscaler(run)
    degradation = upscaler.recipe.degradation
    methods = audited_methods(run, upscaler, degradation, {}, certain=False, note=print)
    setting = module._Setting(
        methods, (2, 2), degradation, Path(), "auto", 1, 1, 0, 0, None, None, "cpu", print, print
    )  # fmt: skip
    trial = Trial(medsr.read_scan(plane), (2, 2), degradation)
    survey_of(trial)
    noise = estimate_noise(trial.low)
    method = methods["fast, projected"]
    field = Field((), slice(96, 160), slice(100, 172))
    whole, part = (slice(0, 128), slice(0, 128)), module._window(field, trial, setting)
    assert all(w.start < p.start and p.stop < w.stop for w, p in zip(whole, part, strict=True))
    found = []
    for window in (whole, part):
        stored = module._estimate(trial, method.upscaler.adapt(trial.low), window, setting)
        inner = module._inside(field, window, trial.factor)
        maps = module._maps(method, trial, stored, window, noise, setting)
        found.append({name: values[inner] for name, values in maps.items()})
    assert list(found[0]) == list(found[1])
    for name, values in found[0].items():
        assert values.shape == (64, 72)
        assert np.abs(values - found[1][name]).max() < 1e-3 * max(1.0, float(values.max())), name


def test_one_bad_file_stops_nothing(run: Path, plane: Path, tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    (scans / "broken.tif").write_bytes(b"II*\x00 no image")
    tifffile.imwrite(scans / "tiny.tif", tifffile.imread(medsr.NUCLEI)[15, 100:112, 100:112])
    (scans / "good.tif").write_bytes(plane.read_bytes())
    lines: list[str] = []
    found = audit(run, scans, out=tmp_path / "out", note=lines.append, **SMALL)
    assert found.exit_code == 1
    assert {row["scan"] for row in found.structures} == {"good"}
    assert [name for name, _ in found.failed] == ["broken", "tiny"]
    assert [row["scan"] for row in read(tmp_path / "out" / "failed.csv")] == ["broken", "tiny"]
    assert any(line.startswith("broken: failed:") for line in lines)


def test_no_name_is_written_where_names_are_hidden(run: Path, plane: Path, tmp_path: Path) -> None:
    scans = tmp_path / "Jane_Doe"
    scans.mkdir()
    (scans / "Doe_Jane_1957.tif").write_bytes(plane.read_bytes())
    (scans / "Doe_broken.tif").write_bytes(b"II*\x00 no image")
    lines: list[str] = []
    hidden = medsr.Pseudonyms(tmp_path / "key")
    audit(run, scans, out=tmp_path / "out", pseudonyms=hidden, note=lines.append, **SMALL)
    said = "\n".join(lines) + "\n".join(p.name for p in (tmp_path / "out").iterdir())
    for path in (tmp_path / "out").iterdir():
        said += path.read_bytes().decode("latin-1")
    assert "Doe" not in said
    assert "Jane" not in said
    assert "scan-" in said


def test_a_scan_that_was_learned_from_is_named(plane: Path, tmp_path: Path) -> None:
    (source,) = medsr.find_scans(plane)
    known = TrainingInput(sha256=input_digest(source), name_hash="0", shape=(256, 256))
    saved(tmp_path / "run" / "best.ckpt", 1, CARD.model_copy(update={"inputs": (known,)}), widths=False)
    lines: list[str] = []
    audit(tmp_path / "run", plane, out=tmp_path / "out", note=lines.append, **SMALL)
    assert any("learned from this scan" in line for line in lines)
    assert any("trained in one phase" in line for line in lines)
    assert any("no map of the interval" in line for line in lines)


def test_what_cannot_be_audited_is_refused(run: Path, plane: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected methods of the factor 2 x 2, found other of 4 x 4"):
        audit(run, plane, out=tmp_path / "out", more={"other": Cubic((4, 4))}, **SMALL)
    with pytest.raises(ValueError, match="expected another name than cubic"):
        audit(run, plane, out=tmp_path / "out", more={"cubic": Cubic((2, 2))}, **SMALL)
    with pytest.raises(ValueError, match="expected planted of at least 1"):
        audit(run, plane, out=tmp_path / "out", planted=0)
    with pytest.raises(ValueError, match="expected a folder for the audit"):
        audit(run, plane, out=plane, **SMALL)
    deep = FastRecipe(factor=(2, 1, 1), features=4, blocks=1)
    recipe = Recipe.model_validate({"method": deep, "data": DataRecipe(patch=(16, 16, 16))})
    save_checkpoint(tmp_path / "deep.ckpt", deep.build(), recipe, CARD)
    with pytest.raises(ValueError, match="expected a method that refines y and x"):
        audit(tmp_path / "deep.ckpt", plane, out=tmp_path / "out", **SMALL)
    assert not (tmp_path / "out").exists()


def test_the_mammogram_is_asked_for_specks(run: Path, tmp_path: Path) -> None:
    scan = medsr.read_scan(medsr.MAMMOGRAM)
    assert scan.reader.startswith("dicom")
    found = audit(run, medsr.MAMMOGRAM, out=tmp_path / "out", **SMALL)
    assert {row["kind"] for row in found.structures} == {"speck"}
    gone = [r["outcome"] for r in rows_of(found, "cubic") if r["done"] == "removed"]
    assert gone.count("gone") >= 3
    assert gone.count("back") <= len(gone) // 3
    strong = [r for r in rows_of(found, "cubic") if r["done"] == "planted" and r["cnr"] > 10 and r["size"] >= 4]
    assert len(strong) > 4
    assert np.mean([r["outcome"] == "kept" for r in strong]) > 0.8
    assert 0.5 < np.median([r["recovered"] for r in strong]) < 1.2


def test_on_the_command_line(run: Path, plane: Path, tmp_path: Path) -> None:
    words = ["audit", str(run), str(plane), "--out", str(tmp_path / "out"), "--fields", "1", "--planted", "30"]
    done = CliRunner().invoke(app, [*words, "--kind", "punctum"])
    assert done.exit_code == 0, done.output
    assert "ROC area of maps that need no truth" in done.output
    assert (tmp_path / "out" / "audit.csv").is_file()
    wrong = CliRunner().invoke(app, [*words, "--kind", "punctm"])
    assert wrong.exit_code == 2
    assert "Did you mean 'punctum'?" in wrong.output


def test_stacks_are_audited_plane_by_plane(run: Path, tmp_path: Path) -> None:
    found = audit(run, medsr.NUCLEI, out=tmp_path / "out", fields=2, planted=20, removed=0, device="cpu")
    (row,) = [r for r in found.kept if r["method"] == "fast" and r["kind"] == "all" and r["cnr"] == "all"]
    assert row["planted"] > 20
    assert row["invented_per_mm2"] is not None
    assert row["invented_per_mm2"] == pytest.approx(row["invented_per_megasample"] / (0.26 * 0.26))
