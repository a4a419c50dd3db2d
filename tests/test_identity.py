"""No identity leaves (law 7): names planted in every DICOM test file are in nothing that is said or written."""

import hashlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pydicom
import pytest
import torch
from PIL import Image
from pydicom.datadict import DicomDictionary, keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag

import medsr
from medsr.cli import app
from medsr.data import MAMMOGRAM
from medsr.io.dicom import accepts
from medsr.io.pseudonyms import Pseudonyms
from medsr.methods import Cubic
from medsr.recipe import Recipe
from medsr.training import train

FILES = Path(pydicom.__file__).parent / "data" / "test_files"

TEXTS = ("PN", "LO", "SH", "ST", "LT", "UT", "UC")
UIDS = (
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "FrameOfReferenceUID",
    "DeviceUID",
    "ConcatenationUID",
)
DATES = ("PatientBirthDate", "StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate")
TECHNICAL = ("Manufacturer", "ManufacturerModelName", "RescaleType", "ConvolutionKernel")
"""The tags with free text that may be read; here once more, so that a longer allow-list is seen."""

PERSON = "QX00100020XQ"
IN_FILES = "QXfilenameXQ"
IN_FOLDERS = "QXfolderXQ"
HASHED = hashlib.sha256(PERSON.encode()).hexdigest()[:16]
BURIED = re.compile(f"QX[0-9A-F]{{8}}XQ|QXprivateXQ|QXnestedXQ|66554433|19570417|{HASHED}".encode(), re.IGNORECASE)
ANY_NAME = re.compile(BURIED.pattern + rb"|QXfilenameXQ|QXfolderXQ", re.IGNORECASE)


@cache
def planted_tags() -> tuple[int, ...]:
    """Every tag of the dictionary that holds text or a name but the technical ones."""
    found = []
    for tag, (vr, *_) in DicomDictionary.items():
        if vr in TEXTS and tag >> 16 >= 8 and keyword_for_tag(tag) not in TECHNICAL:
            found.append(tag)
    return tuple(found)


def mark(tag: int) -> str:
    """What is planted in a tag; names the tag where it leaks."""
    return f"QX{tag:08X}XQ"


def plant(dataset: Dataset, *, model: str = "") -> Dataset:
    """The data set with names in standard, private and nested tags, and in its UIDs and dates."""
    for tag in planted_tags():
        dataset.add_new(tag, DicomDictionary[tag][0], mark(tag))
    dataset.PatientID = PERSON
    for number, keyword in enumerate(UIDS):
        setattr(dataset, keyword, f"2.25.66554433.{number}.{id(dataset) % 997}")
    for keyword in DATES:
        setattr(dataset, keyword, "19570417")
    block = dataset.private_block(0x0099, "QXprivateXQ", create=True)
    block.add_new(1, "LO", "QXprivateXQ")
    block.add_new(2, "UN", b"QXprivateXQ")
    inner = Dataset()
    inner.PatientName = inner.ImageComments = "QXnestedXQ"
    inner.private_block(0x0099, "QXprivateXQ", create=True).add_new(1, "LO", "QXprivateXQ")
    outer = Dataset()
    outer.PersonName = "QXnestedXQ"
    outer.ReferencedPatientSequence = Sequence([inner])
    dataset.OriginalAttributesSequence = Sequence([outer])
    dataset.RequestAttributesSequence = Sequence([outer, inner])
    if model:
        dataset.ManufacturerModelName = model
    return dataset


def planted(source: Path, target: Path, **more: str) -> bool:
    """Write a copy of a file with names in it; False where pydicom cannot write it again."""
    try:
        dataset = pydicom.dcmread(source, force=True)
        if source == MAMMOGRAM:  # a part of it costs less
            dataset.PixelData = dataset.pixel_array[600:900, 300:600].tobytes()
            dataset.Rows = dataset.Columns = 300
        plant(dataset, **more).save_as(
            target, enforce_file_format="TransferSyntaxUID" in getattr(dataset, "file_meta", ())
        )
    except Exception:  # a test file may be broken in any way
        target.unlink(missing_ok=True)
        return False
    return True


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every DICOM file of pydicom's wheel and the shipped mammogram, with names in them, under plain names."""
    folder = tmp_path_factory.mktemp("scans")
    sources = [*sorted(p for p in FILES.rglob("*") if p.is_file() and accepts(p)), MAMMOGRAM]
    done = [planted(source, folder / f"{number:03}.dcm") for number, source in enumerate(sources)]
    assert len(planted_tags()) > 700
    assert sum(done) >= 0.9 * len(done)
    assert done[-1]
    return folder


