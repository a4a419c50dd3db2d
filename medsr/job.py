"""prepare: what the work on one scan is: its engine, tiles, shards, memory, and what decides its bytes."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from medsr.closing import ClosingWords
from medsr.engines import REFERENCE, EngineChoice, EngineName, available, choose_engine
from medsr.header import JOB, changes
from medsr.io import Source, omezarr, read_scan, versioned
from medsr.io.digest import input_digest
from medsr.io.lazy import KEEP_BYTES_MOST
from medsr.io.places import Place
from medsr.io.pseudonyms import unnamed
from medsr.plan import BASE_BYTES, MemoryTooSmallError, Plan, plan, torch_device
from medsr.scan import Scan
from medsr.shards import Room, Share, bytes_beside, fitting_levels
from medsr.streaming import ShardJob
from medsr.upscaler import Several, Upscaler, checkpoints_of, describe, fingerprint, makers_of
from medsr.upscaling import result_scan
from medsr.version import __version__

__all__ = ["OutputOptions", "Prepared", "Setting", "cache_bytes", "documents", "prepare", "shard_job"]

Check = Callable[[Scan], Sequence[str]]

ALL = Share()
"""A batch that is not shared."""

MOST_WRITERS = 8
"""Threads of a process that compress and write; more wait for the disk."""


class OutputOptions(BaseModel):
    """How scans are read and results are stored; what `medsr upscale --set key=value` sets."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    chunk: tuple[int, ...] | None = Field(None, description="samples of a chunk along the last axes")
    shard: tuple[int, ...] | None = Field(None, description="samples of a shard, whole chunks: the unit of recovery")
    tile: tuple[int, ...] | None = Field(None, description="coarse samples of a compute tile, instead of choosing")
    series: str | int | None = Field(None, description="which series of files that hold several")
    stack: bool = Field(False, description="take files with plain running numbers as the planes of one stack")
    black: float | None = Field(None, description="stored value of 0, instead of what the file says")
    white: float | None = Field(None, description="stored value of 1, instead of what the file says")
    consistency: bool = Field(True, description="measure how far each result agrees with its scan, for its history")


@dataclass(frozen=True, slots=True)
class Setting:
    """What is the same for every scan of a batch.

    Attributes:
        memory: bytes of one process.
        processes: on one machine, which share its cores.
        engine, tolerance: as in `choose_engine`.
        check: asked for doubts about a scan; its lines become warnings.
    """

    upscaler: Upscaler
    options: OutputOptions
    memory: int
    processes: int
    device: str
    engine: EngineName
    tolerance: float | None
    check: Check | None


@dataclass(frozen=True, slots=True)
class Prepared:
    """The work on one scan.

    Attributes:
        source, scan: what is read.
        upscaler: adapted to the scan.
        chosen, engine: how it is computed.
        levels: what is written.
        room: how far the stages may run apart.
        settings: what of this an interrupted run must keep; plain JSON.
        identity: what decides the bytes of the result.
        held_bytes: estimated most memory of a process.
        notes: what the engine showed, for the user.
        consistency: whether its agreement with the scan is measured at the end.
    """

    source: Source
    scan: Scan
    upscaler: Upscaler
    chosen: Plan
    engine: EngineChoice
    levels: tuple[omezarr.Level, ...]
    room: Room
    settings: dict[str, Any]
    identity: dict[str, Any]
    held_bytes: int
    notes: tuple[str, ...]
    consistency: bool = True


