"""Which method suits these scans: several interpolations and trained runs, measured on one folder, in one table.

    python pipelines/compare_methods.py SCANS OUT --factor 2,2 --run runs/a --run runs/b

Each scan is made coarse (as the first run was trained for; without a run by the mean over each coarse sample),
upscaled by each method and compared with the original. Writes OUT/comparison.csv (a row a method, means over the
scans) and OUT/<method>/ with scores and pictures. Exit code 0: all done; 1: some scan failed; 2: a mistake in the
command.
"""

import argparse
import csv
import sys
from pathlib import Path

import medsr

FIGURES = ("psnr_db", "psnr_foreground_db", "ssim", "nrmse", "frc_um", "consistency_db")


def main(argv: list[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", type=Path, help="folder of scans")
    parser.add_argument("out", type=Path, help="folder of the table, the scores and the pictures")
    parser.add_argument("--factor", default="2,2", help="how much finer, slowest axis first")
    parser.add_argument("--run", type=Path, action="append", default=[], help="a trained run of that factor; repeat")
    given = parser.parse_args(argv)
    table, code = [], 0
    try:
        factor = tuple(int(part) for part in given.factor.split(","))
        methods = {"linear": medsr.Linear(factor), "cubic": medsr.Cubic(factor), "lanczos": medsr.Lanczos(factor)}
        runs = {str(run): medsr.load_upscaler(run, factor=factor) for run in given.run}
        degradation = next((upscaler.recipe.degradation for upscaler in runs.values()), None)
        for name, upscaler in (methods | runs).items():
            out = given.out / name.replace("/", "_")
            report = medsr.evaluate(given.scans, upscaler, out=out, method=name, degradation=degradation, note=print)
            table += [row for row in report.summary() if row["method"] == name]
            code = max(code, report.exit_code)
    except ValueError as error:  # what medsr says of a mistake names the file and the cure
        print(error, file=sys.stderr)
        return 2
    with (given.out / "comparison.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["method", "scans", *FIGURES], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(table)
    print("\n" + f"{'method':24}" + "".join(f"{figure:>20}" for figure in FIGURES))
    for row in table:
        shown = ["-" if row[figure] is None else f"{row[figure]:.4g}" for figure in FIGURES]
        print(f"{row['method']:24}" + "".join(f"{value:>20}" for value in shown))
    return code


if __name__ == "__main__":
    sys.exit(main())
