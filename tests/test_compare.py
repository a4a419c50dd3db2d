"""compare: methods by name on the same scans; missing runs are found, trained or refused."""

import csv
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

import medsr
from medsr.comparison import KINDS, Budget, BudgetTraining, budgeted, compare
from medsr.evaluation import evaluate
from medsr.methods import Cubic, Lanczos, Linear
from medsr.methods.named import UNTRAINED
from medsr.recipe import Recipe
from medsr.scoring import COLUMNS


@pytest.fixture
def fields(tmp_path: Path) -> tuple[Path, Path]:
    """Planes of the shipped stack: to learn from, and to measure on."""
    stack = tifffile.imread(medsr.NUCLEI)
    for folder, planes in (("train", (6, 9, 20)), ("test", (14,))):
        (tmp_path / folder).mkdir()
        for plane in planes:
            size = 128 if folder == "train" else 96
            tifffile.imwrite(tmp_path / folder / f"plane_{plane}.tif", stack[plane, :size, :size])
    return tmp_path / "train", tmp_path / "test"


SMALL = Budget(
    training=BudgetTraining(
        pixel_steps=4, batch=2, learning_rate=1e-3, validate_every_steps=4, ema=0.9, loader_workers=0, device="cpu"
    ),
    adversarial_share=0.5,
)


def budget_on(folder: Path, **changes: object) -> Budget:
    data = SMALL.data.model_copy(update={"folder": folder, "group": "scan", "validation_crops": 1, "patch": (32, 32)})
    return SMALL.model_copy(update={"data": data, **changes})


def table(out: Path) -> list[dict[str, str]]:
    with (out / "scores.csv").open() as stream:
        return list(csv.DictReader(stream))


def test_several_methods_are_measured_on_the_same_coarse_scan(fields, tmp_path):
    out = tmp_path / "out"
    named = {"cubic": Cubic((2, 2)), "straight": Linear((2, 2)), "sharp": Lanczos((2, 2)), "again": Lanczos((2, 2))}
    report = evaluate(fields[1], named, out=out)
    assert [row["method"] for row in report.rows] == list(named)
    rows = table(out)
    assert tuple(rows[0]) == COLUMNS
    by_name = {row["method"]: row for row in rows}
    same = {k: v for k, v in by_name["sharp"].items() if k not in ("method", "seconds", "peak_mb")}
    assert same == {k: v for k, v in by_name["again"].items() if k in same}
    assert float(by_name["sharp"]["psnr_db"]) > float(by_name["straight"]["psnr_db"])
    assert float(by_name["sharp"]["haarpsi"]) > float(by_name["straight"]["haarpsi"])
    assert all(0 < float(row["haarpsi"]) < 1 and float(row["seconds"]) >= 0 for row in rows)
    assert all(float(row["peak_mb"]) >= 0 for row in rows)
    sheet = np.asarray(Image.open(out / "plane_14.png"))
    assert sheet.shape[1] > 1500
    assert sheet.std() > 20


def test_methods_of_different_factors_are_refused(fields, tmp_path):
    with pytest.raises(ValueError, match="expected methods of one factor, found a 2 x 2, b 4 x 4"):
        evaluate(fields[1], {"a": Cubic((2, 2)), "b": Cubic((4, 4))}, out=tmp_path / "out")
    with pytest.raises(ValueError, match="found no method"):
        evaluate(fields[1], {}, out=tmp_path / "out")


def test_missing_runs_are_trained_once_and_found_again(fields, tmp_path):
    train, test = fields
    out, said = tmp_path / "out", list[str]()
    names = ["cubic", "srgan", "srresnet"]
    report = compare(test, names, out=out, budget=budget_on(train), note=said.append)
    assert [row["method"] for row in report.rows] == names
    srgan = medsr.load_upscaler(out / "runs" / "srgan")
    assert srgan.name == "srgan"
    assert srgan.card.steps == {"adversarial": 2}  # its pixel phase was srresnet's, trained beside it
    assert srgan.recipe.training.pixel_steps == 0
    made = {path: path.stat().st_mtime_ns for path in out.rglob("best.ckpt")}
    assert len(made) == 2
    again = compare(test, names, out=tmp_path / "again", runs=out / "runs", note=said.append)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("best.ckpt")} == made
    figures = [[row["psnr_db"] for row in each.rows] for each in (report, again)]
    assert figures[0] == figures[1]


def test_a_run_that_is_missing_is_named_with_the_cure(fields, tmp_path):
    with pytest.raises(ValueError, match=r"srresnet: expected a run of it .* found none; train one .*--train"):
        compare(fields[1], ["cubic", "srresnet"], out=tmp_path / "out", runs=tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"methods: expected names .* found 'srresnett'. Did you mean 'srresnet'"):
        compare(fields[1], ["srresnett"], out=tmp_path / "out")


