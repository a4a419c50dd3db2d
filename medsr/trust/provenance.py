"""provenance_of: where a result comes from, read back from it; verify: whether its input is still the same."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsr.engines import REFERENCE, EngineChoice
from medsr.io import find_scans
from medsr.io.digest import input_digest
from medsr.io.places import place
from medsr.scan import ScanError

__all__ = ["Provenance", "provenance_of", "verify"]

OPTIONS = ("series", "black", "white", "padding", "chunk", "shard", "tile")
"""How the scan was read and the result stored."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a result comes from, as it was written into the result.

    Attributes:
        version: of medsr.
        input_sha256: of the scan's files (`input_digest`).
        method: in one line.
        method_sha256: of all that decides the method's numbers: its description, its weights, what it was told of the
            scan.
        checkpoints: SHA-256 of the weights of each checkpoint in the method; (): it has none, or the result was written
            by a version that did not say.
        factor: refinement of the last axes.
        options: how the scan was read and the result stored: series, black, white, padding, chunk, shard, tile.
        engine: how the method was run, and its largest measured deviation from the reference in gray levels.
        asked_engine: what was asked for: "auto", or an engine by name.
        tolerance: gray levels of deviation that were asked for; None: a thousandth of the scan's used range.
        device: "cpu" or "cuda".
        history: what was done, oldest first.
        warnings: doubts about the scan.
    """

    version: str
    input_sha256: str
    method: str
    method_sha256: str
    checkpoints: tuple[str, ...]
    factor: tuple[int, ...]
    options: Mapping[str, Any]
    engine: EngineChoice
    asked_engine: str
    tolerance: float | None
    device: str
    history: tuple[str, ...]
    warnings: tuple[str, ...]

    def lines(self) -> tuple[str, ...]:
        """The same as lines for a report or a terminal."""
        chosen = {name: value for name, value in self.options.items() if value is not None}
        return (
            f"medsr {self.version} on {self.device}",
            f"input sha256 {self.input_sha256}",
            *(f"checkpoint sha256 {sha256}" for sha256 in self.checkpoints),
            f"method {self.method}, sha256 {self.method_sha256}",
            f"factor {' x '.join(map(str, self.factor))}",
            "options " + (", ".join(f"{name} {value}" for name, value in chosen.items()) or "none"),
            str(self.engine),
            *(f"history: {line}" for line in self.history),
            *(f"warning: {line}" for line in self.warnings),
        )


def provenance_of(result: str | Path) -> Provenance:
    """Where a result of `upscale_folder` comes from.

    Args:
        result: OME-Zarr folder, or its URL in an object store; one at work is none yet.

    Raises:
        ScanError: nothing of medsr is there, or what it says of itself cannot be read.
        OSError: it cannot be asked for.
    """
    where = place(result)
    stored = where.get("zarr.json")
    if stored is None:
        raise ScanError(f"{where.name}: expected a result of medsr upscale (an OME-Zarr folder), found none")
    try:
        ours = json.loads(stored)["attributes"]["medsr"]
        job = ours["job"]
        engine = EngineChoice(**job["settings"]["engine"]) if "engine" in job.get("settings", {}) else REFERENCE
        return Provenance(
            version=str(job["version"]),
            input_sha256=str(job["input_sha256"]),
            method=str(job["method"]),
            method_sha256=str(job["method_sha256"]),
            checkpoints=tuple(map(str, ours.get("checkpoints", ()))),
            factor=tuple(map(int, job["factor"])),
            options={name: job.get(name) for name in OPTIONS},
            engine=engine,
            asked_engine=str(job["engine"]),
            tolerance=job["tolerance"],
            device=str(job["device"]),
            history=tuple(map(str, ours.get("history", ()))),
            warnings=tuple(map(str, ours.get("warnings", ()))),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ScanError(
            f"{where.name}: expected what medsr writes beside a result, found other metadata ({type(error).__name__}); "
            "it was written by another program or edited"
        ) from error


def verify(result: str | Path, inputs: Path | str | Sequence[Path | str]) -> bool:
    """Whether a scan among the inputs still has the hash that the result was made of.

    The names of the files count, and of scans above 1 GB their times of change: a copy that was renamed is another
    input, and so is a large one whose time was not kept (`cp -p` keeps it).

    Args:
        result: as in `provenance_of`.
        inputs: the scan's file or folder, or folders with others too.

    Raises:
        ScanError: as `provenance_of`, or an input is not there.
        OSError: an input cannot be read.
    """
    recorded = provenance_of(result).input_sha256
    given = [inputs] if isinstance(inputs, (str, Path)) else list(inputs)
    return any(input_digest(source) == recorded for path in given for source in find_scans(path))
