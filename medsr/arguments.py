"""What the words of a command line mean: amounts, factors, and the method that is asked for."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import typer

import medsr

if TYPE_CHECKING:
    from medsr import DegradationRange, EngineName, Factor, Scan, Share, Source, StructureKind, Upscaler

__all__ = [
    "ArgumentError",
    "Asked",
    "amount",
    "asked_for",
    "engine_named",
    "factor_of",
    "folder_of",
    "kind_named",
    "need_paths",
    "series_of",
    "share_of",
    "with_intervals",
]

Name = TypeVar("Name", bound=str)


class ArgumentError(ValueError):
    """An argument that makes no sense: expected, found, cure."""


def need_paths(paths: Iterable[Path | str]) -> None:
    """Refuse paths where nothing is.

    Raises:
        ArgumentError: names them, and the nearest name that exists.
    """
    missing = [Path(path) for path in paths if "://" not in str(path) and not Path(path).exists()]
    if missing:
        raise ArgumentError("\n".join(f"{p}: expected a file or folder, found none.{_near(p)}" for p in missing))


def _near(path: Path) -> str:
    folder = path.parent
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    close = get_close_matches(path.name, names, n=1)
    return f" Did you mean {str(folder / close[0])!r}?" if close else " Check the path."


@dataclass(frozen=True, slots=True)
class Asked:
    """The method of a command line.

    Attributes:
        upscaler: the method, with all that is done around it.
        check: whether a scan suits it, in sentences; None: it suits all.
        degradation: what it was trained for, or what is said; None: unknown.
        trained_on: SHA-256 of what it has learned from.
        line: gain and offset from stored values of coarse scans to those of fine ones, where it learned from pairs.
        registration: how its pairs were brought into register.
    """

    upscaler: Upscaler
    check: Callable[[Scan], Sequence[str]] | None
    degradation: DegradationRange | None
    trained_on: frozenset[str]
    line: tuple[float, float] = (1.0, 0.0)
    registration: Literal["whole", "resample"] = "whole"


def asked_for(
    checkpoints: Sequence[Path],
    method: str | None,
    factor: str | None,
    *,
    library: Path | None = None,
    degradation: Path | None = None,
    consistent: bool = False,
    ensemble: bool = False,
    preset: str | None = None,
) -> Asked:
    """The method that is asked for.

    Raises:
        ArgumentError: neither or both of a checkpoint and a method, an unknown name, a method without a factor.
    """
    if bool(checkpoints) == (method is not None):
        found = "neither" if method is None else "both"
        raise ArgumentError(f"expected --checkpoint RUN or --method NAME --factor 2,2; found {found}; give one of them")
    if preset not in (None, "quantitative"):
        raise ArgumentError(f"--preset: expected quantitative, found {preset!r}")
    wanted = None if factor is None else factor_of(factor)
    said = None if degradation is None else medsr.load_config(degradation, medsr.DegradationRange)
    parts = [_run(path, wanted) for path in checkpoints]
    trained = [part for part in parts if isinstance(part, medsr.TrainedUpscaler)]
    if method is not None:
        parts = [_untrained(method, wanted, library, said)]
    upscaler = parts[0]
    if ensemble or len(parts) > 1:
        upscaler = medsr.Ensemble(parts, flips=ensemble)
    ranges = {repr(run.recipe.degradation): run for run in trained}
    if (consistent or preset is not None) and said is None and len(ranges) > 1:
        raise ArgumentError(
            "--consistent: expected checkpoints that were trained for one degradation, found different ones; say which "
            "holds (--degradation)"
        )
    expected = said if said is not None else next((run.recipe.degradation for run in trained), None)
    if consistent or preset == "quantitative":
        upscaler = medsr.Consistent(upscaler, expected, certain=said is not None)
    check = partial(_doubts, tuple(run.card for run in trained)) if trained else None
    learned = frozenset(found.sha256 for run in trained for found in run.card.inputs)
    if not trained:
        return Asked(upscaler, check, expected, learned)
    pairs = trained[0].card.pairs
    line = pairs.get("gain", 1.0), pairs.get("offset", 0.0)
    return Asked(upscaler, check, expected, learned, line, trained[0].recipe.data.registration)


def with_intervals(asked: Asked, checkpoints: Sequence[Path]) -> Upscaler:
    """The method that is asked for, with the ends of its intervals.

    Raises:
        ArgumentError: intervals of what was not calibrated as it is asked for.
    """
    if len(checkpoints) != 1 or not isinstance(asked.upscaler, medsr.TrainedUpscaler):
        raise ArgumentError(
            "--intervals: expected one --checkpoint RUN as it was calibrated, found another method or something around "
            "it; drop --consistent, --ensemble and --preset"
        )
    return medsr.load_intervals(checkpoints[0]).together


def _doubts(cards: Sequence[medsr.TrainingCard], scan: medsr.Scan) -> tuple[str, ...]:
    """What the cards of all checkpoints say of a scan, each sentence once."""
    return tuple(dict.fromkeys(line for card in cards for line in medsr.check_scan(card, scan)))


def _run(path: Path, factor: Factor | None) -> Upscaler:
    """The upscaler of a run, a checkpoint, or a published file of weights."""
    if medsr.is_foreign(path):
        foreign = medsr.load_foreign(path)
        if factor is not None and foreign.factor != factor:
            raise ArgumentError(f"{path}: expected a network of factor {factor}, found {foreign.factor}; drop --factor")
        return foreign
    trained = medsr.load_upscaler(path, factor=factor)
    if trained.path.name == "last.ckpt" and trained.path != path:
        typer.echo(f"{trained.path}: taken, for this run has no best.ckpt", err=True)
    return trained


def exemplars_of(library: Path, factor: Factor, said: DegradationRange | None) -> Upscaler:
    """The exemplars of a library, made coarse as is said."""
    known = _known(said, factor)
    return medsr.Exemplars(factor, medsr.load_library(library, degradation=known), degradation=known)


def _known(said: DegradationRange | None, factor: Factor) -> medsr.Degradation | None:
    """What a method that is not trained is told of the degradation.

    Raises:
        ArgumentError: it depends on the spacing of each scan.
    """
    if said is None:
        return None
    made = said.told(factor)
    if made is None:
        raise ArgumentError(
            "--degradation: expected one blur in coarse samples (fwhm_samples) for a method that is not trained, found "
            "widths in micrometers or a second pass"
        )
    return made


def _untrained(name: str, factor: Factor | None, library: Path | None, said: DegradationRange | None) -> Upscaler:
    names = medsr.UNTRAINED
    kind = next((k for k in names if k == name.lower()), None)
    if kind is None:
        close = get_close_matches(name.lower(), names, n=1)
        near = f" Did you mean {close[0]!r}?" if close else ""
        raise ArgumentError(f"--method: expected {', '.join(names)}; found {name!r}.{near}")
    if factor is None:
        raise ArgumentError(f"--method {kind}: expected a factor beside it, found none; add --factor 2,2")
    if library is None:
        return names[kind](factor, None if kind in medsr.INTERPOLATIONS else _known(said, factor))
    if kind != "exemplars":
        raise ArgumentError(f"--library: expected --method exemplars beside it, found --method {kind}")
    return exemplars_of(library, factor, said)


def factor_of(text: str) -> Factor:
    """`2,2` as a factor.

    Raises:
        ArgumentError: fewer than two or more than three whole numbers, or none above 1.
    """
    parts = re.split(r"\s*[,x]\s*", text.strip().strip("[]()"))
    entries = tuple(int(p) for p in parts if re.fullmatch(r"[1-9]\d{0,2}", p))
    if len(entries) != len(parts) or not 2 <= len(entries) <= 3 or max(entries) == 1:
        raise ArgumentError(
            f"--factor: expected 2 or 3 whole numbers, one of them above 1, slowest axis first such as 2,2 or 1,2,2; "
            f"found {text!r}"
        )
    return entries


def share_of(text: str) -> Share:
    """`3/8` as the third of eight shares.

    Raises:
        ArgumentError: no two whole numbers, or the first is not one of the second.
    """
    found = re.fullmatch(r"\s*(\d{1,6})\s*/\s*(\d{1,6})\s*", text)
    if found is None:
        raise ArgumentError(f"--part: expected i/n such as 3/8, found {text!r}")
    return medsr.Share(int(found[1]), int(found[2]))


def engine_named(text: str) -> EngineName:
    """An engine by its name.

    Raises:
        ArgumentError: there is none of this name.
    """
    return _one_of(medsr.ENGINES, "--engine", text)


def kind_named(text: str) -> StructureKind:
    """A kind of small structure by its name.

    Raises:
        ArgumentError: there is none of this name.
    """
    return _one_of(medsr.STRUCTURE_KINDS, "--kind", text)


def _one_of(names: Sequence[Name], option: str, text: str) -> Name:
    for name in names:
        if name == text.lower():
            return name
    close = get_close_matches(text.lower(), names, n=1)
    near = f" Did you mean {close[0]!r}?" if close else ""
    raise ArgumentError(f"{option}: expected {', '.join(names)}; found {text!r}.{near}")


def folder_of(source: Source) -> str:
    """The folder a scan lies in, where scans of one folder count as one."""
    return str(source.path.parent)


def series_of(text: str | None) -> str | int | None:
    """A series by its name, or by its number."""
    return int(text) if text is not None and text.isdigit() else text


def amount(text: str | None) -> int | None:
    """`1.5GB`, `800 MB`, `2GiB` as bytes.

    Raises:
        ArgumentError: no such amount.
    """
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([kmgt])(i?)b?\s*", text, re.IGNORECASE)
    amount = (
        0.0 if found is None else float(found[1]) * (1024 if found[3] else 1000) ** ("kmgt".index(found[2].lower()) + 1)
    )
    if amount < 1 or not math.isfinite(amount):
        raise ArgumentError(f"--memory: expected an amount such as 800MB, 1.5GB or 2GiB; found {text!r}")
    return int(amount)
