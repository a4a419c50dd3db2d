"""upscale_folder: scans in, OME-Zarr out; resumable; one bad file stops nothing."""

from __future__ import annotations

import csv
import errno
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from medsr.io import NoImageError, Source, find_all, omezarr, read_scan
from medsr.io.digest import input_digest
from medsr.io.lazy import KEEP_BYTES_MOST
from medsr.plan import BASE_BYTES, Plan, default_memory, plan, torch_device
from medsr.progress import JobChangedError, Progress, drop_leftovers, lock
from medsr.scan import Scan
from medsr.upscaler import Upscaler, describe, fingerprint
from medsr.upscaling import result_scan
from medsr.version import __version__
from medsr.workers import Crew, ShardJob, Task

__all__ = ["BatchReport", "BatchRow", "OutputOptions", "upscale_folder"]

SMALLEST = BASE_BYTES + 50_000_000
"""Least memory of a process: the interpreter with its libraries, and something to work in."""

Check = Callable[[Scan], Sequence[str]]
Note = Callable[[str], None]


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


@dataclass(frozen=True, slots=True)
class BatchRow:
    """What became of one scan: a line of `batch.jsonl`."""

    scan: str
    status: Literal["done", "skipped", "failed", "planned"]
    seconds: float
    reason: str = ""
    output: str = ""
    warnings: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BatchReport:
    """The rows of a batch, in the order of its scans."""

    rows: tuple[BatchRow, ...]

    @property
    def exit_code(self) -> int:
        """1 when a scan failed, else 0."""
        return int(any(row.status == "failed" for row in self.rows))


@dataclass(frozen=True, slots=True)
class _Setting:
    """What is the same for every scan of a batch; `memory` is that of one process."""

    upscaler: Upscaler
    out: Path
    options: OutputOptions
    memory: int
    device: str
    overwrite: bool
    check: Check | None
    crew: Crew
    note: Note
    tick: Callable[[str, int, int], None] | None


def upscale_folder(
    paths: Path | str | Sequence[Path | str],
    upscaler: Upscaler,
    *,
    out: Path | str,
    options: OutputOptions | None = None,
    memory: int | None = None,
    workers: int = 1,
    device: str = "auto",
    dry_run: bool = False,
    overwrite: bool = False,
    check: Check | None = None,
    note: Note | None = None,
    tick: Callable[[str, int, int], None] | None = None,
) -> BatchReport:
    """Upscale every scan of files and folders to `out/<name>.ome.zarr`.

    A result is written under `<name>.ome.zarr.part` and renamed when complete. A batch that was stopped, however, goes
    on with the same call: complete results are skipped, the shards of an unfinished one that are whole are kept. A
    scan that fails is named with its reason in the report and in `out/batch.jsonl`; the others are written.

    Args:
        paths: files and folders.
        upscaler: the method, a value such as `Cubic((2, 2))` or `load_upscaler(run)`.
        out: folder of the results, made if absent.
        options: how to read and store; None: the defaults.
        memory: bytes the processes may hold in all (`plan`); None: `default_memory()`, shared by the workers.
        workers: processes that fill shards.
        device: "auto", "cpu", "cuda", "cuda:N".
        dry_run: plan and report only, write nothing.
        overwrite: replace results and unfinished work that came from other inputs or options.
        check: asked for doubts about a scan before the work (a checkpoint's range); its lines become warnings.
        note: receives a line for each event worth a user's eye.
        tick: receives (scan, shards done, shards in all).

    Raises:
        ScanError: no scan was found.
        OSError: `out` cannot be made or written.
        ValueError: an option or device that makes no sense, too little memory for a worker, `out` is a file, or another
            batch is writing there.
    """
    if workers < 1:
        raise ValueError(f"workers: expected at least 1, found {workers}")
    torch_device(device)
    options = options or OutputOptions()
    share = (default_memory() if memory is None else memory) // workers
    if share <= SMALLEST:
        raise ValueError(
            f"memory: expected more than {SMALLEST / 1e6:.0f} MB for each worker, found {share / 1e6:.0f} MB for each "
            f"of {workers}; raise --memory" + (" or lower --workers" if workers > 1 else "")
        )
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: expected a folder for the results, found a file; give --out another name")
    sources = find_all(paths, out=out, stack=options.stack)
    named = {Path(path) for path in ([paths] if isinstance(paths, (str, Path)) else paths)}
    rows: list[BatchRow] = []
    with ExitStack() as stack:
        if not dry_run:
            out.mkdir(parents=True, exist_ok=True)
            log = stack.enter_context((out / "batch.jsonl").open("a+"))
            lock(log, out)
            log.truncate(0)
            stack.callback(lambda: _write_table(out / "batch.csv", rows))
        crew = stack.enter_context(Crew(1 if dry_run else workers, cache_bytes=_cache_bytes(share)))
        setting = _Setting(upscaler, out, options, share, device, overwrite, check, crew, note or _silent, tick)
        for source in sources:
            rows.append(_guarded(source, setting, dry_run=dry_run, found=source.path not in named))
            if not dry_run:
                log.write(json.dumps(asdict(rows[-1])) + "\n")
                log.flush()
    return BatchReport(tuple(rows))


