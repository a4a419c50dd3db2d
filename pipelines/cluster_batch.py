"""Upscale a folder on a cluster: SLURM nodes, the GPUs of one machine, or processes of this one.

    python pipelines/cluster_batch.py SCANS OUT --run runs/mammo --on slurm --workers 16 --gpu
    python pipelines/cluster_batch.py SCANS OUT --run runs/mammo --on gpus
    python pipelines/cluster_batch.py SCANS OUT --method cubic --factor 2,2 --on here --workers 2

"slurm" asks for nodes by dask-jobqueue (pip install 'medsr[cluster]'); SCANS and OUT must be seen by all of them.
"gpus" starts a worker for each GPU by dask-cuda (pip install dask-cuda). "here" needs neither. A worker that is killed
costs the shards it was at; the same command goes on where it was stopped. Without Dask, a SLURM array does it with
`medsr upscale ... --part $((SLURM_ARRAY_TASK_ID + 1))/$SLURM_ARRAY_TASK_COUNT`.
"""

import argparse
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import medsr


def cluster(given: argparse.Namespace) -> AbstractContextManager[Any]:
    """The Dask cluster that was asked for, with its workers on the way."""
    if given.on == "slurm":
        from dask_jobqueue import SLURMCluster

        # One process a job: medsr uses the job's cores itself, and a job that is killed takes one worker with it.
        jobs = SLURMCluster(
            cores=given.cores,
            processes=1,
            memory=f"{given.gigabytes:g}GB",
            walltime=given.walltime,
            job_extra_directives=["--gres=gpu:1"] if given.gpu else [],
        )
        jobs.scale(given.workers)
        return jobs
    if given.on == "gpus":
        from dask_cuda import LocalCUDACluster

        return LocalCUDACluster()
    from distributed import LocalCluster

    return LocalCluster(n_workers=given.workers, threads_per_worker=1, dashboard_address=None)


def main(argv: list[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", help="folder or URL of scans")
    parser.add_argument("out", help="folder or URL of the results")
    parser.add_argument("--run", type=Path, help="a trained run")
    parser.add_argument("--method", choices=sorted(medsr.INTERPOLATIONS), help="an interpolation instead of a run")
    parser.add_argument("--factor", default="2,2", help="of --method")
    parser.add_argument("--on", choices=["slurm", "gpus", "here"], required=True)
    parser.add_argument("--workers", type=int, default=2, help="jobs or processes")
    parser.add_argument("--cores", type=int, default=8, help="of a SLURM job")
    parser.add_argument("--gigabytes", type=float, default=4.0, help="memory of a job or process")
    parser.add_argument("--walltime", default="24:00:00", help="of a SLURM job")
    parser.add_argument("--gpu", action="store_true", help="ask SLURM for a GPU for each job")
    given = parser.parse_args(argv)
    if given.run is None and given.method is None:
        parser.error("expected --run RUN or --method NAME")
    factor = tuple(int(f) for f in given.factor.split(","))
    upscaler = medsr.load_upscaler(given.run) if given.run else medsr.INTERPOLATIONS[given.method](factor)
    with cluster(given) as workers:
        device = "cuda" if given.on == "gpus" or given.gpu else "cpu"
        report = medsr.upscale_folder(
            given.scans,
            upscaler,
            out=given.out,
            scheduler=workers.scheduler_address,
            memory=int(given.gigabytes * 0.8e9),  # a job that exceeds what it asked for is killed
            device=device,
            note=print,
        )
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
