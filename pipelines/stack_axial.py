"""One microscopy stack with finer planes: from a file to OME-Zarr, and its spacing before and after.

    python pipelines/stack_axial.py STACK OUT --axial 2                  cubic, twice as many planes
    python pipelines/stack_axial.py STACK OUT --axial 2 --lateral 2      and twice as fine in the plane
    python pipelines/stack_axial.py STACK OUT --run runs/axial           a network trained with factor [2, 1, 1]

Writes OUT/<name>.ome.zarr. Without --axial and --run the planes are refined until voxels are about cubic. Exit code 0:
done; 1: the stack could not be written, with the reason; 2: a mistake in the command.
"""

import argparse
import sys
from pathlib import Path

import medsr


def main(argv: list[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stack", type=Path, help="TIFF, OME-TIFF, OME-Zarr, DICOM series or a folder of planes")
    parser.add_argument("out", type=Path, help="folder of the result")
    parser.add_argument("--axial", type=int, help="how much finer along z")
    parser.add_argument("--lateral", type=int, default=1, help="how much finer along y and x")
    parser.add_argument("--run", type=Path, help="a trained 3D run, instead of cubic interpolation")
    parser.add_argument("--memory", type=float, default=2.0, help="gigabytes to use at most")
    given = parser.parse_args(argv)
    try:
        scan = medsr.read_scan(given.stack)
        if given.run:
            upscaler = medsr.load_upscaler(given.run)
        else:
            axial = given.axial or factor_to_cubic(scan.grid, lateral=given.lateral)
            upscaler = medsr.Cubic((axial, given.lateral, given.lateral))
        report = medsr.upscale_folder(given.stack, upscaler, out=given.out, memory=int(given.memory * 1e9), note=print)
    except ValueError as error:  # what medsr says of a mistake names the file and the cure
        print(error, file=sys.stderr)
        return 2
    if report.exit_code == 0:
        finer = medsr.read_scan(report.rows[0].output)
        show("before", scan)
        show("after", finer)
        print(f"result: {report.rows[0].output}")
    return report.exit_code


def factor_to_cubic(grid: medsr.Grid, *, lateral: int) -> int:
    """The axial factor that brings voxels nearest to cubes.

    Raises:
        ValueError: the spacing along z or in the plane is unknown, or voxels are about cubic already.
    """
    z, y = grid.spacing_of("z"), grid.spacing_of("y")
    if z is None or y is None:
        raise ValueError("the spacing along z or y is unknown; say how much finer the planes shall be with --axial")
    axial = round(z / (y / lateral))
    if max(axial, lateral) < 2:
        raise ValueError(f"voxels are about cubic already ({z:g} x {y:g} um); say how much finer with --axial")
    return max(1, axial)


def show(when: str, scan: medsr.Scan) -> None:
    """Print shape and spacing of a scan."""
    spacing = scan.grid.spacing_um or ("unknown",) * len(scan.shape)
    print(f"{when:7} shape {scan.shape}  spacing {spacing} um  axes {''.join(scan.grid.axes)}")


if __name__ == "__main__":
    sys.exit(main())
