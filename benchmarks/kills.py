"""Kill a run again and again at random moments; the bytes must be those of an undisturbed one.

    python benchmarks/kills.py [--kills 50] [--workers 1] [--seed 0] [--tear 0.02]
                               [--plant none|trust-existence|early-record]

One run of `medsr upscale` on a real stack is killed (SIGKILL to it and its workers), started again with the same
command, killed again, and at last left alone; at each kill some of the shards on the disk are damaged, as a power cut
damages what was not flushed. Printed are how far each life came, and whether every file equals that of an undisturbed
run. Exit code 1 if one does not.

`--plant` puts a fault into the run, to see this script catch it: "early-record" commits a shard before it is written,
"trust-existence" takes a shard for done because it is recorded and there, whatever its bytes are.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

RUN = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
torch.manual_seed(0)
import medsr
plant = sys.argv[4]
if plant == "early-record":
    from medsr import batch
    import medsr.streaming as streaming
    from medsr.io import omezarr
    import hashlib
    def write_shard(target, level, index, data):
        encoded = omezarr.encode_shard(level, data)
        import threading
        threading.Timer(0.3, target.put, (omezarr.shard_key(level, index), encoded)).start()
        return hashlib.blake2b(encoded, digest_size=16).hexdigest()
    whole, omezarr.write_shard = omezarr.write_shard, write_shard
if plant in ("trust-existence", "early-record"):
    from medsr import progress
    progress.FolderProgress.verified = lambda self, levels, tasks: {t for t in tasks if t in self._done}
network = medsr.SRResNet((2, 2), features=8, blocks=2)
report = medsr.upscale_folder(
    Path(sys.argv[1]), network, out=Path(sys.argv[2]), workers=int(sys.argv[3]), engine="torch",
    options=medsr.OutputOptions(chunk=(1, 64, 64), shard=(1, 128, 128)),
)
sys.exit(report.exit_code)
"""


def start(scan: Path, out: Path, workers: int, plant: str) -> subprocess.Popen[bytes]:
    """A run in a process group of its own."""
    command = [sys.executable, "-W", "ignore", "-c", RUN, str(scan), str(out), str(workers), plant]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, start_new_session=True)


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the run and all its workers."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def records(out: Path) -> list[str]:
    """The shards committed so far."""
    found: list[str] = []
    for file in out.glob("*.part/medsr-progress*.jsonl"):
        with suppress(FileNotFoundError):  # the folder got its final name meanwhile
            found += [line for line in file.read_text().splitlines() if line.startswith("{")]
    return found


def tear(out: Path, chance: random.Random, share: float) -> None:
    """What a power cut does to files that were not flushed: half of one is gone, or other bytes are in its place."""
    files = [file for file in sorted(out.glob("*.part/*/c/**/*")) if file.is_file() and file.name.isdecimal()]
    for file in files:
        if chance.random() < share:
            other = chance.choice(files).read_bytes()
            file.write_bytes(other if chance.random() < 0.5 else other[: len(other) // 2])


def tree(root: Path) -> dict[str, bytes]:
    """Every file of a result."""
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def differences(calm: Path, killed: Path) -> list[str]:
    """Files of the two results that are not equal."""
    results = [sorted(out.glob("*.ome.zarr")) for out in (calm, killed)]
    if [len(found) for found in results] != [1, 1]:
        return ["no result: the run has failed"]
    first, second = (tree(found[0]) for found in results)
    return sorted(key for key in first.keys() | second.keys() if first.get(key) != second.get(key))


def main() -> int:
    """Kill, start again, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tear", type=float, default=0.02, help="share of the shards that each kill damages, too")
    parser.add_argument("--plant", choices=["none", "trust-existence", "early-record"], default="none")
    parser.add_argument("--scan", type=Path, help="a TIFF or DICOM; the shipped stack of nuclei if not given")
    arguments = parser.parse_args()
    import medsr

    scan = arguments.scan or medsr.NUCLEI
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        calm, out = Path(folder) / "calm", Path(folder) / "killed"
        begun = time.monotonic()
        if start(scan, calm, arguments.workers, "none").wait():
            print("the undisturbed run failed")
            return 1
        whole = time.monotonic() - begun
        shards = sum("/c/" in key for key in tree(calm))
        lives, anew = [], 0
        for number in range(arguments.kills):
            before = len(records(out))
            process = start(scan, out, arguments.workers, arguments.plant)
            # One kill in four falls into the start of the process, the others into its work or its end.
            at_work = chance.random() > 0.25
            wanted = before + chance.randrange(2 + 3 * shards // arguments.kills) if at_work else shards
            deadline = time.monotonic() + (whole + 60 if at_work else chance.uniform(0, whole / 2))
            while time.monotonic() < deadline and process.poll() is None and len(records(out)) < wanted:
                time.sleep(0.002)
            time.sleep(chance.uniform(0, 0.1))
            ended = process.poll() is not None
            kill(process)
            lives.append(max(0, len(records(out)) - before))
            print(f"kill {number + 1}: {len(records(out))} of {shards} shards recorded", flush=True)
            tear(out, chance, arguments.tear)
            if ended and (found := differences(calm, out)):
                print(f"FAULT after {number + 1} kills, {len(found)} differences: {', '.join(found[:3])}")
                return 1
            if ended:  # begun anew, so that every kill hits a run that is at work
                shutil.rmtree(out)
                anew += 1
        if start(scan, out, arguments.workers, arguments.plant).wait():
            print("FAULT: the last run failed")
            return 1
        found = differences(calm, out)
        left = [p.name for p in out.iterdir() if p.name.endswith(".part")]
        print(
            f"{shards} shards, {arguments.workers} workers, begun anew {anew} times; new records in each life: {lives}"
        )
        if found or left:
            print(f"FAULT, {len(found)} differences: {', '.join(found[:5])}; left over: {left}")
            return 1
        print(f"{arguments.kills} kills: every file equals that of the undisturbed run")
        return 0


if __name__ == "__main__":
    sys.exit(main())
