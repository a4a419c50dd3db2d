"""Upscaler: the contract every method obeys, and how one is named."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from medsr.scan import Factor, Scan
from medsr.stages import Stages

__all__ = [
    "Composed",
    "Learned",
    "Placed",
    "Reserves",
    "Run",
    "Several",
    "Staged",
    "Trained",
    "Upscaler",
    "checkpoints_of",
    "describe",
    "fingerprint",
    "has_stages",
    "learned_from",
    "makers_of",
    "reserved_bytes",
]

Run = Callable[[Tensor], Tensor]
"""How an upscaler is run: (n, 1, *size) to (n, 1, *size * factor), float32, unit intensity."""


@runtime_checkable
class Upscaler(Protocol):
    """What every method is: a coarse tensor in, a fine one out.

    Attributes:
        factor: refinement of the last axes; its length says whether the method is 2D or 3D.
        halo: context in coarse samples on each side, for each axis of `factor`, beyond which nothing matters.
    """

    @property
    def factor(self) -> Factor:
        """Refinement of the last axes."""
        ...

    @property
    def halo(self) -> tuple[int, ...]:
        """Context in coarse samples for each axis of `factor`."""
        ...

    def adapt(self, scan: Scan) -> Upscaler:
        """The upscaler for this scan, told what the whole scan tells (its blur, its exemplars); mostly itself."""
        ...

    def __call__(self, low: Tensor, /) -> Tensor:
        """(n, 1, *size) -> (n, 1, *size * factor), float32, unit intensity."""
        ...


@runtime_checkable
class Staged(Upscaler, Protocol):
    """An Upscaler whose network can be cut into stages."""

    def stages(self, *, edges: bool = True) -> Stages:
        """The network as it is now, in float32, on the device it is on.

        Args:
            edges: True: equal everywhere. False: cheaper, and equal only where a result's whole `halo` is given; the
                body may then leave out, alike at either end of an axis, samples that cannot be right.
        """
        ...


@runtime_checkable
class Placed(Upscaler, Protocol):
    """An Upscaler that must know where in its scan a tile lies, as one that takes detail from a registered exemplar."""

    def at(self, origin: tuple[int, ...]) -> Run:
        """The upscaler for one tile of the scan it was adapted to.

        Args:
            origin: of the tile's first sample, halo included, in coarse samples along every axis of the scan.
        """
        ...


@runtime_checkable
class Composed(Upscaler, Protocol):
    """An Upscaler made of others, each of which an engine may run in its own way.

    Attributes:
        parts: the others, adapted as this one is.
    """

    @property
    def parts(self) -> tuple[Upscaler, ...]:
        """The upscalers it is made of."""
        ...

    def around(self, low: Tensor, runs: Sequence[Run]) -> Tensor:
        """What it makes of a tile.

        Args:
            low: (n, 1, *size), float32, unit intensity.
            runs: how each of `parts` is run, in their order.

        Returns:
            (n, 1, *size * factor), float32.
        """
        ...


@runtime_checkable
class Several(Upscaler, Protocol):
    """An Upscaler that makes several images of a scan at once, as an estimate with the ends of its intervals.

    It returns (n, len(images), *size * factor), and so does its `around` where it is `Composed`.

    Attributes:
        images: their names. The first is "", the result itself; each other one is kept inside it under its name.
    """

    @property
    def images(self) -> tuple[str, ...]:
        """Names of the images."""
        ...

    def alone(self) -> tuple[Upscaler, ...]:
        """For each image what makes the same one alone, adapted as this one is: by it the image is described."""
        ...

    def attributes(self, image: str) -> dict[str, Any]:
        """What is kept of an image beside its history; plain JSON."""
        ...


@runtime_checkable
class Trained(Upscaler, Protocol):
    """An Upscaler whose weights come from a checkpoint.

    Attributes:
        weights_sha256: of the weights.
    """

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights."""
        ...


@runtime_checkable
class Learned(Upscaler, Protocol):
    """An Upscaler that holds scans or has learned from them, as one with a library of exemplars.

    Attributes:
        learned_from: SHA-256 of their files, as `medsr.io.digest.input_digest` gives it.
    """

    @property
    def learned_from(self) -> frozenset[str]:
        """SHA-256 of the files of each scan."""
        ...


@runtime_checkable
class Reserves(Upscaler, Protocol):
    """An Upscaler that holds memory beside its tiles, which a probe on a small image does not see.

    Attributes:
        reserved_bytes: what `adapt` and the work done once for a scan or a plane hold, at most.
    """

    @property
    def reserved_bytes(self) -> int:
        """Bytes, at most."""
        ...


def makers_of(upscaler: Upscaler) -> dict[str, Upscaler]:
    """What makes each image of a method alone, by the image's name; of most there is one, "", made by itself."""
    if isinstance(upscaler, Several):
        return dict(zip(upscaler.images, upscaler.alone(), strict=True))
    return {"": upscaler}


def learned_from(upscaler: Upscaler) -> frozenset[str]:
    """SHA-256 of the inputs that a method and its parts say they have learned from; a checkpoint's are in its card."""
    own = upscaler.learned_from if isinstance(upscaler, Learned) else frozenset()
    parts = upscaler.parts if isinstance(upscaler, Composed) else ()
    return own.union(*map(learned_from, parts))


def reserved_bytes(upscaler: Upscaler) -> int:
    """Memory that a method and its parts hold beside their tiles."""
    own = upscaler.reserved_bytes if isinstance(upscaler, Reserves) else 0
    return own + sum(map(reserved_bytes, upscaler.parts if isinstance(upscaler, Composed) else ()))


def checkpoints_of(upscaler: Upscaler) -> tuple[str, ...]:
    """SHA-256 of the weights of every checkpoint in a method, in the order of its parts; (): it has none."""
    if isinstance(upscaler, Trained):
        return (upscaler.weights_sha256,)
    if isinstance(upscaler, Composed):
        return tuple(dict.fromkeys(found for part in upscaler.parts for found in checkpoints_of(part)))
    return ()


def has_stages(upscaler: Upscaler) -> bool:
    """Whether an engine can run it, or something it is made of, in another way than as it stands."""
    if isinstance(upscaler, Composed):
        return any(map(has_stages, upscaler.parts))
    return isinstance(upscaler, Staged)


ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
"""Where an object lies in memory, which says nothing of what it is."""


def describe(upscaler: Upscaler) -> str:
    """One line that names a method, for histories and tables."""
    if type(upscaler).__repr__ is object.__repr__:
        return type(upscaler).__name__
    return repr(upscaler).splitlines()[0].rstrip("( ")


def fingerprint(upscaler: Upscaler) -> str:
    """SHA-256 of what decides an upscaler's numbers: its whole repr and, for a network, every weight."""
    with np.printoptions(threshold=sys.maxsize, floatmode="unique"):
        whole = ADDRESS.sub("", repr(upscaler))
    digest = hashlib.sha256(f"{describe(upscaler)} {whole} {upscaler.factor} {upscaler.halo}".encode())
    if isinstance(upscaler, nn.Module):
        for name, value in upscaler.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
