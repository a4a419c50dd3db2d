"""Where a result comes from, what a checkpoint's card says, and which scans it doubts."""

import hashlib
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

import medsr
from medsr.blending import blend_checkpoints
from medsr.card import TextureRange, TrainingCard, TrainingInput, check_scan
from medsr.checkpoint import load_checkpoint, load_upscaler, save_checkpoint
from medsr.data import MAMMOGRAM, NUCLEI
from medsr.engines import REFERENCE
from medsr.io import read_scan
from medsr.methods import Cubic, Ensemble
from medsr.recipe import Recipe
from medsr.scan import Grid, Intensity, Scan, ScanError
from medsr.texture import crop_regions, texture_of
from medsr.training import train
from medsr.trust import provenance_of, render_card, verify


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small networks: threads that wait for each other only cost time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def mammogram(path: Path, part: tuple[slice, slice] = np.s_[600:856, 300:556]) -> Path:
    """A part of the shipped mammogram as a DICOM file."""
    import pydicom

    dataset = pydicom.dcmread(MAMMOGRAM)
    values = dataset.pixel_array[part]
    dataset.PixelData, (dataset.Rows, dataset.Columns) = values.tobytes(), values.shape
    dataset.PixelSpacing = [0.05, 0.05]
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run on parts of the shipped mammogram."""
    folder = tmp_path_factory.mktemp("trained")
    for number in range(3):
        start = 300 * number + 300
        mammogram(folder / "scans" / f"{number}.dcm", np.s_[start : start + 256, 300:556])
    recipe = Recipe.model_validate(
        {
            "method": {"kind": "srresnet", "features": 4, "blocks": 1, "head_kernel": 3, "tail_kernel": 3},
            "data": {"folder": folder / "scans", "patch": (64, 64), "group": "scan", "validation_crops": 1},
            "degradation": {"fwhm_samples": (0.8, 1.2), "read_noise": (0.0, 0.002)},
            "training": {"pixel_steps": 2, "batch": 1, "device": "cpu"},
            "out": folder / "run",
        }
    )
    return train(recipe)


# --- provenance -----------------------------------------------------------------------------------------------------


def test_a_result_says_where_it_comes_from(run: Path, tmp_path: Path) -> None:
    file = mammogram(tmp_path / "in" / "a.dcm")
    upscaler = load_upscaler(run)
    options = medsr.OutputOptions(chunk=(128, 128), shard=(256, 256), black=10.0)
    medsr.upscale_folder(file, upscaler, out=tmp_path / "out", device="cpu", engine="compiled", options=options)
    found = provenance_of(tmp_path / "out" / "a.ome.zarr")
    digest = hashlib.sha256(f"{file.name} {file.stat().st_size};".encode() + file.read_bytes())
    assert found.input_sha256 == digest.hexdigest()
    assert found.checkpoints == (load_checkpoint(run / "best.ckpt").sha256,)
    assert found.version == medsr.__version__
    assert found.method.startswith("srresnet x2,2")
    assert found.factor == (2, 2)
    assert found.options["chunk"] == [128, 128]
    assert found.options["shard"] == [256, 256]
    assert found.options["black"] == 10.0
    assert (found.asked_engine, found.device) == ("compiled", "cpu")
    assert found.engine.name in ("compiled", "torch")
    if found.engine.name == "compiled":
        assert 0 <= found.engine.deviation <= found.engine.tolerance
    assert found.history[-2].startswith("upscaled 2x2 by srresnet")
    assert found.history[-1].startswith("consistency with the measured scan: rms ")
    said = "\n".join(found.lines())
    for part in (found.input_sha256, found.checkpoints[0], found.version, "chunk [128, 128]", str(found.engine)):
        assert part in said


def test_every_checkpoint_of_a_composed_method_is_named(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.ckpt"
    first = load_checkpoint(run / "best.ckpt")
    for value in first.network.parameters():
        value.data.mul_(1.5)
    save_checkpoint(other, first.network, first.recipe, first.card)
    both = [load_upscaler(run / "best.ckpt"), load_upscaler(other)]
    file = mammogram(tmp_path / "a.dcm", np.s_[600:664, 300:364])
    medsr.upscale_folder(file, Ensemble(both), out=tmp_path / "out", device="cpu")
    found = provenance_of(tmp_path / "out" / "a.ome.zarr")
    assert found.checkpoints == tuple(load_checkpoint(path).sha256 for path in (run / "best.ckpt", other))
    assert len(set(found.checkpoints)) == 2


def test_a_method_without_a_checkpoint_names_none(tmp_path: Path) -> None:
    medsr.upscale_folder(NUCLEI, Cubic((1, 1, 2)), out=tmp_path / "out", device="cpu")
    (result,) = (tmp_path / "out").glob("*.ome.zarr")
    found = provenance_of(result)
    assert found.checkpoints == ()
    assert found.engine == REFERENCE
    assert found.method.startswith("Cubic")
    group = json.loads((result / "zarr.json").read_text())  # as it was written before checkpoints were named
    del group["attributes"]["medsr"]["checkpoints"]
    (result / "zarr.json").write_text(json.dumps(group))
    assert provenance_of(result) == found


def test_an_input_that_changed_is_seen(tmp_path: Path) -> None:
    file = mammogram(tmp_path / "in" / "a.dcm", np.s_[600:700, 300:400])
    medsr.upscale_folder(file, Cubic((2, 2)), out=tmp_path / "out", device="cpu")
    result = tmp_path / "out" / "a.ome.zarr"
    assert verify(result, file)
    mammogram(tmp_path / "in" / "b.dcm", np.s_[0:100, 300:400])
    assert verify(result, tmp_path / "in")
    assert verify(result, [tmp_path / "in" / "b.dcm", file])
    assert not verify(result, tmp_path / "in" / "b.dcm")
    shutil.move(result, tmp_path / "elsewhere.ome.zarr")
    values = bytearray(file.read_bytes())
    values[-1] ^= 1
    file.write_bytes(values)
    assert not verify(tmp_path / "elsewhere.ome.zarr", tmp_path / "in")


def test_what_is_no_result_says_so(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="expected a result of medsr upscale"):
        provenance_of(tmp_path)
    (tmp_path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {"medsr": {}}}')
    with pytest.raises(ScanError, match="found other metadata \\(KeyError\\)"):
        provenance_of(tmp_path)


def test_a_result_in_an_object_store_says_it_too(tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}"
    file = mammogram(tmp_path / "a.dcm", np.s_[600:664, 300:364])
    medsr.upscale_folder(file, Cubic((2, 2)), out=url, device="cpu")
    assert verify(f"{url}/a.ome.zarr", file)


# --- texture --------------------------------------------------------------------------------------------------------


def power_law(slope: float, *, side: int = 256, seed: int = 0) -> np.ndarray:
    """Noise with a spectrum f^-slope; zero mean, unit standard deviation."""
    white = np.fft.rfft2(np.random.default_rng(seed).normal(size=(side, side)))
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = np.inf
    field = np.fft.irfft2(white * frequency ** (-slope / 2), s=(side, side))
    return field / field.std()


def scan_of(values: np.ndarray, dtype: str = "float32") -> Scan:
    axes = ("z", "y", "x")[-values.ndim :]
    data = values.astype(dtype)
    return Scan(data, Grid(axes, (1.0,) * values.ndim, (0.0,) * values.ndim), Intensity(0.0, 1.0, np.dtype(dtype)))


@pytest.mark.parametrize("sigma", [0.002, 0.01, 0.05])
def test_noise_on_a_smooth_scene_is_measured(sigma: float) -> None:
    y, x = np.mgrid[:256, :256] / 256
    scene = 0.5 + 0.3 * np.sin(5 * x) * np.cos(4 * y) + sigma * np.random.default_rng(1).normal(size=(256, 256))
    found = texture_of(scan_of(scene))
    assert found is not None
    assert found.noise == pytest.approx(sigma, rel=0.1)


@pytest.mark.parametrize("slope", [0.0, 1.0, 2.0, 3.0])
def test_the_slope_of_a_spectrum_is_measured(slope: float) -> None:
    found = texture_of(scan_of(0.5 + 0.1 * power_law(slope)))
    assert found is not None
    assert found.slope == pytest.approx(slope, abs=0.35)


def test_foreground_is_measured() -> None:
    values = np.full((256, 256), 0.05)
    values[:, :64] = 0.8
    found = texture_of(scan_of(values + 0.001 * power_law(0)))
    assert found is not None
    assert 0.15 < found.foreground < 0.35


def test_rounding_is_the_least_noise_of_integers() -> None:
    ramp = np.repeat(np.arange(256)[None] // 8 * 8, 256, axis=0)
    scan = replace(scan_of(ramp, "uint8"), intensity=Intensity(0.0, 256.0, np.dtype("uint8")))
    found = texture_of(scan)
    assert found is not None
    assert found.noise == pytest.approx(1 / 256 / np.sqrt(12))


def test_what_shows_nothing_has_no_texture() -> None:
    assert texture_of(scan_of(np.zeros((64, 64)))) is None
    assert texture_of(scan_of(np.random.default_rng(0).random((31, 64)))) is None
    assert texture_of(scan_of(np.full((64, 64), np.nan))) is None
    assert crop_regions((9,)) == []


def test_few_crops_are_read_of_a_large_scan() -> None:
    regions = crop_regions((2, 500, 20000, 30000))
    assert len(regions) == 27
    assert all(part.stop - part.start <= 64 for region in regions for part in region)


def test_the_card_of_a_run_holds_the_texture_of_its_coarse_scans(run: Path) -> None:
    card = load_upscaler(run).card
    assert card.texture is not None
    assert card.degradation.startswith("mean over each coarse sample, fwhm_samples 0.8 to 1.2, read_noise 0 to 0.002")
    recipe = load_upscaler(run).recipe
    degrade = recipe.degradation.center((2, 2), None)
    for path in (run.parent / "scans").iterdir():
        scan = read_scan(path)
        unit = torch.from_numpy(scan.intensity.to_unit(scan.read()))[None, None]
        low = degrade(unit, torch.Generator().manual_seed(1))[0, 0].numpy()
        assert _texture_doubts(card, scan_of(low)) == []


def _texture_doubts(card: TrainingCard, scan: Scan) -> list[str]:
    return [
        line for line in check_scan(card, scan) if "finest detail" in line or "spectrum" in line or "foregr" in line
    ]


# --- doubts ---------------------------------------------------------------------------------------------------------


def card_of(**parts: object) -> TrainingCard:
    plain = {"black": (0.0, 0.0), "white": (1.0, 1.0), "dtype": "float32"}
    return TrainingCard.model_validate(plain | parts)


def textured(scan: Scan) -> TrainingCard:
    found = texture_of(scan)
    assert found is not None
    return card_of(texture=TextureRange.over([found]))


def scene(seed: int = 0, *, noise: float = 0.01) -> np.ndarray:
    smooth = ndimage.gaussian_filter(power_law(2.0, seed=seed), 1.0)
    return 0.5 + 0.1 * smooth / smooth.std() + noise * power_law(0.0, seed=seed + 1)


def test_a_scan_of_another_texture_is_flagged_with_the_reason() -> None:
    card = textured(scan_of(scene()))
    assert check_scan(card, scan_of(scene(seed=7))) == []
    (noisy, *_) = check_scan(card, scan_of(scene(noise=0.06)))
    assert re.search(r"finest detail .* more than twofold off .* it is noisier or sharper", noisy)
    blurred = check_scan(card, scan_of(ndimage.gaussian_filter(scene(), 3.0)))
    assert any("it is less noisy or more blurred" in line for line in blurred)
    assert any("spectrum falls" in line and "smoother or more blurred" in line for line in blurred)
    rough = check_scan(card, scan_of(0.5 + 0.1 * power_law(0.0)))
    assert any("spectrum falls" in line and "rougher" in line for line in rough)
    sparse = np.zeros((256, 256))
    sparse[100:118, 100:118] = scene()[:18, :18] + 0.5
    assert any("foreground takes" in line for line in check_scan(card, scan_of(sparse)))


def test_microscopy_is_doubted_by_a_network_for_mammograms(run: Path) -> None:
    card = load_upscaler(run).card
    doubts = check_scan(card, read_scan(NUCLEI))
    assert any("spacing along y" in line for line in doubts)
    assert any("finest detail" in line or "spectrum falls" in line for line in doubts)


def test_the_line_of_the_recipe_is_the_line_of_the_texture() -> None:
    values = scene()
    card = textured(scan_of(values))
    other = replace(scan_of(values), intensity=Intensity(0.0, 9.0, np.dtype("float32")))  # its noise seems less
    assert any("finest detail" in line for line in check_scan(card, other))
    assert _texture_doubts(card.model_copy(update={"fixed_line": True}), other) == []


def test_old_cards_load_and_know_no_texture() -> None:
    plain = card_of().model_dump(mode="json")
    for name in ("texture", "degradation", "fixed_line"):
        del plain[name]
    old = TrainingCard.model_validate(plain)
    assert old.texture is None
    assert check_scan(old, scan_of(scene(noise=0.3))) == []


def test_a_blend_knows_the_textures_of_both(run: Path, tmp_path: Path) -> None:
    first = load_checkpoint(run / "best.ckpt")
    assert first.card.texture is not None
    noisier = TextureRange(noise=(0.2, 0.3), slope=(9.0, 9.0), foreground=(0.01, 0.02))
    card = first.card.model_copy(update={"texture": noisier, "parents": (first.sha256,)})
    save_checkpoint(tmp_path / "b.ckpt", first.network, first.recipe, card)
    made = load_checkpoint(blend_checkpoints(run, tmp_path / "b.ckpt", alpha=0.5, out=tmp_path / "c.ckpt")).card
    assert made.texture is not None
    assert made.texture.noise == (first.card.texture.noise[0], 0.3)
    assert made.texture.slope == (first.card.texture.slope[0], 9.0)
    assert made.texture.foreground == (0.01, first.card.texture.foreground[1])


# --- model card -----------------------------------------------------------------------------------------------------

SECTIONS = ("Data", "Intended use", "Training", "Figures", "Limits", "Hashes")


def test_a_model_card_has_all_sections_and_figures(run: Path) -> None:
    checkpoint = load_checkpoint(run / "best.ckpt")
    text = render_card(run)
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == list(SECTIONS)
    assert "Not for diagnosis." in text
    assert checkpoint.sha256 in text
    for found in (*checkpoint.card.inputs, *checkpoint.card.held_out):
        assert found.sha256 in text
    assert f"| scans learned from | {len(checkpoint.card.inputs)} (samples: 256 x 256) |" in text
    assert f"{checkpoint.card.validation['psnr_db']:.4g}" in text
    assert checkpoint.card.degradation in text
    assert "| coarse spacing, um (slowest axis first) |" in text
    for name in ("noise of coarse scans", "slope of their spectra", "share of foreground", "black", "white"):
        assert f"| {name}" in text
    assert "Only 1 held out" in text
    assert str(run) not in text
    assert render_card(checkpoint) == render_card(run / "best.ckpt") == text


def test_an_html_card_says_the_same(run: Path) -> None:
    class Words(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.words: list[str] = []
            self.open: list[str] = []

        def handle_starttag(self, tag: str, attrs: object) -> None:
            self.open += [tag] if tag != "meta" else []

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

        def handle_data(self, data: str) -> None:
            self.words += data.split() if self.open and self.open[-1] != "style" else []

    page = Words()
    page.feed(render_card(run, format="html"))
    assert page.open == []
    plain = re.sub(r"[|#]|---|^- ", " ", render_card(run), flags=re.MULTILINE).split()
    assert set(plain) <= set(page.words)


def test_a_card_of_little_knowledge_says_what_it_does_not_know(run: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(run / "best.ckpt")
    one = TrainingInput(name_hash="ab", sha256="cd" * 32, shape=(9, 9))
    card = card_of(inputs=(one,), held_out=(one,), validation={"psnr_db": 30.0})
    save_checkpoint(tmp_path / "a.ckpt", checkpoint.network, checkpoint.recipe, card)
    text = render_card(tmp_path / "a.ckpt")
    for part in (
        "the figures flatter",
        "texture of the training scans was not measured",
        "spacing of the training scans is unknown",
        "had not come to its end",
    ):
        assert part in text
    save_checkpoint(tmp_path / "b.ckpt", checkpoint.network, checkpoint.recipe, card_of())
    assert "None are known" in render_card(tmp_path / "b.ckpt")


def test_another_format_is_refused(run: Path) -> None:
    with pytest.raises(ValueError, match="expected markdown or html, found 'pdf'"):
        render_card(run, format="pdf")  # type: ignore[arg-type]


def test_nothing_heavy_comes_with_the_names() -> None:
    import subprocess
    import sys

    code = "import sys, medsr.trust; sys.exit(bool({'torch', 'numpy', 'pydantic', 'zarr'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_degradations_are_said_in_words() -> None:
    from medsr.trust import degradation_text

    def said(**parts: object) -> str:
        method = {"kind": "srresnet"}
        return degradation_text(Recipe.model_validate({"method": method, "degradation": parts}))

    assert said() == "mean over each coarse sample, no noise"
    assert said(sampling="point", photons=(100, 100)) == "one fine sample for each coarse one, photons 100"
    assert said(na=0.8, wavelength_um=0.52) == "mean over each coarse sample, na 0.8, wavelength_um 0.52, no noise"
    assert "a second pass with between 0.5 to 1.5" in said(second={})
