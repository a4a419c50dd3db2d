"""upscale_folder: scans in, OME-Zarr out; resumable; one bad file stops nothing."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

from medsr.closing import closing_words
from medsr.engines import EngineName
from medsr.header import GROUP, JobChangedError, changes, drop_leftovers, read_header
from medsr.io import NoImageError, Source, find_all, omezarr
from medsr.io.places import Folder, Place, place
from medsr.io.pseudonyms import Pseudonyms, unnamed
from medsr.job import Check, OutputOptions, Prepared, Setting, cache_bytes, documents, prepare, shard_job
from medsr.locks import TakenError
from medsr.plan import BASE_BYTES, default_memory, torch_device
from medsr.progress import Progress, open_progress
from medsr.rows import BatchLog, BatchReport, BatchRow
from medsr.shards import Agenda, Share, all_tasks
from medsr.upscaler import Upscaler, describe
from medsr.workers import Crew, Here, Processes

__all__ = ["upscale_folder"]

SMALLEST = BASE_BYTES + 50_000_000
"""Least memory of a process: the interpreter with its libraries, and something to work in."""

PARENT_BYTES = 600_000_000
"""What the process holds that leads several workers (measured: 440 MB; while it compares a result and its scan 560)."""

Note = Callable[[str], None]
Tick = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class _Batch:
    """One call: what is the same for every scan of it."""

    setting: Setting
    out: Place
    share: Share
    crew: Crew
    dry_run: bool
    overwrite: bool
    named: frozenset[Path]
    note: Note
    tick: Tick


def upscale_folder(
    paths: Path | str | Sequence[Path | str],
    upscaler: Upscaler,
    *,
    out: Path | str,
    options: OutputOptions | None = None,
    memory: int | None = None,
    workers: int = 1,
    device: str = "auto",
    engine: EngineName = "auto",
    tolerance: float | None = None,
    part: Share | None = None,
    scheduler: str | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    check: Check | None = None,
    pseudonyms: Pseudonyms | None = None,
    note: Note | None = None,
    tick: Tick | None = None,
) -> BatchReport:
    """Upscale every scan of files and folders to `out/<name>.ome.zarr`.

    A result is written under `<name>.ome.zarr.part` and renamed when complete; in an object store it is in its final
    place from the start and becomes a group when complete. A batch that was stopped, however, goes on with the same
    call: complete results are skipped, the shards of an unfinished one that are whole are kept. A scan that fails is
    named with its reason in the report and in `out/batch.jsonl`; the others are written.

    Args:
        paths: files, folders, and URLs of object stores ("s3://bucket/scans").
        upscaler: the method, a value such as `Cubic((2, 2))` or `load_upscaler(run)`.
        out: folder or URL of the results, made if absent.
        options: how to read and store; None: the defaults.
        memory: bytes the processes of this machine may hold in all (`plan`), with a scheduler those of each of its
            workers; None: `default_memory(workers)`.
        workers: processes that fill shards, one for each GPU where there are several.
        device: "auto", "cpu", "cuda", "cuda:N".
        engine: how a network is run, see `choose_engine`: "auto", "torch" (the reference), "compiled", "openvino".
        tolerance: largest deviation from the reference in gray levels; None: a thousandth of a scan's used range.
        part: do only this share of the work, beside other calls on the same `out` that do the others.
        scheduler: address of a running Dask cluster that fills the shards, instead of this machine; its workers must
            see the same paths.
        dry_run: plan and report only, write nothing.
        overwrite: replace results and unfinished work that came from other inputs or options.
        check: asked for doubts about a scan before the work (a checkpoint's range); its lines become warnings.
        pseudonyms: names of the results, rows and lines, in which no file's name or path stands; None: the files'.
        note: receives a line for each event worth a user's eye.
        tick: receives (scan, shards done, shards in all).

    Raises:
        ScanError: no scan was found.
        OSError: `out` cannot be made or written, or the scheduler cannot be reached.
        ValueError: an option or device that makes no sense, too little memory for a worker, `out` is a file, or another
            batch is writing there.
    """
    if workers < 1:
        raise ValueError(f"workers: expected at least 1, found {workers}")
    if scheduler is not None and workers > 1:
        raise ValueError("workers: expected none beside a scheduler, which has its own; leave --workers out")
    if scheduler is None:
        torch_device(device)
    parent = PARENT_BYTES if workers > 1 else 0
    each = ((default_memory(workers) if memory is None else memory) - parent) // workers
    if each <= SMALLEST:
        raise ValueError(
            f"memory: expected more than {SMALLEST / 1e6:.0f} MB for each worker, found {each / 1e6:.0f} MB for each "
            f"of {workers}; raise --memory" + (" or lower --workers" if workers > 1 else "")
        )
    target = place(out)
    if isinstance(target, Folder) and target.path.exists() and not target.path.is_dir():
        raise ValueError(f"{out}: expected a folder for the results, found a file; give --out another name")
    options = options or OutputOptions()
    if pseudonyms is not None:
        pseudonyms.refuse_named(options.series)
    results = target.path if isinstance(target, Folder) else None
    find = find_all if pseudonyms is None else pseudonyms.find_all
    sources = find(paths, out=results, stack=options.stack)
    share = part or Share()
    say, count = _one_at_a_time(note), _one_at_a_time(tick)
    with ExitStack() as stack:
        log = None if dry_run else stack.enter_context(BatchLog.open(target, share))
        crew = stack.enter_context(_crew(1 if dry_run else workers, scheduler, each, dry_run=dry_run))
        setting = Setting(upscaler, options, each, crew.processes, device, engine, tolerance, check)
        named = frozenset(Path(path) for path in ([paths] if isinstance(paths, (str, Path)) else paths))
        batch = _Batch(setting, target, share, crew, dry_run, overwrite, named, say, count)
        rows: dict[int, BatchRow] = {}
        for number, row in _rows(sources, batch):
            rows[number] = row
            if log is not None:
                log.add(row)
    return BatchReport(tuple(rows[number] for number in sorted(rows)))


def _one_at_a_time(receiver: Callable[..., None] | None) -> Callable[..., None]:
    """A receiver that threads may share; silent if there is none."""
    turn = threading.Lock()

    def say(*said: Any) -> None:
        if receiver is not None:
            with turn:
                receiver(*said)

    return say


@contextmanager
def _crew(workers: int, scheduler: str | None, memory: int, *, dry_run: bool) -> Iterator[Crew]:
    if scheduler is not None and not dry_run:
        from medsr.cluster import Cluster

        with Cluster(scheduler, cache_bytes=cache_bytes(memory)) as cluster:
            yield cluster
    elif workers > 1:
        with Processes(workers, cache_bytes=cache_bytes(memory)) as processes:
            yield processes
    else:
        with Here(cache_bytes=cache_bytes(memory)) as here:
            yield here


def _rows(sources: Sequence[Source], batch: _Batch) -> Iterator[tuple[int, BatchRow]]:
    """The rows as they are done: one scan after the other, or as many at once as the crew can work on."""
    if batch.crew.at_once == 1 or len(sources) == 1 or batch.dry_run:
        for number, source in enumerate(sources):
            yield number, _guarded(source, batch)
        return
    with ThreadPoolExecutor(batch.crew.at_once, "medsr-scan") as pool:
        running = {pool.submit(_guarded, source, batch): number for number, source in enumerate(sources)}
        try:
            for done in as_completed(running):
                yield running[done], done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            batch.crew.stop()
            raise


def _guarded(source: Source, batch: _Batch) -> BatchRow:
    """One scan's row, whatever happens to it."""
    begun = time.perf_counter()
    try:
        row = _plan_row(source, batch) if batch.dry_run else _upscale_one(source, batch)
    except NoImageError as error:
        found = source.path not in batch.named  # by searching a folder, not named by the user
        row = BatchRow(source.name, "skipped" if found else "failed", 0.0, _reason(source, error, batch.out))
    except Exception as error:  # noqa: BLE001 - law 6: one bad scan stops nothing; its reason is in the row
        row = BatchRow(source.name, "failed", 0.0, _reason(source, error, batch.out))
    row = replace(row, reason=unnamed(row.reason, source))
    batch.note(f"{row.scan}: {row.status}" + (f": {row.reason}" if row.reason else ""))
    return replace(row, seconds=round(time.perf_counter() - begun, 3))


def _reason(source: Source, error: Exception, out: Place) -> str:
    text = " ".join(str(error).split()) or "no reason given"
    if isinstance(error, OSError) and error.errno is not None:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
        where = out.name if full else error.filename or source.path
        return f"{where}: {error.strerror}; mend that and give the same command again: it goes on where it stopped"
    if isinstance(error, (ValueError, MemoryError)):
        return text if source.path.name in text else f"{source.path}: {text}"
    return f"{source.path}: {type(error).__name__}: {text}"


def _plan_row(source: Source, batch: _Batch) -> BatchRow:
    work = prepare(source, batch.setting, hashed=False)
    if work is None:
        raise RuntimeError("a batch that is not shared has no share")
    _say(work, batch)
    scan, chosen = work.scan, work.chosen
    size = sum(prod(level.shape) * len(level.images) for level in work.levels) * scan.intensity.dtype.itemsize
    details = {
        "shape": scan.shape,
        "result_shape": chosen.shape,
        "dtype": str(scan.intensity.dtype),
        "tile": chosen.tile,
        "batch": chosen.batch,
        "halo": chosen.halo,
        "tiles": sum(1 for _ in chosen.tiles(scan)),
        "shard": work.levels[0].shard,
        "shards": sum(1 for _ in all_tasks(work.levels)),
        "levels": len(work.levels),
        "tile_mb": round(chosen.bytes_per_tile / 1e6, 1),
        "memory_mb": round(work.held_bytes / 1e6, 1),
        "size_mb": round(size / 1e6, 1),
        "method": describe(work.upscaler),
        "engine": str(work.engine),
    }
    reason = (
        f"{_by(scan.shape)} -> {_by(chosen.shape)}, {details['tiles']} tiles of {_by(chosen.tile)} with a halo of "
        f"{_by(chosen.halo)}, {chosen.batch} at a time, {details['shards']} shards of at most "
        f"{_by(work.levels[0].shard)}, {work.engine}, at most {details['memory_mb']} MB of memory a worker, "
        f"{details['size_mb']} MB before compression"
    )
    return BatchRow(source.name, "planned", 0.0, reason, batch.out.child(_result(source)).name, scan.warnings, details)


def _prepared(source: Source, batch: _Batch, header: dict[str, Any] | None) -> Prepared | None:
    work = batch.crew.call(partial(prepare, share=batch.share), source, batch.setting, header)
    if work is not None:
        _say(work, batch)
    return work


def _say(work: Prepared, batch: _Batch) -> None:
    for line in (*(f"warning: {warning}" for warning in work.scan.warnings), *work.notes):
        batch.note(f"{work.source.name}: {line}")


def _by(sizes: Iterable[int]) -> str:
    return " x ".join(map(str, sizes))


def _result(source: Source) -> str:
    return f"{source.name}.ome.zarr"


def _upscale_one(source: Source, batch: _Batch) -> BatchRow:
    final = batch.out.child(_result(source))
    target = batch.out.child(_result(source) + ".part") if final.is_local else final
    _refuse_to_replace_the_scan(source, final)
    work = _prepared(source, batch, read_header(target))
    if work is None:
        return BatchRow(source.name, "skipped", 0.0, f"no shard of it is of share {batch.share}", final.name)
    there = BatchRow(source.name, "skipped", 0.0, "already there", final.name, work.scan.warnings)
    if _is_there(final, work, overwrite=batch.overwrite):
        drop_leftovers(final)
        return there
    try:
        progress = open_progress(
            target,
            work.identity,
            settings=work.settings,
            documents=documents(work),
            share=batch.share,
            restart=batch.overwrite,
        )
    except (JobChangedError, TakenError):
        if _is_complete(final, work):  # by another process, in the meantime
            return there
        raise
    with progress:
        if _is_complete(final, work):
            progress.discard()
            return there
        if progress.settings != work.settings:  # another share has begun it in the meantime
            header = {"identity": work.identity, "settings": progress.settings}
            work = _prepared(source, batch, header) or work
        progress.describe(documents(work))
        waiting = _fill_share(work, progress, batch)
        if waiting:
            return BatchRow(source.name, "waiting", 0.0, waiting, final.name, work.scan.warnings)
        said = batch.crew.call(closing_words, work, progress.target)
        progress.finish(final, documents(work, said))
    _, doubts = said
    for doubt in doubts:
        batch.note(f"{source.name}: warning: {doubt}")
    details = {"engine": str(work.engine), "busy_s": batch.crew.busy}
    return BatchRow(source.name, "done", 0.0, "", final.name, (*work.scan.warnings, *doubts), details)


def _refuse_to_replace_the_scan(source: Source, final: Place) -> None:
    own = source.url.rstrip("/") if source.url else str(source.path.resolve())
    other = str(final.path.resolve()) if isinstance(final, Folder) else final.name
    if own == other or own.startswith(f"{other}/") or other.startswith(f"{own}/"):
        raise JobChangedError(f"{final.name}: the result would take the place of the scan; use another --out")


def _is_there(final: Place, work: Prepared, *, overwrite: bool) -> bool:
    """Whether the result is complete already.

    Raises:
        JobChangedError: something else has its name, or shards of it are gone, and it may not be replaced.
    """
    if _is_complete(final, work):
        return True
    stored = omezarr.stored_job(final)
    if stored is None and not (final.exists() if final.is_local else final.get(GROUP) is not None):
        return False
    if not overwrite:
        lost = stored is not None and not changes(stored, work.identity)
        found = "has lost shards since" if lost else "came from another input, method or option"
        raise JobChangedError(f"{final.name}: exists and {found}; use --overwrite or another --out")
    return False


def _is_complete(final: Place, work: Prepared) -> bool:
    """Whether the result of this very work is there with all its shards."""
    stored = omezarr.stored_job(final)
    if stored is None or changes(stored, work.identity):
        return False
    # Another memory budget may have made its shards larger or smaller.
    kept, finest = stored.get("settings", {}), work.levels[0]
    levels = omezarr.plan_levels(finest.shape, finest.grid, chunk=kept.get("chunk"), shard=kept.get("shard"))
    return omezarr.is_whole(final, [replace(level, images=finest.images) for level in levels])


def _fill_share(work: Prepared, progress: Progress, batch: _Batch) -> str:
    """Write this share's shards, and what is above the shares if it is the last; returns what it is waiting for."""
    share, name = batch.share, work.source.name

    def mine(number: int, count: int) -> bool:
        return share.owns(number, count, name)

    own = Agenda(work.levels, mine=mine)
    _fill(work, progress, own.without(progress.verified(work.levels, own.tasks)), batch)
    if share.parts == 1:
        return ""
    if not progress.alone():
        return "its share is written; another share is still being written, and the last one completes the result"
    recorded = progress.recorded()
    missing = sum(task.level == 0 and task not in recorded for task in all_tasks(work.levels))
    if missing:
        return f"its share is written; {missing} shards of other shares are not: run those too, the last completes it"
    # The others' shards count by their bytes, too; what is torn is done again here.
    whole = own.tasks | progress.verified(work.levels, recorded - own.tasks)
    _fill(work, progress, Agenda(work.levels, done=whole), batch)
    return ""


def _fill(work: Prepared, progress: Progress, agenda: Agenda, batch: _Batch) -> None:
    job = shard_job(work, batch.setting, progress.target)
    batch.tick(work.source.name, agenda.total - agenda.left, agenda.total)
    for task, digest in batch.crew.run(job, agenda, scan=work.scan, note=batch.note):
        progress.record(task, digest)
        batch.tick(work.source.name, agenda.total - agenda.left + 1, agenda.total)
