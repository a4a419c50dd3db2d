"""The audit says what became of structures in real scans, whoever upscales them, and writes no name that is hidden."""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
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
from medsr.trial import Trial
from medsr.trust import audit_scan, roc_area
from medsr.trust.audit_figures import drawn_rows
from medsr.trust.audit_methods import audited_methods
from medsr.trust.audit_scan import Setting
from medsr.trust.audit_summary import CONTRAST, share_interval
from medsr.trust.audit_tables import AREAS, DETAIL, KEPT, STRUCTURES
from medsr.trust.fields import Field
from medsr.trust.nullspace import NullSpace

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


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def rows_of(made: Audit, method: str) -> Iterator[dict[str, Any]]:
    return (row for row in made.structures if row["method"] == method)


def test_methods_and_maps_are_those_of_the_run(made: tuple[Audit, Path]) -> None:
    found, _ = made
    assert found.methods == ("cubic", "parent", "fast", "fast, projected")
    assert found.maps[0] == CONTRAST
    assert sorted(found.maps[1:]) == [
        "departure from cubic",
        "departure from the parent",
        "departure from the parent's learned widths",
        "detail beside the parent",
        "half of the learned width",
        "null-space energy, band 1: periods of 1 to 2 coarse samples",
        "null-space energy, band 2: periods above 2 coarse samples",
        "unseen detail",
    ]
    assert found.exit_code == 0
    scored = {row["method"]: {n for n in found.maps[1:] if row[n] is not None} for row in found.candidates}
    assert "departure from the parent" not in scored["parent"]
    assert scored["fast"] == set(found.maps[1:])
    # what the run says of itself is said of nobody else
    assert "half of the learned width" not in scored["cubic"] | scored["fast, projected"]
    assert "half of the learned width" in scored["parent"]  # its own


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
        kinds = [c["found"] for c in own]
        assert row["candidates"] == len(own) == row["real"] + row["undecided"] + row["invented"]
        assert row["invented"] == kinds.count("invented")
        chance = [c["chance"] for c in own if c["chance"]]
        assert row["real_by_chance"] == (chance.count("real") / len(chance) if chance else None)
        assert row["scans"] == 1
        assert row["kept_low"] is None  # one scan tells nothing of the next
        assert row["invented_per_mm2"] is None  # the plane says no spacing


def test_areas_are_those_of_the_candidates(made: tuple[Audit, Path]) -> None:
    found, _ = made
    bands = {"all": (4.0, np.inf), "4 to 6": (4.0, 6.0), "6 to 10": (6.0, 10.0), "10 and more": (10.0, np.inf)}
    asked = [row for row in found.areas if row["method"] == "fast" and row["kind"] == "all"]
    assert len(asked) == 2 * 4 * len(found.maps)
    for row in asked:
        low, high = bands[row["cnr"]]
        some = [c for c in found.candidates if c["method"] == "fast" and low <= c["cnr"] < high]
        some = [c for c in some if row["among"] == "all" or c["near"] == ""]
        key = row["map"]
        scores = [
            [-c["cnr"] if key == CONTRAST else c[key] for c in some if c["found"] == k] for k in ("invented", "real")
        ]
        area = roc_area(*[[np.nan if v is None else v for v in group] for group in scores])
        assert (row["invented"], row["real"]) == (area.positives, area.negatives)
        assert row["area"] == (None if area.reason else area.value)
        assert row["low"] is None  # one scan


def test_a_share_has_an_interval_over_scans() -> None:
    generator = np.random.default_rng(4)
    inside = 0
    for _ in range(400):
        true = generator.beta(6, 4, 8)  # scans differ, 0.6 on average
        counts = [(int(generator.binomial(25, p)), 25) for p in true]
        low, high = share_interval(counts)
        assert low is not None
        assert high is not None
        inside += low <= 0.6 <= high
    assert inside / 400 > 0.92
    assert share_interval([(1, 2), (3, 4)]) == (None, None)
    assert share_interval([(2, 2), (4, 4), (0, 0)]) == (None, None)


