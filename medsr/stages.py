"""Stages: a network cut where an engine may run the parts in its own way."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

__all__ = ["Stages"]


@dataclass(frozen=True, slots=True)
class Stages:
    """A network cut where an engine may run the parts in its own way and precision.

    `last(rise(body(entry(low)))) + base(low)` is what the network makes of `low`, up to rounding. Whatever the sizes of
    a part's input, a sample of its output depends on its neighborhood only, so each part can be given less than the
    whole. The parts are frozen copies: later training does not reach them.

    Attributes:
        entry: float32, reads the stored levels: (n, 1, *size) -> (n, c, *size).
        body: any precision: (n, c, *size) -> (n, c, *size).
        rise: any precision, all of the upsampling but the last shuffle: (n, c, *size) -> (n, w, *finer).
        last: float32, the last convolution and shuffle: (n, w, *finer) -> (n, 1, *size * factor).
        base: float32, what is added to the output of `last` (an interpolation): (n, 1, *size) -> (n, 1, *size *
            factor); None: nothing.
        rise_halo: context in coarse samples that rise, last and base need together; the others need the rest of `halo`.
    """

    entry: nn.Module
    body: nn.Module
    rise: nn.Module
    last: nn.Module
    base: nn.Module | None
    rise_halo: tuple[int, ...]
