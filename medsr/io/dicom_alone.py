"""One decoder of pydicom on one frame, alone in a process: a crash of the decoder stops nothing else."""

from __future__ import annotations

import json
import os
import sys
import warnings


def main() -> int:
    """Read a line of JSON (plugin, syntax, dtype, options) and an encapsulated frame from standard input, write the
    samples to standard output; the reason of a failure is the last line of standard error."""
    # What a decoder prints must not end up among the samples.
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        warnings.simplefilter("ignore")
        task = json.loads(sys.stdin.buffer.readline())
        source = sys.stdin.buffer.read()
        from pydicom.pixels.decoders.base import get_decoder

        try:
            values = get_decoder(task["syntax"]).as_array(
                source, index=0, raw=True, validate=False, decoding_plugin=task["plugin"], **task["options"]
            )[0]
        except Exception as error:  # noqa: BLE001  (whatever a decoder raises is the reason that the caller reports)
            lines = str(error).strip().splitlines() or [type(error).__name__]
            sys.stderr.write(f"\n{lines[-1].strip()}\n")
            return 1
        out.write(values.astype(task["dtype"]).tobytes())
    return 0


if __name__ == "__main__":
    sys.exit(main())
