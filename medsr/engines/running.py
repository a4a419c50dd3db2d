"""Engine, build_engine: a network run over a tile, in parts that fit the caches."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from medsr.engines.choice import REFERENCE, EngineChoice
from medsr.engines.parts import Parts, openvino_parts, torch_parts
from medsr.plan import placed
from medsr.precision import float32_only
from medsr.scan import Region
from medsr.stages import Stages
from medsr.tiles import plan_tiles, region_shape, whole
from medsr.upscaler import Composed, Placed, Run, Several, Staged, Upscaler, describe, fingerprint, has_stages

__all__ = ["Engine", "build_engine"]

KEPT_NETWORKS = 4
"""Networks a process keeps ready: each holds a copy of the weights and of its working memory."""

Note = Callable[[str], None]
Origins = Sequence[tuple[int, ...]]


class Engine(Protocol):
    """An upscaler as it is run; not for two threads at a time."""

    def __call__(self, low: Tensor, keep: Region | None = None, origins: Origins = ()) -> Tensor:
        """Upscale tiles of equal shape.

        Args:
            low: (n, 1, *size) float32 in unit intensity, on the CPU.
            keep: region of the result to return, in fine samples along the spatial axes; None: all. An edge of `low`
                nearer to it than the halo is taken for an edge of the scan.
            origins: where in the scan the first sample of each tile lies, in coarse samples along all of its axes; for
                upscalers that must know.

        Returns:
            (n, 1, *kept) float32, on the CPU; of `Several` images (n, images, *kept).

        Raises:
            ValueError: the upscaler's result has another shape than its factor says.
        """
        ...


_networks: OrderedDict[tuple[object, ...], _Network] = OrderedDict()
_turn = threading.Lock()


def build_engine(
    upscaler: Upscaler,
    choice: EngineChoice,
    *,
    device: torch.device,
    threads: int | None = None,
    strip: tuple[int, ...] = (),
    note: Note | None = None,
) -> Engine:
    """The engine of a choice, built once in a process for the same weights.

    Args:
        upscaler: already adapted to its scan; for other engines than "torch" a `Staged` one, or one made of such.
        choice: from `choose_engine`.
        device: where it runs; "openvino" runs on the CPU.
        threads: of OpenVINO; None: as many as PyTorch uses.
        strip: coarse samples of the parts in which a tile's fine samples are made, see `Plan`; (): the tile at once.
        note: receives what is worth a user's eye.

    Raises:
        ImportError: OpenVINO is not installed.
        ValueError: the upscaler has no stages.
    """
    if isinstance(upscaler, Composed):
        choices = [choice if has_stages(part) else REFERENCE for part in upscaler.parts]
        if choice.name != "torch" and REFERENCE in choices and not has_stages(upscaler):
            raise ValueError(f"{describe(upscaler)}: expected a part with stages for {choice.name}, found none")
        engines = [
            build_engine(part, own, device=device, threads=threads, strip=strip, note=note)
            for part, own in zip(upscaler.parts, choices, strict=True)
        ]
        return _Around(placed(upscaler, device), engines, device)
    if choice.name == "torch":
        return _Whole(placed(upscaler, device), device)
    if not isinstance(upscaler, Staged):
        raise ValueError(f"{describe(upscaler)}: expected a network with stages for {choice.name}, found none")
    key = (fingerprint(upscaler), choice.name, choice.precision, device, threads)
    with _turn:
        if key not in _networks:
            _networks[key] = _Network(upscaler, choice, device, threads=threads, note=note)
        _networks.move_to_end(key)
        while len(_networks) > KEPT_NETWORKS:
            _networks.popitem(last=False)
        return _Cut(_networks[key], strip)


class _Whole:
    """The upscaler as it stands."""

    def __init__(self, upscaler: Upscaler, device: torch.device) -> None:
        self._upscaler = upscaler
        self._device = device

    def __call__(self, low: Tensor, keep: Region | None = None, origins: Origins = ()) -> Tensor:
        run, expected = self._upscaler, _expected(self._upscaler, low)
        kept = []
        for index, part in enumerate(torch.split(low, 1)):
            here: Run = run.at(origins[index]) if origins and isinstance(run, Placed) else run
            with torch.inference_mode():
                estimate = here(part.to(self._device))
            _refuse_shape(estimate, (1, *expected), self._upscaler)
            kept.append(_crop(estimate, keep or whole(expected[1:])).float().cpu())
        return torch.cat(kept) if len(kept) > 1 else kept[0]


class _Around:
    """What an upscaler makes of its parts, each run by its own engine."""

    def __init__(self, upscaler: Composed, engines: Sequence[Engine], device: torch.device) -> None:
        self._upscaler = upscaler
        self._engines = tuple(engines)
        self._device = device

    def __call__(self, low: Tensor, keep: Region | None = None, origins: Origins = ()) -> Tensor:
        def run(engine: Engine, part: Tensor) -> Tensor:
            return engine(part, None, origins).to(self._device)

        with torch.inference_mode():
            runs = [partial(run, engine) for engine in self._engines]
            estimate = self._upscaler.around(low.to(self._device), runs)
        expected = _expected(self._upscaler, low)
        _refuse_shape(estimate, (low.shape[0], *expected), self._upscaler)
        return _crop(estimate, keep or whole(expected[1:])).float().cpu()


def _expected(upscaler: Upscaler, low: Tensor) -> tuple[int, ...]:
    """Images and fine samples that an upscaler makes of each tile."""
    images = len(upscaler.images) if isinstance(upscaler, Several) else 1
    return (images, *(n * f for n, f in zip(low.shape[2:], upscaler.factor, strict=True)))


def _refuse_shape(estimate: Tensor, expected: tuple[int, ...], upscaler: Upscaler) -> None:
    if tuple(estimate.shape) != expected:
        raise ValueError(
            f"{describe(upscaler)}: expected an estimate of shape {expected}, found {tuple(estimate.shape)}; a method "
            "returns its input's size times its factor"
        )


class _Network:
    """A network made ready: its parts with and without edges, each made when it is first needed."""

    def __init__(
        self, upscaler: Staged, choice: EngineChoice, device: torch.device, *, threads: int | None, note: Note | None
    ) -> None:
        stages = upscaler.stages()
        self.factor, self.halo, self.rise_halo = upscaler.factor, upscaler.halo, stages.rise_halo
        self.device = torch.device("cpu") if choice.name == "openvino" else device
        self.base = None if stages.base is None else stages.base.to(self.device)
        self._stages = {True: stages, False: upscaler.stages(edges=False)}
        self._make: Callable[[Stages], Parts] = (
            partial(openvino_parts, precision=choice.precision, halo=self.halo, threads=threads)
            if choice.name == "openvino"
            else partial(torch_parts, precision=choice.precision, device=self.device, note=note)
        )
        self._parts: dict[bool, Parts] = {}

    def parts(self, *, edges: bool) -> Parts:
        """The parts; without edges they are cheaper and right only where a whole halo is given."""
        if edges not in self._parts:
            self._parts[edges] = self._make(self._stages[edges])
        return self._parts[edges]


class _Cut:
    """Features of the whole tile, then the fine samples strip by strip, and only those that are kept."""

    def __init__(self, network: _Network, strip: tuple[int, ...]) -> None:
        self._network = network
        self._strip = strip

    def __call__(self, low: Tensor, keep: Region | None = None, origins: Origins = ()) -> Tensor:  # noqa: ARG002
        network, size = self._network, tuple(low.shape[2:])
        factor, rise_halo = network.factor, network.rise_halo
        keep = keep or whole([n * f for n, f in zip(size, factor, strict=True)])
        with torch.inference_mode(), float32_only(network.device):
            low = low.to(network.device)
            features = network.parts(edges=not _has_halo(keep, size, factor, network.halo)).features(low)
            lost = [(n - m) // 2 for n, m in zip(size, features.shape[2:], strict=True)]
            result = self._base(low, keep)
            for strip in plan_tiles(size, factor, halo=rise_halo, tile=self._strip or size, target=keep):
                edges = not _has_halo(strip.keep, region_shape(strip.read), factor, rise_halo)
                detail = network.parts(edges=edges).detail(_crop(features, _moved(strip.read, lost)))
                place = _moved(strip.target, [s.start for s in keep])
                _crop(result, place).add_(_crop(detail, strip.keep))
            return result.cpu()

    def _base(self, low: Tensor, keep: Region) -> Tensor:
        """What the detail is added to."""
        network, size = self._network, tuple(low.shape[2:])
        if network.base is None:
            return low.new_zeros(*low.shape[:2], *region_shape(keep))
        tile = next(plan_tiles(size, network.factor, halo=network.rise_halo, tile=size, target=keep))
        return _crop(network.base(_crop(low, tile.read)), tile.keep)


def _has_halo(keep: Region, size: tuple[int, ...], factor: tuple[int, ...], halo: tuple[int, ...]) -> bool:
    """Whether `keep`, in fine samples, has a whole halo around it in a tile of `size` coarse samples."""
    return all(
        s.start >= h * f and math.ceil(s.stop / f) + h <= n for s, n, f, h in zip(keep, size, factor, halo, strict=True)
    )


def _crop(low: Tensor, region: Region) -> Tensor:
    return low[(slice(None), slice(None), *region)]


def _moved(region: Region, origin: Sequence[int]) -> Region:
    return tuple(slice(s.start - o, s.stop - o) for s, o in zip(region, origin, strict=True))
