"""The options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "Blur",
    "ByFolder",
    "Checkpoints",
    "ConsistentOption",
    "Debug",
    "Device",
    "EnsembleOption",
    "FactorOption",
    "Key",
    "Library",
    "Memory",
    "MethodOption",
    "Out",
    "OutPlace",
    "Paths",
    "Places",
    "Preset",
    "Series",
]

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Paths = Annotated[list[Path], typer.Argument(metavar="PATH...", help="Files or folders of scans.")]
Places = Annotated[
    list[str], typer.Argument(metavar="PATH...", help="Files, folders or URLs (s3://bucket/folder) of scans.")
]
OutPlace = Annotated[
    str, typer.Option("--out", metavar="DIR", help="Folder or URL of the results; a folder is made if absent.")
]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the results; made if absent.")]
Checkpoints = Annotated[
    list[Path] | None,
    typer.Option(
        "--checkpoint", metavar="RUN", help="Run folder of medsr train, or a checkpoint file; several: their mean."
    ),
]
Library = Annotated[
    Path | None, typer.Option("--library", metavar="DIR", help="Indexed exemplars, for --method exemplars.")
]
Blur = Annotated[
    Path | None,
    typer.Option(
        "--degradation", metavar="FILE", help="YAML of how the scans were made coarse, instead of the checkpoint's."
    ),
]
ByFolder = Annotated[
    bool, typer.Option("--by-folder", help="Scans of one folder count as one, as several of one patient must.")
]
ConsistentOption = Annotated[
    bool, typer.Option("--consistent", help="Project: degraded again, the result returns the measured scan.")
]
EnsembleOption = Annotated[bool, typer.Option("--ensemble", help="Mean over flips and quarter turns of the scan.")]
Preset = Annotated[
    str | None, typer.Option("--preset", metavar="NAME", help="quantitative: for measurement, with --consistent.")
]
MethodOption = Annotated[
    str | None,
    typer.Option(
        "--method", metavar="NAME", help="linear, cubic, lanczos, edges or exemplars, instead of a checkpoint."
    ),
]
FactorOption = Annotated[
    str | None, typer.Option("--factor", metavar="2,2", help="How much finer each axis gets, slowest first.")
]
Device = Annotated[str, typer.Option("--device", help="auto (a GPU where there is one), cpu, cuda or cuda:1.")]
Key = Annotated[
    Path | None,
    typer.Option(
        "--pseudonymize",
        metavar="KEYFILE",
        help="Name results by pseudonyms of this secret key; made if absent.",
    ),
]
Series = Annotated[str | None, typer.Option("--series", help="Which series of a file that holds several.")]
Memory = Annotated[
    str | None, typer.Option("--memory", metavar="1.5GB", help="Most memory to use; half of the machine's if not said.")
]