def test_shares_of_few_are_not_drawn() -> None:
    assert drawn_rows([{"seen": 4, "kept": 1.0}, {"seen": 5, "kept": 0.8}]) == [{"seen": 5, "kept": 0.8}]


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
    assert tuple(read(out / "detail.csv")[0]) == DETAIL
    assert list(notes["degradations"]) == ["nuclei_plane"]
    assert notes["maps_from"]["fast"] == ["not calibrated", "not calibrated"]
    for name in ("audit.png", "scans/nuclei_plane.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 400
            assert len(np.unique(np.asarray(picture.convert("L")))) > 20
    assert sorted(p.name for p in out.iterdir()) == [
        "areas.csv",
        "audit.csv",
        "audit.png",
        "candidates.csv",
        "detail.csv",
        "provenance.json",
        "scans",
        "structures.csv",
    ]


def test_the_same_again_gives_the_same_bytes_and_another_seed_other_places(
    made: tuple[Audit, Path], run: Path, plane: Path, tmp_path: Path
) -> None:
    found, out = made
    again = audit(run, plane, out=tmp_path / "again", **SMALL)
    assert again == found
    for name in (
        "audit.csv",
        "areas.csv",
        "structures.csv",
        "candidates.csv",
        "provenance.json",
        "scans/nuclei_plane.png",
    ):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes(), name
    other = audit(run, plane, out=tmp_path / "other", seed=1, **SMALL)
    assert {(r["y"], r["x"]) for r in other.structures}.isdisjoint({(r["y"], r["x"]) for r in found.structures})


def test_what_a_method_adds_is_called_invented_and_the_null_space_tells(run: Path, plane: Path, tmp_path: Path) -> None:
    """Spots of four samples, put where nothing is: found, called invented, and told by the maps."""
    places = [(y, x) for y in range(50, 210, 20) for x in range(50, 210, 20)]
    found = audit(run, plane, out=tmp_path / "out", more={"spotted": Spotted(places, 0.6)}, kind="punctum", **SMALL)
    invented = [c for c in found.candidates if c["method"] == "spotted" and c["found"] == "invented"]
    near = [min(np.hypot(c["y"] - y + 0.5, c["x"] - x + 0.5) for y, x in places) for c in invented]
    assert len(invented) > 20
    assert np.mean(np.array(near) < 3) > 0.9
    for name, least in (("departure from cubic", 0.9), ("detail beside the parent", 0.8), ("unseen detail", 0.7)):
        area = found.area("spotted", name)
        assert area is not None
        assert area.value > least
        assert (area.clusters, np.isnan(area.low)) == (1, True)
    assert found.area("nobody", "departure from cubic") is None


def test_maps_of_a_field_are_those_of_the_whole(run: Path, plane: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The window that an audit cuts out holds all the context that methods and maps need."""
    monkeypatch.setattr("medsr.trust.nullspace.TRUNCATE", 3.0)  # so that the context is smaller than the plane
    upscaler = medsr.load_upscaler(run)
    degradation = upscaler.recipe.degradation
    methods = audited_methods(run, upscaler, degradation, {}, certain=False, note=print)
    setting = Setting(
        methods=methods, factor=(2, 2), degradation=degradation, pictures=Path(), kind="auto", fields=1, planted=1,
        removed=0, seed=0, series=None, memory=None, device="cpu", note=print, tick=lambda *_: None,
    )  # fmt: skip
    trial = Trial(medsr.read_scan(plane), (2, 2), degradation)
    method = methods["fast, projected"]
    space = NullSpace(trial.degradation)
    scene = audit_scan._Scene(trial, trial, (), (), estimate_noise(trial.low), space)
    field = Field((), slice(104, 152), slice(100, 156))
    whole, part = (slice(0, 128), slice(0, 128)), audit_scan._window(field, trial, space, setting)
    assert all(w.start < p.start and p.stop < w.stop for w, p in zip(whole, part, strict=True))
    found = []
    for window in (whole, part):
        stored = audit_scan._estimate(trial, method.upscaler.adapt(trial.low), window, setting)
        inner = audit_scan._inside(field, window, trial.factor)
        maps = audit_scan.field_maps(method, scene, stored, window, setting)
        found.append({name: values[inner] for name, values in maps.items()})
    assert list(found[0]) == list(found[1])
    for name, values in found[0].items():
        assert values.shape == (48, 56)
        assert np.abs(values - found[1][name]).max() < 1e-3 * max(1.0, float(values.max())), name


def test_a_stopped_audit_goes_on_and_another_one_takes_nothing_over(
    run: Path, plane: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    for name, number in (("audit", 15), ("b", 18), ("c", 21)):  # a scan may be called as a table is
        tifffile.imwrite(scans / f"{name}.tif", tifffile.imread(medsr.NUCLEI)[number, :160, :160])
    calm = audit(run, scans, out=tmp_path / "calm", **SMALL)
    kept = files_below(tmp_path / "calm")
    assert {"scans/audit.png", "scans/audit.json", "audit.png", "audit.csv"} <= set(kept)

    class Stopped(BaseException):
        pass

    def stop(scan: str, done: int, total: int) -> None:
        if scan == "b":
            raise Stopped

    with pytest.raises(Stopped):
        audit(run, scans, out=tmp_path / "out", tick=stop, **SMALL)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["scans"]  # no table of a part
    asked: list[str] = []
    lines: list[str] = []
    again = audit(
        run, scans, out=tmp_path / "out", tick=lambda scan, *_: asked.append(scan), note=lines.append, **SMALL
    )
    assert again == calm
    assert set(asked) == {"b", "c"}
    assert "audit: taken over from the same audit" in lines
    assert files_below(tmp_path / "out") == kept
    with pytest.raises(Stopped):  # another audit in this folder: nothing of the first is left for all scans
        audit(run, scans, out=tmp_path / "out", tick=stop, seed=3, **SMALL)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["scans"]
    (scans / "c.tif").unlink()
    last = audit(run, scans, out=tmp_path / "out", seed=3, **SMALL)
    assert last != calm
    assert {p.stem for p in (tmp_path / "out" / "scans").iterdir()} == {"audit", "b"}


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
    assert not (tmp_path / "out" / "scans" / "tiny.json").exists()
    assert any(line.startswith("broken: failed:") for line in lines)


def test_no_name_is_written_where_names_are_hidden(run: Path, plane: Path, tmp_path: Path) -> None:
    scans = tmp_path / "Jane_Doe"
    scans.mkdir()
    (scans / "Doe_Jane_1957.tif").write_bytes(plane.read_bytes())
    (scans / "Doe_broken.tif").write_bytes(b"II*\x00 no image")
    lines: list[str] = []
    hidden = medsr.Pseudonyms(tmp_path / "key")
    audit(run, scans, out=tmp_path / "out", pseudonyms=hidden, note=lines.append, **SMALL)
    written = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    said = "\n".join([*lines, *map(str, written)]).replace(str(tmp_path), "")
    said += "".join(path.read_bytes().decode("latin-1") for path in written)
    assert "Doe" not in said
    assert "Jane" not in said
    assert "scan-" in said
    with pytest.raises(ValueError, match="expected its number with pseudonyms"):
        audit(run, scans, out=tmp_path / "out", pseudonyms=hidden, series="Doe_Jane", **SMALL)


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
    with pytest.raises(ValueError, match="expected a kind of auto, speck, punctum, filament; found 'spek'"):
        audit(run, plane, out=tmp_path / "out", kind="spek")  # type: ignore[arg-type]
    for factor in ((2, 1, 1), (1, 2, 2)):
        deep = FastRecipe(factor=factor, features=4, blocks=1)
        recipe = Recipe.model_validate({"method": deep, "data": DataRecipe(patch=(16, 16, 16))})
        save_checkpoint(tmp_path / "deep.ckpt", deep.build(), recipe, CARD)
        with pytest.raises(ValueError, match="expected a method with a factor for y and x"):
            audit(tmp_path / "deep.ckpt", plane, out=tmp_path / "out", **SMALL)
    assert not (tmp_path / "out").exists()


def test_the_noise_of_the_coarse_scan_follows_from_seed_and_scan() -> None:
    degradation = medsr.DegradationRange(read_noise=(0.02, 0.02))
    fine = medsr.read_scan(medsr.NUCLEI)
    plane = Scan(fine.read((slice(15, 16), slice(0, 64), slice(0, 64))), fine.grid, fine.intensity)
    made = [Trial(plane, (2, 2), degradation, seed=seed).low.read() for seed in ((), (0, 7), (0, 7), (1, 7), (0, 8))]
    assert np.array_equal(made[1], made[2])
    for one, other in ((0, 1), (1, 3), (1, 4)):
        assert not np.array_equal(made[one], made[other])


def test_holes_leave_the_rest_of_the_detail(run: Path, tmp_path: Path) -> None:
    values = tifffile.imread(medsr.NUCLEI)[15].astype(np.float32)
    values[:24, :24] = np.nan
    tifffile.imwrite(tmp_path / "holes.tif", values)
    found = audit(run, tmp_path / "holes.tif", out=tmp_path / "out", **SMALL)
    assert all(row["energy"] is not None and row["samples"] > 1000 for row in found.detail)


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