@pytest.fixture(scope="module")
def named(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, a name in each file's and folder's name too."""
    folder = tmp_path_factory.mktemp("named") / IN_FOLDERS
    (folder / f"{IN_FOLDERS}_2").mkdir(parents=True)
    for number, file in enumerate(sorted(scans.iterdir())):
        inside = folder if number % 2 else folder / f"{IN_FOLDERS}_2"
        (inside / f"{IN_FILES}_{file.name}").symlink_to(file)
    return folder


def leaks(text: str | bytes, names: re.Pattern[bytes] = ANY_NAME) -> set[bytes]:
    """The planted names in a text."""
    return set(names.findall(text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text))


def leaks_below(folder: Path, names: re.Pattern[bytes] = ANY_NAME) -> dict[str, set[bytes]]:
    """The planted names in what is below a folder: names of files, their bytes, texts inside of pictures."""

    def said() -> Iterator[tuple[str, set[bytes]]]:
        for path in sorted(folder.rglob("*")):
            inside = str(path.relative_to(folder))
            yield inside, leaks(inside, names)
            if path.is_file():
                yield inside, leaks(path.read_bytes(), names)
            if path.suffix == ".png":
                with Image.open(path) as picture:
                    yield inside, leaks(repr(picture.info), names)

    return {where: found for where, found in said() if found}


def test_the_names_are_there_to_be_found(scans: Path, named: Path) -> None:
    found = set().union(*(leaks(path.read_bytes()) for path in scans.iterdir()))
    assert {mark(tag).encode() for tag in planted_tags()} <= found
    assert {b"QXprivateXQ", b"QXnestedXQ", b"66554433", b"19570417", PERSON.encode()} <= found
    assert {b"QXfilenameXQ", b"QXfolderXQ"} <= set().union(*(leaks(str(path)) for path in named.rglob("*.dcm")))


def test_no_name_is_in_the_facts_of_a_scan(scans: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--json"], []):
        with pytest.raises(SystemExit):
            app(["inspect", str(scans), *arguments])
    said = capfd.readouterr()
    assert len(said.out) > 10_000
    assert leaks(said.out + said.err) == set()


def test_no_name_is_in_results_and_lines(
    named: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    said = list[str]()
    with caplog.at_level(0, "medsr"):
        report = medsr.upscale_folder(
            named, Cubic((2, 2)), out=tmp_path / "out", pseudonyms=Pseudonyms(tmp_path / "key"), note=said.append,
            tick=lambda scan, *_: said.append(scan),
        )  # fmt: skip
    assert sum(row.status == "done" for row in report.rows) >= 30
    assert {row.status for row in report.rows} >= {"done", "failed"}
    assert leaks_below(tmp_path) == {}
    printed = capfd.readouterr()
    assert leaks("\n".join((caplog.text, *said, repr(report), printed.out, printed.err))) == set()


def test_no_name_is_in_scores_and_pictures(
    named: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    said, half = list[str](), named / f"{IN_FOLDERS}_2"
    with caplog.at_level(0, "medsr"):
        scores = medsr.evaluate(
            half, Cubic((2, 2)), out=tmp_path / "scores", pseudonyms=Pseudonyms(tmp_path / "key"), note=said.append,
            tick=lambda scan, *_: said.append(scan),
        )  # fmt: skip
    assert len(scores.rows) >= 20
    assert scores.failed
    assert list((tmp_path / "scores").glob("*.png"))
    assert leaks_below(tmp_path) == {}
    printed = capfd.readouterr()
    assert leaks("\n".join((caplog.text, *said, repr(scores), printed.out, printed.err))) == set()


def test_no_name_is_in_results_under_their_own_names(scans: Path, tmp_path: Path) -> None:
    some = [scans / f"{number:03}.dcm" for number in range(0, 80, 9) if (scans / f"{number:03}.dcm").exists()]
    report = medsr.upscale_folder(some, Cubic((2, 2)), out=tmp_path / "out")
    assert any(row.status == "done" for row in report.rows)
    assert leaks_below(tmp_path) == {}
    assert leaks(repr(report)) == set()


def test_no_name_is_in_a_run_and_what_comes_of_it(
    scans: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    recipe = Recipe.model_validate(
        {
            "method": {"kind": "srresnet", "features": 4, "blocks": 1, "head_kernel": 3, "tail_kernel": 3},
            "data": {"folder": scans, "patch": (32, 32), "validation": 0.3, "validation_crops": 2},
            "degradation": {"read_noise": (0.0, 0.02)},
            "training": {"pixel_steps": 3, "batch": 2, "validate_every_steps": 2, "device": "cpu"},
            "out": tmp_path / "run",
        }
    )
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with caplog.at_level(0, "medsr"):
            run = train(recipe)
    finally:
        torch.set_num_threads(before)
    upscaler = medsr.load_upscaler(run)
    assert len(upscaler.card.inputs) >= 10
    said: list[str] = []
    report = medsr.upscale_folder(max(scans.iterdir()), upscaler, out=tmp_path / "out", note=said.append)
    assert [row.status for row in report.rows] == ["done"]
    page = medsr.write_batch_report(tmp_path / "out", out=tmp_path / "pages", low=scans, checkpoint=run)
    assert len(list(page.parent.glob("*.html"))) == 2
    audited = medsr.audit(
        run, max(scans.iterdir()), out=tmp_path / "audit", fields=1, planted=10, removed=5, note=said.append
    )
    assert audited.structures
    said += [repr(audited), medsr.render_card(run), medsr.render_card(run, format="html")]
    assert list((run / "pictures").iterdir())
    assert list((run / "tensorboard").iterdir())
    assert leaks_below(tmp_path) == {}
    printed = capfd.readouterr()
    assert leaks("\n".join((caplog.text, *said, printed.out, printed.err))) == set()


def test_no_hash_of_a_name_alone_is_in_a_checkpoint(tmp_path: Path) -> None:
    """Who can guess a file's name must not be able to see from a checkpoint that it was there."""
    file = tmp_path / "scans" / "Doe_Jane.dcm"
    file.parent.mkdir()
    file.write_bytes(MAMMOGRAM.read_bytes())
    recipe = Recipe.model_validate(
        {
            "method": {"kind": "srresnet", "features": 4, "blocks": 1, "head_kernel": 3, "tail_kernel": 3},
            "data": {"folder": file.parent, "patch": (32, 32), "validation_crops": 1},
            "training": {"pixel_steps": 1, "batch": 1, "device": "cpu"},
            "out": tmp_path / "run",
        }
    )
    card = medsr.load_upscaler(train(recipe)).card
    guessed = {hashlib.sha256(name.encode()).hexdigest()[:16] for name in (file.name, file.stem, str(file))}
    assert not guessed & {found.name_hash for found in card.inputs}


def test_a_tag_that_is_let_through_is_found(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The search itself: a name in a technical tag, which is kept, is seen in all that is written and said."""
    tag = int(Tag("ManufacturerModelName"))
    (tmp_path / "scans").mkdir()
    assert planted(FILES / "CT_small.dcm", tmp_path / "scans" / "a.dcm", model=mark(tag))
    medsr.upscale_folder(tmp_path / "scans", Cubic((2, 2)), out=tmp_path / "out")
    assert leaks_below(tmp_path / "out") == {"a.ome.zarr/zarr.json": {mark(tag).encode()}}
    with pytest.raises(SystemExit):
        app(["inspect", str(tmp_path / "scans"), "--json"])
    assert leaks(capfd.readouterr().out) == {mark(tag).encode()}
