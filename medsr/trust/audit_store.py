"""What an audit found in each scan, kept beside its pictures: an audit that was stopped goes on from there."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path

from medsr.trust.audit_tables import TABLES, Found

__all__ = ["SCANS", "clear_tables", "clear_others", "load_found", "save_found"]

SCANS = "scans"
"""Folder of what was found in each scan, and of their pictures."""


def clear_tables(out: Path) -> None:
    """Take away what is said of all scans together: it stands there only when all of it is true."""
    for name in TABLES:
        (out / name).unlink(missing_ok=True)


def clear_others(out: Path, names: Collection[str]) -> None:
    """Take away what is kept of scans that this audit does not ask."""
    for path in (out / SCANS).glob("*"):
        if path.suffix in (".json", ".png", ".part") and path.stem not in names:
            path.unlink()


def load_found(out: Path, scan: str, identity: str) -> Found | None:
    """What was found in a scan by the same audit; None: nothing, or by another one.

    Args:
        out: of the audit.
        scan: its name.
        identity: of the scan's bytes, the methods and all settings that decide the figures.
    """
    path = out / SCANS / f"{scan}.json"
    try:
        kept = json.loads(path.read_text("utf-8"))
        if kept["identity"] != identity or not path.with_suffix(".png").is_file():
            return None
        found = kept["found"]
        return Found(
            scan=found["scan"],
            structures=tuple(found["structures"]),
            candidates=tuple(found["candidates"]),
            detail=found["detail"],
            bands=tuple(found["bands"]),
            samples=found["samples"],
            spacing_um=(found["spacing_um"][0], found["spacing_um"][1]),
            degradation=found["degradation"],
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None  # not there, or torn: it is found again


def save_found(out: Path, found: Found, identity: str) -> None:
    """Keep what was found in a scan; whole or not at all, after its picture."""
    path = out / SCANS / f"{found.scan}.json"
    kept = asdict(found)
    del kept["group"]
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(json.dumps({"identity": identity, "found": kept}, allow_nan=False) + "\n", "utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