def prepare(
    source: Source,
    setting: Setting,
    header: Mapping[str, Any] | None = None,
    *,
    share: Share = ALL,
    hashed: bool = True,
) -> Prepared | None:
    """Open a scan and decide how it is computed; None where no shard of it is of the share.

    Args:
        source: the scan.
        setting: of the batch.
        header: of unfinished work. If its identity is that of this work, what was chosen then is kept.
        share: the part of the batch that is done.
        hashed: read the input to know it again; False leaves the identity empty.

    Raises:
        ScanError: it cannot be read.
        MemoryTooSmallError, ValueError: as `plan` and `plan_levels`; or what was chosen cannot be kept here.
    """
    source = versioned(source)
    scan, upscaler = _opened(source, setting)
    own = _identity(source, scan, upscaler, setting) if hashed else {}
    kept = header["settings"] if header is not None and not changes(header["identity"], own) else None
    factor = scan.grid.pad_factor(upscaler.factor)
    shape = tuple(n * f for n, f in zip(scan.shape, factor, strict=True))
    grid = scan.grid.refine(upscaler.factor)
    work = setting.memory - BASE_BYTES - cache_bytes(setting.memory)
    makers = makers_of(upscaler)
    if kept is None:
        # The shards of a result are the same whatever images are made beside it.
        halo = (0,) * (len(factor) - len(upscaler.halo)) + tuple(makers[""].halo)
        reach = tuple(h * f for h, f in zip(halo, factor, strict=True))
        chunk, shard, dtype = setting.options.chunk, setting.options.shard, scan.intensity.dtype
        levels = fitting_levels(shape, grid, dtype=dtype, work=work, reach=reach, chunk=chunk, shard=shard)
    else:
        levels = omezarr.plan_levels(shape, grid, chunk=kept["chunk"], shard=kept["shard"])
    levels = tuple(replace(level, images=tuple(makers)) for level in levels)
    count = sum(1 for _ in omezarr.shard_regions(levels[0]))
    if not any(share.owns(number, count, source.name) for number in range(count)):
        return None
    notes: list[str] = []
    engine = _engine(scan, upscaler, setting, kept, notes)
    try:
        chosen, room = _planned(scan, upscaler, levels, setting, engine=engine, work=work, kept=kept)
    except MemoryTooSmallError:
        if engine == REFERENCE or kept is not None:
            raise
        notes.append(f"{engine}: does not fit into the memory; {REFERENCE} is taken")
        engine = REFERENCE
        chosen, room = _planned(scan, upscaler, levels, setting, engine=engine, work=work, kept=None)
    return Prepared(
        source,
        scan,
        upscaler,
        chosen,
        engine,
        levels,
        room,
        settings={
            "chunk": list(levels[0].chunk),
            "shard": list(levels[0].shard),
            "tile": list(chosen.tile),
            "strip": list(chosen.strip),
            "batch": chosen.batch,
            "engine": asdict(engine),
        },
        identity=own,
        held_bytes=setting.memory - work + bytes_beside(levels, scan.intensity.dtype, room) + chosen.bytes_per_tile,
        notes=tuple(notes),
        consistency=setting.options.consistency,
    )


def _opened(source: Source, setting: Setting) -> tuple[Scan, Upscaler]:
    options = setting.options
    scan = read_scan(source, series=options.series)
    if options.black is not None or options.white is not None:
        black = scan.intensity.black if options.black is None else options.black
        white = scan.intensity.white if options.white is None else options.white
        scan = replace(scan, intensity=replace(scan.intensity, black=black, white=white))
    doubts = () if setting.check is None else tuple(setting.check(scan))
    said = (unnamed(line, source) for line in (*scan.warnings, *_precision(scan), *doubts))
    scan = replace(scan, warnings=tuple(said), history=tuple(unnamed(line, source) for line in scan.history))
    return scan, setting.upscaler.adapt(scan)


def _engine(
    scan: Scan, upscaler: Upscaler, setting: Setting, kept: Mapping[str, Any] | None, notes: list[str]
) -> EngineChoice:
    """The engine that is chosen now, or that of unfinished work if it runs here.

    Raises:
        ValueError: it does not run here.
    """
    if kept is None:
        return choose_engine(
            scan,
            upscaler,
            engine=setting.engine,
            tolerance=setting.tolerance,
            device=setting.device,
            memory=setting.memory,
            note=notes.append,
        )
    engine = EngineChoice(**kept["engine"])
    reason = available(engine, device=setting.device)
    if reason:
        raise ValueError(
            f"unfinished work was begun with {engine}, which cannot run here: {reason}; or use --overwrite"
        )
    return engine


