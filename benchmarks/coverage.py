"""Coverage: what share of real scans lies outside of calibrated intervals, and how wide these are, by kind of widths.

    python benchmarks/coverage.py RUN --calibrate SCAN... --test SCAN... [--learn-from SCAN...] [--alpha 0.1]

Each scan is made coarse as the run was trained for and upscaled once for each kind of widths: those trained with the
network, those learned after it (from --learn-from), and the spread of flips. All are calibrated on the same scans. A
row gives alpha and the confidence, scans outside on average and in the worst test scan, the mean width, and the same of
intervals of one width everywhere, calibrated alike. A confidence of 0 asks for what so many scans can give at alpha
where half of it lies outside. Scans count as `--by` says; where they are no independent scans, the promise is none.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

import medsr
from medsr.io import Source
from medsr.trust import LearnedWidths, SpreadWidths, fit_widths
from medsr.trust.bounds import largest_risk
from medsr.trust.calibration import certify, first_within, grouped, measure_curves, pooled
from medsr.trust.curves import HALF_WIDTHS, INTENSITIES, Curve, Over
from medsr.trust.distances import Distances

Measured = tuple[list[Curve], list[str]]

GROUPS: dict[str, Callable[[Source], str]] = {
    "subject": lambda source: source.subject or source.name,
    "scan": lambda source: source.name,
    "folder": lambda source: str(source.path.parent),
    "stem": lambda source: source.name.rsplit("_", 1)[0],
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--calibrate", type=Path, nargs="+", required=True, help="scans no training has seen")
    parser.add_argument("--test", type=Path, nargs="+", required=True, help="other scans no training has seen")
    parser.add_argument("--learn-from", type=Path, nargs="*", default=[], help="scans for widths after the network")
    parser.add_argument("--alpha", type=float, nargs="+", default=[0.1], help="shares that may lie outside")
    parser.add_argument("--confidence", type=float, nargs="+", default=[0.9], help="one for each alpha; 0: what n give")
    parser.add_argument("--by", choices=GROUPS, default="subject", help="what counts as one; stem: before the last _")
    parser.add_argument("--no-spread", action="store_true", help="leave out the spread, which costs many estimates")
    given = parser.parse_args(argv)
    upscaler = medsr.load_upscaler(given.run)
    kinds = {}
    if upscaler.widths is not None:
        kinds["trained"] = LearnedWidths(upscaler, upscaler.widths)
    if given.learn_from:
        kinds["learned after"] = LearnedWidths(upscaler, fit_widths(upscaler, given.learn_from).widths)
    if not given.no_spread:
        kinds["spread"] = SpreadWidths(medsr.Ensemble(upscaler))
    print(f"{'widths':<14}{'of':<12}{'n':>3}{'alpha':>7}{'conf.':>7}{'outside':>9}{'worst':>8}", end="")
    print(f"{'width':>8}{'one width':>11}{'outside':>9}   outside by estimate, black to white in tenths")
    for name, method in kinds.items():
        sets = [curves_of(method, paths, GROUPS[given.by]) for paths in (given.calibrate, given.test)]
        for over in ("whole", "foreground"):
            for alpha, confidence in zip(given.alpha, given.confidence, strict=True):
                print(f"{name:<14}{over:<12}{row(*sets, over=over, alpha=alpha, delta=1 - confidence)}", flush=True)
    return 0


def curves_of(method: Distances, paths: Sequence[Path], group: Callable[[Source], str]) -> Measured:
    """The curves of scans, and what each belongs to."""
    sources = [source for path in paths for source in medsr.find_scans(path)]
    kept, curves = measure_curves(method, sources)
    return curves, [group(source) for source in kept]


def row(held: Measured, test: Measured, *, over: Over, alpha: float, delta: float) -> str:
    """One line of the table."""
    risks, flats = (grouped([getattr(c, kind)(over) for c in held[0]], held[1]) for kind in ("risk", "constant"))
    n = len(risks)
    if delta == 1:  # exp(-n h1(alpha / 2, alpha)), Hoeffding 1963
        half = alpha / 2
        delta = math.exp(-n * (half * math.log(0.5) + (1 - half) * math.log((1 - half) / (1 - alpha)))) + 1e-9
    try:
        found = pooled(*test, certify(risks, alpha=alpha, delta=delta), over=over)
    except ValueError as error:
        return f"{n:>3}{alpha:>7.2f}{1 - delta:>7.2f}  nothing is certified: {error}"
    flat = first_within(flats.mean(0), largest_risk(n, alpha=alpha, delta=delta) or 0.0)
    missed = math.nan if flat is None else grouped([c.constant(over) for c in test[0]], test[1])[:, flat].mean()
    wide = math.nan if flat is None else 2 * HALF_WIDTHS[flat]
    known = {s.high: s for s in found.by_intensity if s.share > 1e-4}
    levels = " ".join(f"{100 * (1 - known[e].coverage):.1f}" if e in known else "-" for e in (*INTENSITIES, None))
    return (
        f"{n:>3}{alpha:>7.2f}{1 - delta:>7.2f}{100 * found.risk:>8.2f}%{100 * max(found.risks):>7.2f}%"
        f"{found.mean_width:>8.4f}{wide:>11.4f}{100 * float(np.asarray(missed)):>8.2f}%   {levels}"
    )


if __name__ == "__main__":
    sys.exit(main())
