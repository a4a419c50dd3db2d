"""The small networks against SRResNet: multiply-adds and time of a coarse sample, by torch and by OpenVINO.

    python benchmarks/fast.py [--size 192] [--factor 2] [--rounds 5]

All networks are new, of their default sizes, and upscale the same picture in this process, in turn. Times include the
cubic interpolation that each adds to. Ratios are to `fast`: 20.00 is twenty times as much.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from paired import Column, Figures, WayFailedError, command_line, finish, report, run_rounds
from torch.utils.flop_counter import FlopCounterMode

import medsr
from medsr.engines import EngineChoice, available, build_engine

KINDS = {"fast": "fast", "espcn": "espcn", "fsrcnn": "fsrcnn", "scn": "scn", "srresnet, 16 blocks": "srresnet"}
"""Name: kind of method."""
COLUMNS = (
    Column("multiply_adds", "multiply-adds a coarse sample", ",.0f", ratio=True),
    Column("nanoseconds", "ns a coarse sample", ",.0f", ratio=True),
)


def network(kind: str, factor: int):
    """A new network of its default size."""
    torch.manual_seed(0)
    recipe = medsr.Recipe.model_validate({"method": {"kind": kind, "factor": (factor, factor)}})
    return medsr.build_network(recipe.method).eval()


def multiply_adds(made, low: torch.Tensor) -> float:
    """Those of the convolutions, for each coarse sample, as torch counts them."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        made(low)
    counted = counter.get_flop_counts()["Global"]
    return sum(n for operation, n in counted.items() if "conv" in str(operation)) / 2 / low.numel()


def way(made, engine: str, low: torch.Tensor) -> Callable[[], Figures]:
    """The network by an engine in float32, built once; by torch eagerly, as it stands."""
    choice = EngineChoice(engine, "float32", 0.0, math.inf)  # any deviation: nothing is chosen here
    if reason := available(choice):
        return partial(failed, reason)
    run = build_engine(made, choice, device=torch.device("cpu"))
    cost = multiply_adds(made, low)

    def go() -> Figures:
        begun = time.perf_counter()
        run(low)
        return {"nanoseconds": (time.perf_counter() - begun) / low.numel() * 1e9, "multiply_adds": cost}

    return go


def failed(reason: str) -> Figures:
    """A way that cannot be gone on this machine."""
    raise WayFailedError(reason)


def main() -> int:
    """Run all networks in turn by each engine and print the tables."""
    parser = command_line(__doc__, rounds=5)
    parser.add_argument("--size", type=int, default=192, help="rows and columns of the picture")
    parser.add_argument("--factor", type=int, default=2, help="of both axes")
    parser.add_argument(
        "--engines", nargs="+", default=["torch", "openvino"], choices=["torch", "compiled", "openvino"]
    )
    arguments = parser.parse_args()
    low = torch.rand(1, 1, arguments.size, arguments.size, generator=torch.Generator().manual_seed(0))
    networks = {name: network(kind, arguments.factor) for name, kind in KINDS.items()}
    done = []
    for engine in arguments.engines:
        ways = {name: way(made, engine, low) for name, made in networks.items()}
        results = run_rounds(ways, arguments.rounds, warm=1)
        title = f"x{arguments.factor} of {arguments.size}^2 coarse samples, {engine} float32"
        done.append(report(results, COLUMNS, base="fast", title=title, settings=arguments))
    return finish(done, arguments.json)


if __name__ == "__main__":
    sys.exit(main())