def _planned(
    scan: Scan,
    upscaler: Upscaler,
    levels: tuple[omezarr.Level, ...],
    setting: Setting,
    *,
    engine: EngineChoice,
    work: int,
    kept: Mapping[str, Any] | None,
) -> tuple[Plan, Room]:
    """The tiles, and how far apart the stages may run by the budget."""
    factor = scan.grid.pad_factor(upscaler.factor)
    block = tuple(math.ceil(s / f) for s, f in zip(levels[0].shard, factor, strict=True))
    on_card = torch_device(setting.device).type == "cuda"
    most = min(MOST_WRITERS, max(2, (os.cpu_count() or 1) // setting.processes))
    tile = setting.options.tile if kept is None else tuple(kept["tile"][-len(upscaler.factor) :])
    for room in (*(Room(n, n + 1, 2) for n in range(most, 0, -1)), Room(1, 1, 1)):
        beside = bytes_beside(levels, scan.intensity.dtype, room)
        if beside > work // 3 and room != Room(1, 1, 1):
            continue
        try:
            chosen = plan(
                scan,
                upscaler,
                memory=None if on_card else BASE_BYTES + work - beside,
                device=setting.device,
                tile=tile,
                block=block,
                engine=engine,
                waiting=2 * room.writers + 1,
            )
            if kept is not None and not on_card and chosen.bytes_per_tile > work - beside:
                needed = (setting.memory - work + beside + chosen.bytes_per_tile) / 1e6
                raise MemoryTooSmallError(
                    f"memory: the unfinished result was begun with tiles that need {needed:,.0f} MB a worker, found "
                    f"{setting.memory / 1e6:,.0f} MB; raise --memory, lower --workers, or --overwrite to start anew"
                )
        except MemoryTooSmallError as error:
            too_small = error
        else:
            if kept is not None:
                chosen = replace(chosen, strip=tuple(kept["strip"]), batch=kept["batch"])
            return chosen, room
    raise too_small


def _precision(scan: Scan) -> tuple[str, ...]:
    """A warning where float32, in which methods compute, is coarser than the stored values."""
    dtype = scan.intensity.dtype
    span = abs(scan.intensity.white - scan.intensity.black)
    if dtype.itemsize > (4 if dtype.kind == "f" else 2) and (dtype.kind == "f" or span > 1 << 22):
        return (f"{dtype} values are computed in float32, which keeps about seven digits of black to white",)
    return ()


def cache_bytes(memory: int) -> int:
    """What the readers may keep of decoded samples: a quarter of what the interpreter leaves, at most 512 MiB."""
    return int(min(max(0, memory - BASE_BYTES) // 4, KEEP_BYTES_MOST))


def _identity(source: Source, scan: Scan, upscaler: Upscaler, setting: Setting) -> dict[str, Any]:
    """What decides the bytes of a result, and must be the same when it is gone on with; plain JSON."""
    options = setting.options
    return {
        "version": __version__,
        "input_sha256": input_digest(source),
        "series": options.series,
        "method": describe(upscaler),
        "method_sha256": fingerprint(upscaler),
        "factor": list(upscaler.factor),
        "black": scan.intensity.black,
        "white": scan.intensity.white,
        "padding": None if scan.intensity.padding is None else list(scan.intensity.padding),
        "chunk": None if options.chunk is None else list(options.chunk),
        "shard": None if options.shard is None else list(options.shard),
        "tile": None if options.tile is None else list(options.tile),
        "consistency": options.consistency,
        "engine": setting.engine,
        "tolerance": setting.tolerance,
        "device": torch_device(setting.device).type,
    }


def documents(prepared: Prepared, closing: ClosingWords = ((), ())) -> dict[str, bytes]:
    """The metadata of the result by key; its identity is kept in it, to know the result again.

    Args:
        prepared: the work.
        closing: what is said of the result when it is finished.
    """
    upscaler, found = prepared.upscaler, dict[str, bytes]()
    for image, maker in reversed(makers_of(upscaler).items()):  # the result itself last: then all in it is there
        lines, doubts = ((), ()) if image else closing
        result = result_scan(prepared.scan, maker, prepared.scan.data, engine=prepared.engine)
        made = omezarr.metadata(
            prepared.levels,
            intensity=result.intensity,
            name=f"{prepared.source.name} {image}".rstrip(),
            factor=prepared.chosen.factor,
            attributes={
                "history": [*result.history, *lines],
                "warnings": [*prepared.scan.warnings, *doubts],
                "checkpoints": list(checkpoints_of(upscaler)),
                "job": {**prepared.identity, "settings": prepared.settings},
                **(upscaler.attributes(image) if isinstance(upscaler, Several) else {}),
            },
        )
        found |= {f"{image}/{key}" if image else key: document for key, document in made.items()}
    return found


def shard_job(prepared: Prepared, setting: Setting, target: Place) -> ShardJob:
    """What the processes that fill the shards are told."""
    return ShardJob(
        prepared.source,
        setting.options.series,
        prepared.scan.intensity,
        prepared.upscaler,
        prepared.chosen,
        target,
        prepared.levels,
        setting.device,
        prepared.engine,
        prepared.room,
        target.digest(JOB) or "",
    )
