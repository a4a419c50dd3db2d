"""audit: plant and remove small structures in real scans, and say what a method kept, lost or invented."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from medsr.checkpoint import load_upscaler
from medsr.io import NoImageError, Source, find_all
from medsr.io.digest import input_digest
from medsr.io.pseudonyms import Pseudonyms, unnamed
from medsr.plan import Device, torch_device
from medsr.scan import Factor
from medsr.scoring import write_provenance
from medsr.trial import by
from medsr.trust.audit_figures import curves_png
from medsr.trust.audit_methods import audited_methods, known_digest, learned_by, promise_of
from medsr.trust.audit_scan import Setting, audited_scan
from medsr.trust.audit_store import SCANS, clear_others, clear_tables, load_found, save_found
from medsr.trust.audit_tables import Audit, Found, tables_of, write_tables
from medsr.trust.fields import Kinds
from medsr.upscaler import Upscaler, fingerprint
from medsr.version import __version__

if TYPE_CHECKING:
    from medsr.degradation import Degradation, DegradationRange

__all__ = ["STRUCTURE_KINDS", "Audit", "StructureKind", "audit"]

StructureKind = Kinds
STRUCTURE_KINDS: tuple[Kinds, ...] = get_args(Kinds)


def audit(
    run: Path | str,
    paths: Path | str | Sequence[Path | str],
    *,
    out: Path | str,
    more: Mapping[str, Upscaler] | None = None,
    degradation: Degradation | DegradationRange | None = None,
    kind: Kinds = "auto",
    fields: int = 4,
    planted: int = 120,
    removed: int = 40,
    seed: int = 0,
    series: str | int | None = None,
    group: Callable[[Source], str] | None = None,
    memory: int | None = None,
    device: Device = "auto",
    pseudonyms: Pseudonyms | None = None,
    note: Callable[[str], None] | None = None,
    tick: Callable[[str, int, int], None] | None = None,
) -> Audit:
    """What a run's method keeps, loses and invents of small structures, and which maps tell it without the truth.

    In fields of real fine scans small structures are planted and real ones taken out (`plant`). The scans are made
    coarse as the run was trained for (a range of blur or noise stands for its middle) and upscaled, once as they are
    and once altered, by the method, by the method made consistent with its scan, by the pixel-trained network it went
    on from (where there is one), and by cubic. Every structure is measured by its matched filter in the truth and in
    each estimate (`verdicts_of`); whatever else an estimate shows is looked for in the truth too (`candidates_of`).
    Each candidate is scored by the maps that need no truth (`suspicions`); the area under their receiver operating
    characteristic says how well a map tells what was invented from what is there, among what nobody planted.

    Beside structures the detail that no measurement speaks for is compared as a whole, in the scan as it is: how much
    of it an estimate has, and how far it is that of the truth, by octave (`NullSpace`).

    Written to `out`: `audit.csv` (kept, lost, back and invented by method, kind, size and contrast), `areas.csv` (ROC
    areas by method, map, size and contrast), `detail.csv` (the null space by octave), `structures.csv` and
    `candidates.csv` (each of them), `audit.png`, `provenance.json`, and `failed.csv` when a scan failed; they are there
    only when all of it is. For each scan `scans/SCAN.png` (a field with what became of its structures) and
    `scans/SCAN.json`, from which the same audit goes on after a stop.

    What it does not show: structures of other forms, sizes and places than those planted; inventions fainter than 4
    standard deviations of the truth's own surroundings, of which nobody can say whether the truth has them (a faint
    lattice shows as detail that does not agree); dark structures; a diagnosis. Places are drawn where the truth is
    quiet, so that structures on top of others are not asked about. What is planted is sharper than an instrument would
    show it and has no noise of its own.

    Args:
        run: a run folder, or a checkpoint file.
        paths: fine scans that no training has seen; one that a method learned from, or was validated or calibrated on,
            is audited with a warning.
        out: folder, made if absent.
        more: further methods of the same factor, by the names they have in the tables.
        degradation: how the fine scans become coarse; None: as the run was trained for.
        kind: "auto": specks in DICOM scans, puncta and filaments in others; or one of the three.
        fields: of at most 1024 x 1024 fine samples, in each scan.
        planted, removed: structures in each field, at most.
        seed: places and noise follow from it; never from a method.
        series: which series of files that hold several.
        group: what a scan belongs to, for the intervals: scans of one subject or specimen are no independent trials.
            None: the subject where the file says it, else the scan itself.
        memory: bytes the upscaling may take (`plan`).
        device: "auto", "cpu", "cuda", "cuda:N".
        pseudonyms: names in tables, pictures and lines, in which no file's name or path stands; None: the files'.
        note: receives a line for each event worth a user's eye.
        tick: receives (scan, fields done, in all).

    Raises:
        CheckpointError: the run has no usable checkpoint.
        ScanError: no scan was found.
        ValueError: an unknown kind, counts below 1, a factor of more than two axes, methods of another factor, a series
            by name with pseudonyms, or `out` is a file.
        OSError: `out` cannot be written.
    """
    torch_device(device)
    upscaler = load_upscaler(run)
    _check(upscaler.factor, kind, more or {}, fields=fields, planted=planted, removed=removed)
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: expected a folder for the audit, found a file; give --out another name")
    if pseudonyms is not None:
        pseudonyms.refuse_named(series)
    say = note or _silent
    asked = degradation if degradation is not None else upscaler.recipe.degradation
    methods = audited_methods(run, upscaler, asked, more or {}, certain=degradation is not None, note=say)
    setting = Setting(
        methods=methods,
        factor=upscaler.factor,
        degradation=asked,
        pictures=out / SCANS,
        kind=kind,
        fields=fields,
        planted=planted,
        removed=removed,
        seed=seed,
        series=series,
        memory=memory,
        device=device,
        note=say,
        tick=tick or _untold,
    )
    sources = find_all(paths, out=out) if pseudonyms is None else pseudonyms.find_all(paths, out=out)
    (out / SCANS).mkdir(parents=True, exist_ok=True)
    clear_tables(out)
    clear_others(out, [source.name for source in sources])
    found, failed, inputs = _all_found(sources, setting, out, group or _subject)
    made = tables_of(found, tuple(methods), failed)
    if made.structures:
        curves_png(out / "audit.png", made)
    write_provenance(
        out,
        {name: each.upscaler for name, each in methods.items()},
        inputs,
        **_settings(setting),
        degradations={each.scan: each.degradation for each in found},
        maps_from={name: [promise_of(known) for known in each.known] for name, each in methods.items()},
    )
    write_tables(out, made)
    return made


def _all_found(
    sources: Sequence[Source], setting: Setting, out: Path, group: Callable[[Source], str]
) -> tuple[list[Found], list[tuple[str, str]], dict[str, str]]:
    """What was found in each scan, which failed and why, and the hashes of the inputs."""
    known = learned_by(setting.methods)
    found: list[Found] = []
    failed: list[tuple[str, str]] = []
    inputs: dict[str, str] = {}
    for source in sources:
        try:
            digest = input_digest(source)
            if digest in known:
                setting.note(f"{source.name}: warning: {known[digest]}: its figures flatter")
            identity = _identity(setting, digest)
            one = load_found(out, source.name, identity)
            if one is None:
                one = audited_scan(source, digest, setting)
                save_found(out, one, identity)
            else:
                setting.note(f"{source.name}: taken over from the same audit")
            found.append(replace(one, group=group(source)))
            inputs[source.name] = digest
        except NoImageError as error:
            setting.note(f"{source.name}: skipped: {_reason(source, error)}")
        except Exception as error:  # noqa: BLE001 - law 6: one bad scan stops nothing; its reason is in the report
            failed.append((source.name, _reason(source, error)))
            setting.note(f"{source.name}: failed: {failed[-1][1]}")
    return found, failed, inputs


def _subject(source: Source) -> str:
    """The default of `group`."""
    return source.subject or source.name


def _settings(setting: Setting) -> dict[str, Any]:
    """What decides the figures beside methods and scans, as plain JSON."""
    names = ("kind", "fields", "planted", "removed", "seed", "series")
    said = {name: getattr(setting, name) for name in names}
    return {**said, "degradation": repr(setting.degradation), "device": torch_device(setting.device).type}


def _identity(setting: Setting, digest: str) -> str:
    """SHA-256 of all that decides what is found in a scan."""
    methods = {
        name: [fingerprint(each.upscaler), *(known_digest(known) for known in each.known)]
        for name, each in setting.methods.items()
    }
    said = {"version": __version__, "scan": digest, "methods": methods, **_settings(setting)}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _check(factor: Factor, kind: str, more: Mapping[str, Upscaler], **counts: int) -> None:
    if kind not in STRUCTURE_KINDS:
        raise ValueError(f"audit: expected a kind of {', '.join(STRUCTURE_KINDS)}; found {kind!r}")
    if len(factor) != 2:
        raise ValueError(
            f"audit: expected a method with a factor for y and x, found {by(factor)}; structures are planted in "
            "planes, a method that is given a stack at once cannot be asked about them yet"
        )
    for name, each in more.items():
        if tuple(each.factor) != tuple(factor):
            raise ValueError(f"audit: expected methods of the factor {by(factor)}, found {name} of {by(each.factor)}")
    for name, count in counts.items():
        least = 0 if name == "removed" else 1
        if count < least:
            raise ValueError(f"audit: expected {name} of at least {least}, found {count}")


def _reason(source: Source, error: Exception) -> str:
    text = " ".join(str(error).split()) or "no reason given"
    known = isinstance(error, (ValueError, OSError, MemoryError))
    return unnamed(text if known else f"{type(error).__name__}: {text}", source)


def _silent(_line: str) -> None:
    """The default of `note`."""


def _untold(_scan: str, _done: int, _total: int) -> None:
    """The default of `tick`."""