def test_two_runs_of_a_kind_are_not_guessed_between(fields, tmp_path):
    method = medsr.SrresnetRecipe(features=4, blocks=1)
    card = medsr.TrainingCard(black=(0, 0), white=(9, 9), dtype="uint16")
    for name in ("one", "two"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        medsr.save_checkpoint(
            tmp_path / "runs" / name / "best.ckpt", medsr.build_network(method), Recipe(method=method), card
        )
    with pytest.raises(ValueError, match="expected one run of it .* found one, two"):
        compare(fields[1], ["srresnet"], out=tmp_path / "out", runs=tmp_path / "runs")


def test_runs_for_different_degradations_are_not_compared_unasked(fields, tmp_path):
    card = medsr.TrainingCard(black=(0, 0), white=(9, 9), dtype="uint16")
    for name, blur in (("srresnet", None), ("srgan", (1.0, 2.0))):
        method = KINDS[name](features=4, blocks=1)
        recipe = Recipe(method=method, degradation=medsr.DegradationRange(fwhm_samples=blur))
        (tmp_path / "runs" / name).mkdir(parents=True)
        steps = card.model_copy(update={"steps": {"adversarial": 1}})
        medsr.save_checkpoint(tmp_path / "runs" / name / "best.ckpt", medsr.build_network(method), recipe, steps)
    asked = {"out": tmp_path / "out", "runs": tmp_path / "runs"}
    with pytest.raises(ValueError, match="degradation: expected runs that were trained for the same"):
        compare(fields[1], ["srgan", "srresnet"], **asked)
    report = compare(fields[1], ["srgan", "srresnet"], degradation=medsr.DegradationRange(), **asked)
    assert report.exit_code == 0


@pytest.mark.parametrize("factor", [(2, 2), (4, 4), (1, 2, 2), (4, 1, 1)])
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_has_a_recipe_for_the_budget(name, factor, tmp_path):
    try:
        KINDS[name].small(factor)
    except ValueError as error:
        assert "factor" in str(error) and "expected" in str(error)  # noqa: PT018, PT017 one that refuses z says so
        assert factor == (4, 1, 1)
        return
    recipe = budgeted(SMALL, KINDS[name], factor, out=tmp_path, others={})
    assert recipe.method.factor == factor
    assert recipe.training.pixel_steps == 4


def test_every_untrained_method_is_an_upscaler():
    from medsr.upscaler import Upscaler

    for name, make in UNTRAINED.items():
        assert isinstance(make((2, 2), None), Upscaler), name


def test_height_maps_have_their_texture_measured(tmp_path):
    report = evaluate(medsr.SURFACE, {"cubic": Cubic((2, 2)), "sharp": Lanczos((2, 2))}, out=tmp_path / "out")
    assert [row["method"] for row in report.surfaces] == ["original", "cubic", "sharp"]
    truth, cubic, sharp = report.surfaces
    assert truth["height_rmse"] == 0
    assert truth["units"] == "um"
    assert truth["sdq"] > sharp["sdq"] > cubic["sdq"] > 0  # interpolation takes the steepest slopes away
    assert abs(cubic["height_bias"]) < 0.01
    with (tmp_path / "out" / "surface.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["sa"]) for row in rows] == pytest.approx([row["sa"] for row in report.surfaces], rel=1e-4)
    evaluate(medsr.NUCLEI, Cubic((4, 4)), out=tmp_path / "out")
    assert not (tmp_path / "out" / "surface.csv").exists()  # counts of light are no heights


def test_a_setting_of_the_budget_leaves_its_other_settings_alone():
    budget = medsr.apply_overrides(medsr.Budget, ["training.pixel_steps=7", "data.flips=false"])
    assert budget.training.pixel_steps == 7
    for part in ("training", "data"):
        changed, plain = getattr(budget, part).model_dump(), getattr(Budget(), part).model_dump()
        assert {k for k in plain if changed[k] != plain[k]} <= {"pixel_steps", "flips"}


def test_real_pairs_are_measured_as_pairs(tmp_path):
    stack = tifffile.imread(medsr.NUCLEI)
    for number, plane in enumerate((8, 14)):
        high = stack[plane, :128, :128]
        low = high.reshape(64, 2, 64, 2).mean((1, 3)).round().astype(high.dtype)
        for name, values in (("high", high), ("low", low)):
            (tmp_path / "pairs" / name).mkdir(parents=True, exist_ok=True)
            step = {"high": 0.26, "low": 0.52}[name]
            sizes = {"axes": "YX", "PhysicalSizeX": step, "PhysicalSizeY": step}
            tifffile.imwrite(tmp_path / "pairs" / name / f"f{number}.ome.tif", values, metadata=sizes)
    report = compare(tmp_path / "pairs", ["cubic", "lanczos"], out=tmp_path / "out")
    assert [(row["scan"], row["method"]) for row in report.rows] == [
        (name, method) for name in ("f0", "f1") for method in ("cubic", "lanczos")
    ]
    assert all(row["psnr_fitted_db"] >= row["psnr_db"] for row in report.rows)


def test_a_method_that_fails_does_not_take_the_others_with_it(fields, tmp_path):
    class Failing(Lanczos):
        def adapt(self, scan):
            raise MemoryError("no room for exemplars")

    named = {"cubic": Cubic((2, 2)), "broken": Failing((2, 2)), "sharp": Lanczos((2, 2))}
    report = evaluate(fields[1], named, out=tmp_path / "out")
    assert [row["method"] for row in report.rows] == ["cubic", "sharp"]
    assert report.exit_code == 1
    assert report.failed[0][1].startswith("broken: ")


def test_what_is_around_a_method_is_in_its_name_and_cubic_stays_beside(fields, tmp_path):
    wrapped = medsr.Consistent(Cubic((2, 2)))
    report = evaluate(fields[1], wrapped, out=tmp_path / "out")
    assert [row["method"] for row in report.rows] == ["cubic", "consistent cubic"]
    with pytest.raises(ValueError, match="another name than cubic"):
        evaluate(fields[1], {"cubic": wrapped}, out=tmp_path / "out")


def test_trainings_and_untrained_methods_are_told_what_is_measured(fields, tmp_path):
    train, test = fields
    said = medsr.DegradationRange(fwhm_samples=(2.0, 2.0))
    out = tmp_path / "out"
    first = compare(test, ["edges", "srresnet"], out=out, budget=budget_on(train), degradation=said)
    assert medsr.load_upscaler(out / "runs" / "srresnet").recipe.degradation == said
    by_runs = compare(test, ["edges", "srresnet"], out=tmp_path / "again", runs=out / "runs")
    figures = [{row["method"]: row["psnr_db"] for row in each.rows} for each in (first, by_runs)]
    assert figures[0] == figures[1]
    plain = compare(test, ["edges"], out=tmp_path / "plain", degradation=medsr.Degradation((2, 2)))
    assert plain.rows[-1]["psnr_db"] != figures[0]["edges"]
    other = budget_on(train, degradation=medsr.DegradationRange(fwhm_samples=(1.0, 1.0)))
    with pytest.raises(ValueError, match="expected one for trainings and measuring"):
        compare(test, ["srresnet"], out=out, budget=other, degradation=said)
    with pytest.raises(ValueError, match=r"expected a run trained with degradation.fwhm_samples"):
        compare(test, ["srresnet"], out=out, budget=other)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ({"threshold": 0.3}, {"threshold": 0.0}),
        ({"degradation": medsr.Degradation((2, 2), kernel=np.eye(3) + 0.1)},
         {"degradation": medsr.Degradation((2, 2), kernel=np.ones((3, 3)))}),
        ({"degradation": medsr.Degradation((2, 2), kernel=np.ones((3, 3))), "steps": 4},
         {"degradation": medsr.Degradation((2, 2), kernel=np.ones((3, 3))), "steps": 6}),
    ],
)  # fmt: skip
def test_settings_that_change_a_result_change_its_fingerprint(a, b):
    from medsr.upscaler import fingerprint

    for around in (lambda method: method, medsr.Consistent):
        one, two = (around(medsr.Edges((2, 2), **settings)) for settings in (a, b))
        assert fingerprint(one) != fingerprint(two)
        assert fingerprint(one) == fingerprint(around(medsr.Edges((2, 2), **a)))


def test_a_projection_believes_what_is_said_then_what_was_found():
    blur = medsr.DegradationRange(fwhm_samples=(2.0, 2.0))
    edges = medsr.Edges((2, 2))  # assumes the mean, and found nothing
    assert "Gaussian" in repr(medsr.Consistent(edges, blur))

    class Finds(Cubic):
        found_degradation = medsr.Degradation((2, 2), kernel=medsr.Gaussian(fwhm_samples=1.2))

    for method in (Finds((2, 2)), medsr.Ensemble([Finds((2, 2)), Finds((2, 2))])):
        assert "1.2" in repr(medsr.Consistent(method, blur))
        assert "2.0" in repr(medsr.Consistent(method, blur, certain=True))