def _silent(_line: str) -> None:
    """The default of `note`."""


def _guarded(source: Source, setting: _Setting, *, dry_run: bool, found: bool) -> BatchRow:
    """One scan's row, whatever happens to it; `found`: by searching a folder, not named by the user."""
    begun = time.perf_counter()
    try:
        row = _plan_row(source, setting) if dry_run else _upscale_one(source, setting)
    except NoImageError as error:
        row = BatchRow(source.name, "skipped" if found else "failed", 0.0, _reason(source, error, setting.out))
    except Exception as error:  # noqa: BLE001 - law 6: one bad scan stops nothing; its reason is in the row
        row = BatchRow(source.name, "failed", 0.0, _reason(source, error, setting.out))
    setting.note(f"{row.scan}: {row.status}" + (f": {row.reason}" if row.reason else ""))
    return replace(row, seconds=round(time.perf_counter() - begun, 3))


def _reason(source: Source, error: Exception, out: Path) -> str:
    text = " ".join(str(error).split()) or "no reason given"
    if isinstance(error, OSError) and error.errno is not None:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
        where = out if full else error.filename or source.path
        return f"{where}: {error.strerror}; mend that and give the same command again: it goes on where it stopped"
    if isinstance(error, (ValueError, MemoryError)):
        return text if source.path.name in text else f"{source.path}: {text}"
    return f"{source.path}: {type(error).__name__}: {text}"


def _opened(source: Source, setting: _Setting) -> tuple[Scan, Upscaler, Plan, tuple[omezarr.Level, ...]]:
    options = setting.options
    scan = read_scan(source, series=options.series)
    if options.black is not None or options.white is not None:
        black = scan.intensity.black if options.black is None else options.black
        white = scan.intensity.white if options.white is None else options.white
        scan = replace(scan, intensity=replace(scan.intensity, black=black, white=white))
    scan = replace(scan, warnings=(*scan.warnings, *_precision(scan)))
    if setting.check is not None:
        scan = replace(scan, warnings=(*scan.warnings, *setting.check(scan)))
    for warning in scan.warnings:
        setting.note(f"{source.name}: warning: {warning}")
    upscaler = setting.upscaler.adapt(scan)
    factor = scan.grid.pad_factor(upscaler.factor)
    shape = [n * f for n, f in zip(scan.shape, factor, strict=True)]
    levels = omezarr.plan_levels(shape, scan.grid.refine(factor), chunk=options.chunk, shard=options.shard)
    block = tuple(math.ceil(s / f) for s, f in zip(levels[0].shard, factor, strict=True))
    memory = setting.memory - _shard_bytes(levels, scan) - _cache_bytes(setting.memory)
    on_card = torch_device(setting.device).type == "cuda"
    chosen = plan(
        scan, upscaler, memory=None if on_card else memory, device=setting.device, tile=options.tile, block=block
    )
    return scan, upscaler, chosen, levels


def _precision(scan: Scan) -> tuple[str, ...]:
    """A warning where float32, in which methods compute, is coarser than the stored values."""
    dtype = scan.intensity.dtype
    span = abs(scan.intensity.white - scan.intensity.black)
    if dtype.itemsize > (4 if dtype.kind == "f" else 2) and (dtype.kind == "f" or span > 1 << 22):
        return (f"{dtype} values are computed in float32, which keeps about seven digits of black to white",)
    return ()


def _shard_bytes(levels: Sequence[omezarr.Level], scan: Scan) -> int:
    """What is held beside a tile: the shard being filled, and its compressed twin while it is written."""
    return 2 * min(math.prod(levels[0].shard), math.prod(levels[0].shape)) * scan.intensity.dtype.itemsize


