"""Finer mammograms from a folder: train on it or take a run, upscale every scan, measure, say how it went.

    python pipelines/mammo_batch.py SCANS OUT                          trains on SCANS with configs/mammo.yaml
    python pipelines/mammo_batch.py SCANS OUT --run runs/mammo         takes a trained run
    python pipelines/mammo_batch.py SCANS OUT --set training.pixel_steps=500 --set training.adversarial_steps=0

Writes OUT/run (if it trains), OUT/finer/<name>.ome.zarr with batch.csv, and OUT/scores with scores.csv and a picture
for each scan. The same command goes on where it was stopped. Exit code 0: all done; 1: some scan failed and is named;
2: a mistake in the command or the config. For research, not for diagnosis.
"""

import argparse
import json
import sys
from pathlib import Path

import medsr


def main(argv: list[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", type=Path, help="folder of mammograms")
    parser.add_argument("out", type=Path, help="folder of everything this job writes")
    parser.add_argument("--run", type=Path, help="a trained run, instead of training")
    parser.add_argument("--config", type=Path, default=Path("configs/mammo.yaml"), help="how to train")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting that wins over it")
    parser.add_argument("--workers", type=int, default=1, help="processes that upscale")
    given = parser.parse_args(argv)
    try:
        run = given.run
        if run is None:
            settings = [f"data.folder={json.dumps(str(given.scans))}", *given.set]
            recipe = medsr.load_config(given.config, medsr.Recipe, settings)
            run = medsr.train(recipe, out=given.out / "run", resume=True)
        upscaler = medsr.load_upscaler(run)
        batch = medsr.upscale_folder(
            given.scans,
            upscaler,
            out=given.out / "finer",
            workers=given.workers,
            check=lambda scan: medsr.check_scan(upscaler.card, scan),
            note=print,
        )
        degradation = upscaler.recipe.degradation
        scores = medsr.evaluate(given.scans, upscaler, out=given.out / "scores", degradation=degradation, note=print)
    except ValueError as error:  # what medsr says of a mistake names the file and the cure
        print(error, file=sys.stderr)
        return 2
    print("\nmeans over the scans, on tissue only:")
    for row in scores.summary():
        print(f"  {row['method']:10} PSNR {row['psnr_foreground_db']:.2f} dB  SSIM {row['ssim_foreground']:.3f}")
    print(f"results: {given.out / 'finer'}   scores and pictures: {given.out / 'scores'}")
    return max(batch.exit_code, scores.exit_code)


if __name__ == "__main__":
    sys.exit(main())
