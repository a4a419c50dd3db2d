"""The whole job on the two shipped scans: train, upscale, evaluate, report; what `make demo` runs.

    python pipelines/demo.py [OUT]

It types the commands a user would type, and shows them. At the end it names the files to open.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import medsr

CONFIG = Path(__file__).parents[1] / "configs" / "demo.yaml"
SAMPLES = {"mammogram": medsr.MAMMOGRAM, "nuclei": medsr.NUCLEI}


def medsr_command(*words: str | Path) -> None:
    """Show a medsr command and run it; a failure ends the demo with its exit code."""
    print("\n$ medsr " + " ".join(map(str, words)), flush=True)
    program = Path(sys.executable).with_name("medsr")
    code = subprocess.run([program, *map(str, words)], check=False).returncode
    if code:
        sys.exit(code)


def main(argv: list[str] | None = None) -> int:
    """Run the demo into a folder (default: demo); extra words are passed to `medsr train`."""
    words = sys.argv[1:] if argv is None else argv
    out, extra = Path(words[0] if words else "demo"), words[1:]
    begun = time.perf_counter()
    for name, path in SAMPLES.items():
        scans = out / name / "scans"
        scans.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, scans)
        run, results, scores = out / name / "run", out / name / "upscaled", out / name / "scores"
        shutil.rmtree(run, ignore_errors=True)
        medsr_command("inspect", scans)
        medsr_command("train", CONFIG, "--set", f"data.sample={name}", "--out", run, *extra)
        medsr_command("upscale", scans, "--checkpoint", run, "--out", results, "--overwrite")
        medsr_command("evaluate", scans, "--checkpoint", run, "--out", scores)
        medsr_command("report", results, "--scans", scans, "--checkpoint", run, "--out", out / name / "report")
    print(f"\nDone in {time.perf_counter() - begun:.0f} s. Open:")
    for name in SAMPLES:
        for pattern in (
            "report/index.html",
            "upscaled/*.ome.zarr",
            "scores/*.png",
            "scores/scores.csv",
            "run/pictures/*.png",
        ):
            for path in sorted((out / name).glob(pattern))[-1:]:
                print(f"  {path}")
    print("Each network has learned from the scan it is shown on (hence the warnings above): the figures of scores.csv")
    print("are not held out; those of run/log.jsonl are, a fifth of the rows. Your own scans: set data.folder.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
