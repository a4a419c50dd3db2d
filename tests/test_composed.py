"""Upscalers made of others, and such that must know where a tile lies, are tiled, planned and run by every engine."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from medsr.engines import REFERENCE, EngineChoice, build_engine, choose_engine
from medsr.methods import Cubic
from medsr.plan import plan
from medsr.scan import Grid, Intensity, Scan
from medsr.upscaler import Composed, Placed, describe, has_stages
from medsr.upscaling import upscale
from tests.methods_asked import mammogram, network

CPU = torch.device("cpu")


class Mean(nn.Module):
    """The mean of some upscalers."""

    def __init__(self, *parts):
        super().__init__()
        self.parts = parts
        self.networks = nn.ModuleList(part for part in parts if isinstance(part, nn.Module))
        self.factor = parts[0].factor
        self.halo = tuple(map(max, zip(*(part.halo for part in parts), strict=True)))

    def __repr__(self):
        return f"Mean({', '.join(map(describe, self.parts))})"

    def adapt(self, scan):
        return type(self)(*(part.adapt(scan) for part in self.parts))

    def around(self, low, runs):
        return torch.stack([run(low) for run in runs]).mean(0)

    def forward(self, low):
        return self.around(low, self.parts)


class Where(Cubic):
    """Adds to a cubic interpolation where its samples lie: y plus a thousandth of the plane."""

    def at(self, origin):
        def run(low):
            rows = torch.arange(low.shape[-2]) + origin[-2]
            lead = sum(origin[:-2]) * 1e-3
            return super(Where, self).__call__(low) + 1e-3 * rows.repeat_interleave(2)[:, None] + lead

        return run

    def __call__(self, low):
        return self.at((0,) * (low.ndim - 2))(low)


def scan_of(stored):
    axes = ("z", "y", "x")[-stored.ndim :]
    intensity = Intensity(0.0, 1.0, np.dtype(np.float32))
    return Scan(stored, Grid(axes, (1.0,) * stored.ndim, (0.0,) * stored.ndim), intensity)


def test_parts_are_recognized():
    mean = Mean(network("srresnet-2", 0), Cubic((2, 2)))
    assert isinstance(mean, Composed)
    assert has_stages(mean)
    assert not has_stages(Mean(Cubic((2, 2))))
    assert not isinstance(Cubic((2, 2)), Placed)
    assert isinstance(Where((2, 2)), Placed)


@pytest.mark.parametrize("name", ["torch", "compiled", "openvino"])
def test_each_part_is_run_by_the_engine_that_suits_it(name):
    if name == "openvino":
        pytest.importorskip("openvino")
    mean = Mean(network("srresnet-2", 12), Cubic((2, 2)))
    low = mammogram()[..., :40, :44]
    run = build_engine(mean, EngineChoice(name, "float32", 0.0, math.inf), device=CPU)
    with torch.inference_mode():
        expected = mean(low)
    keep = (slice(20, 60), slice(0, 70))
    found = run(low, keep)
    assert found.shape == (1, 1, 40, 70)
    assert float((found - expected[(..., *keep)]).abs().max()) < 1e-5


def test_an_engine_is_chosen_for_the_parts():
    pytest.importorskip("openvino")
    mean = Mean(network("srresnet-2", 12), Cubic((2, 2)))
    scan = scan_of(mammogram()[0, 0].numpy())
    assert choose_engine(scan, mean, engine="openvino").name == "openvino"
    assert choose_engine(scan, Mean(Cubic((2, 2)))) == REFERENCE


def test_the_plan_counts_what_lies_around_the_parts():
    scan = scan_of(mammogram()[0, 0].numpy())
    part = network("srresnet-2", 0)
    choice = EngineChoice("compiled", "float32", 0.0, math.inf)
    alone, mean = (plan(scan, each, engine=choice, tile=(64, 64)) for each in (part, Mean(part, part)))
    assert mean.bytes_per_tile > alone.bytes_per_tile
    assert mean.strip == alone.strip


def test_a_tile_knows_where_it_lies():
    stored = np.zeros((3, 40, 30), np.float32)
    scan = scan_of(stored)
    expected = 1e-3 * np.repeat(np.arange(40), 2)[:, None] + 1e-3 * np.arange(3)[:, None, None]
    for tile in ((7, 11), (40, 30)):
        for upscaler in (Where((2, 2)), Mean(Where((2, 2)), Where((2, 2)))):
            found = upscale(scan, upscaler, tile=tile).data
            assert np.allclose(found, np.broadcast_to(expected, found.shape), atol=1e-6), (tile, upscaler)


def test_an_estimate_of_another_size_is_named():
    class Wrong(Mean):
        def around(self, low, runs):
            return super().around(low, runs)[..., :-1]

    scan = scan_of(np.zeros((8, 8), np.float32))
    with pytest.raises(ValueError, match="expected an estimate of shape"):
        upscale(scan, Wrong(Cubic((2, 2))))