def _cache_bytes(memory: int) -> int:
    """What the readers may keep of decoded samples: a quarter of what the interpreter leaves, at most 512 MiB."""
    return int(min(max(0, memory - BASE_BYTES) // 4, KEEP_BYTES_MOST))


def _tasks(levels: Sequence[omezarr.Level]) -> Iterator[list[Task]]:
    """The shards of each level; a level needs the one before it."""
    for number, level in enumerate(levels):
        yield [Task(number, index) for index, _ in omezarr.shard_regions(level)]


def _plan_row(source: Source, setting: _Setting) -> BatchRow:
    scan, upscaler, chosen, levels = _opened(source, setting)
    held = BASE_BYTES + _cache_bytes(setting.memory) + _shard_bytes(levels, scan) + chosen.bytes_per_tile
    size = sum(math.prod(level.shape) for level in levels) * scan.intensity.dtype.itemsize
    details = {
        "shape": scan.shape,
        "result_shape": chosen.shape,
        "dtype": str(scan.intensity.dtype),
        "tile": chosen.tile,
        "halo": chosen.halo,
        "tiles": sum(1 for _ in chosen.tiles(scan)),
        "shards": sum(map(len, _tasks(levels))),
        "levels": len(levels),
        "tile_mb": round(chosen.bytes_per_tile / 1e6, 1),
        "memory_mb": round(held / 1e6, 1),
        "size_mb": round(size / 1e6, 1),
        "method": describe(upscaler),
    }
    reason = (
        f"{_by(scan.shape)} -> {_by(chosen.shape)}, {details['tiles']} tiles of {_by(chosen.tile)} with a halo of "
        f"{_by(chosen.halo)}, at most {details['memory_mb']} MB of memory a worker, {details['size_mb']} MB before "
        "compression"
    )
    return BatchRow(source.name, "planned", 0.0, reason, str(_final(source, setting)), scan.warnings, details)


def _by(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


def _final(source: Source, setting: _Setting) -> Path:
    return setting.out / f"{source.name}.ome.zarr"


def _upscale_one(source: Source, setting: _Setting) -> BatchRow:
    scan, upscaler, chosen, levels = _opened(source, setting)
    final = _final(source, setting)
    identity = _identity(source, scan, upscaler, levels, setting)
    if _is_there(final, identity, levels, setting):
        drop_leftovers(final)
        return BatchRow(source.name, "skipped", 0.0, "already there", str(final), scan.warnings)
    part = final.with_name(final.name + ".part")
    with Progress.open(part, identity, tile=chosen.tile, restart=setting.overwrite) as progress:
        chosen = replace(chosen, tile=progress.tile)
        if not progress.begun:
            attributes = _attributes(scan, upscaler, identity)
            omezarr.create(
                part,
                levels,
                intensity=result_scan(scan, upscaler, scan.data).intensity,
                name=source.name,
                factor=chosen.factor,
                attributes=attributes,
            )
            progress.begin()
        job = ShardJob(source, setting.options.series, scan.intensity, upscaler, chosen, part, levels, setting.device)
        _fill(job, progress, scan, setting)
        progress.finish(final)
    return BatchRow(source.name, "done", 0.0, "", str(final), scan.warnings)


def _is_there(final: Path, identity: dict[str, Any], levels: Sequence[omezarr.Level], setting: _Setting) -> bool:
    """Whether the result is complete already.

    Raises:
        JobChangedError: something else has its name, or shards of it are gone, and it may not be replaced.
    """
    if not final.exists():
        return False
    same = omezarr.stored_job(final) == identity
    if same and omezarr.is_whole(final, levels):
        return True
    if not setting.overwrite:
        found = "has lost shards since" if same else "came from another input, method or option"
        raise JobChangedError(f"{final}: exists and {found}; use --overwrite or another --out")
    return False


def _fill(job: ShardJob, progress: Progress, scan: Scan, setting: _Setting) -> None:
    total = sum(map(len, _tasks(job.levels)))
    done = 0
    for level_tasks in _tasks(job.levels):
        level = job.levels[level_tasks[0].level]
        waiting = [t for t in level_tasks if not progress.has(t, omezarr.shard_digest(job.root, level, t.index))]
        done += len(level_tasks) - len(waiting)
        for task, digest in setting.crew.run(job, waiting, scan=scan):
            progress.record(task, digest)
            done += 1
            if setting.tick is not None:
                setting.tick(job.source.name, done, total)


def _identity(
    source: Source, scan: Scan, upscaler: Upscaler, levels: Sequence[omezarr.Level], setting: _Setting
) -> dict[str, Any]:
    """What decides the bytes of a result; plain JSON."""
    return {
        "version": __version__,
        "input_sha256": input_digest(source.files),
        "series": setting.options.series,
        "method": describe(upscaler),
        "method_sha256": fingerprint(upscaler),
        "factor": list(upscaler.factor),
        "black": scan.intensity.black,
        "white": scan.intensity.white,
        "chunk": list(levels[0].chunk),
        "shard": list(levels[0].shard),
        "device": torch_device(setting.device).type,
    }


def _attributes(scan: Scan, upscaler: Upscaler, identity: dict[str, Any]) -> dict[str, Any]:
    result = result_scan(scan, upscaler, scan.data)
    return {"history": list(result.history), "warnings": list(scan.warnings), "job": identity}


def _write_table(path: Path, rows: Sequence[BatchRow]) -> None:
    part = path.with_name(path.name + ".part")
    with part.open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["scan", "status", "seconds", "reason", "output"])
        table.writerows([row.scan, row.status, row.seconds, row.reason, row.output] for row in rows)
    part.replace(path)
