"""The parts of a network as functions of tensors: by torch, or by OpenVINO."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from medsr.engines.choice import Precision
from medsr.stages import Stages

__all__ = ["Part", "Parts", "has_openvino", "openvino_parts", "runs_bfloat16", "torch_parts"]

Part = Callable[[Tensor], Tensor]
Note = Callable[[str], None]

HALVES: dict[Precision, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class Parts(NamedTuple):
    """A network without its base in two halves: features of coarse samples, and detail of features.

    What they return may be memory that their next call uses again.
    """

    features: Part
    detail: Part


def torch_parts(stages: Stages, *, precision: Precision, device: torch.device, note: Note | None = None) -> Parts:
    """The stages by PyTorch, channels last; on CUDA each compiled, where that works."""
    half = HALVES[precision]
    layout = torch.channels_last if len(stages.rise_halo) == 2 else torch.channels_last_3d

    def ready(stage: nn.Module, dtype: torch.dtype) -> Part:
        placed = stage.to(device, dtype)
        placed.to(memory_format=layout)  # type: ignore[call-overload]  # in place; the stub leaves this one out
        run: Part = _compiled(placed, note) if device.type == "cuda" else placed
        return lambda low: run(low.to(device, dtype, memory_format=layout))

    entry, body = ready(stages.entry, torch.float32), ready(stages.body, half)
    rise, last = ready(stages.rise, half), ready(stages.last, torch.float32)
    return Parts(lambda low: body(entry(low)), lambda features: last(rise(features)))


def _compiled(stage: nn.Module, note: Note | None) -> Part:
    """The stage compiled when it is first used; as it is where the compiler fails."""
    run: Part = torch.compile(stage, dynamic=False)

    def guarded(low: Tensor) -> Tensor:
        nonlocal run
        try:
            fine: Tensor = run(low)
            return fine
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # the compiler's errors are of this class; the stage itself tells a true one
            if run is stage:
                raise
            if note is not None:
                note(f"engine compiled: torch.compile failed, runs without ({str(error).splitlines()[0]})")
            run = stage
            return guarded(low)

    return guarded


def has_openvino() -> bool:
    """Whether OpenVINO is installed."""
    try:
        _openvino()
    except ImportError:
        return False
    return True


def runs_bfloat16(*, openvino: bool) -> bool:
    """Whether this machine's CPU multiplies in bfloat16; else it is slower than float32 and no gain."""
    if openvino:
        found: Any = _openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return "BF16" in found
    asked = getattr(torch.cpu, "get_capabilities", None)  # torch 2.10 and later; older ones do not say
    known = asked() if asked is not None else {}
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def openvino_parts(stages: Stages, precision: Precision, *, halo: tuple[int, ...], threads: int | None = None) -> Parts:
    """The stages by OpenVINO on the CPU, any sizes; `halo` is that of the whole network.

    Raises:
        ImportError: OpenVINO is not installed.
        RuntimeError: it cannot convert a stage.
    """
    size = [2 * h + 1 for h in halo]

    def ready(stage: nn.Module, channels: int, kind: Precision) -> Part:
        # Tracing runs the stage; of no samples at all that costs nothing.
        return _openvino_part(stage, torch.zeros(0, channels, *size), kind, threads=threads)

    with torch.inference_mode():
        width = stages.entry(torch.zeros(0, 1, *size)).shape[1]
        wide = stages.rise(torch.zeros(0, width, *size)).shape[1]
    if precision == "float32":
        features, detail = nn.Sequential(stages.entry, stages.body), nn.Sequential(stages.rise, stages.last)
        return Parts(ready(features, 1, precision), ready(detail, width, precision))
    body, rise = ready(stages.body, width, precision), ready(stages.rise, width, precision)
    last = ready(stages.last, wide, "float32")
    return Parts(lambda low: body(stages.entry(low)), lambda found: last(rise(found)))


def _openvino() -> Any:
    """The module openvino, without its telemetry: by default it sends usage data over the network on import."""
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # makes its import fail
    import openvino

    return openvino


def _openvino_part(stage: nn.Module, example: Tensor, precision: Precision, *, threads: int | None) -> Part:
    openvino = _openvino()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of sizes it takes for constants; they are set free below
        model = openvino.convert_model(stage, example_input=example)
    model.reshape([-1, example.shape[1], *(-1,) * (example.ndim - 2)])
    settings = {
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[precision],
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads or torch.get_num_threads(),
    }
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()

    def run(low: Tensor) -> Tensor:
        result = request.infer([low.contiguous().numpy()], share_inputs=True, share_outputs=True)
        return torch.from_numpy(result[0])

    return run
