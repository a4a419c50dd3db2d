"""Detail from one exemplar: switched off, true, flat, and in tiles."""

import pickle

import numpy as np
import pytest
import torch

from medsr.methods import Edges, EdgesWithDetail
from medsr.scan import Grid, Intensity, Scan
from medsr.upscaler import Upscaler, describe
from tests import laws
from tests.methods_asked import mammogram, noise, real_scan


def plane(k: int, size: int = 128) -> torch.Tensor:
    return real_scan()[:, :, k, 64 : 64 + size, 64 : 64 + size]


def power_db(error: torch.Tensor) -> float:
    return -10 * float(torch.log10(error.double().square().mean()))


@pytest.fixture(scope="module")
def method() -> EdgesWithDetail:
    return EdgesWithDetail(Edges((4, 4)), plane(15)[0, 0].numpy(), strength=1.0)


def test_none_is_the_edge_prior_bit_for_bit():
    edges = Edges((4, 4))
    method = EdgesWithDetail(edges, plane(15)[0, 0].numpy(), strength=0.0)
    low = plane(10, 64)
    assert torch.equal(method(low), edges(low))
    assert method.halo == edges.halo
    layer, share = method.detail_layer(low)
    assert share == 0
    assert not layer.any()


def test_the_true_exemplar_gives_back_what_was_lost(method):
    high = plane(15)
    low = method.edges.degradation.mean(high)
    assert power_db(method(low) - high) >= power_db(method.edges(low) - high) + 2
    layer, share = method.detail_layer(low)
    torch.testing.assert_close(method.edges(low) + layer, method(low), atol=1e-6, rtol=0)
    assert 0.1 < share < 0.9
    assert float(method.edges.degradation.mean(layer).abs().max()) < 0.02 * float(layer.abs().max()) + 1e-3


def test_strength_scales_the_layer(method):
    low = method.edges.degradation.mean(plane(12))
    half = EdgesWithDetail(method.edges, plane(15)[0, 0].numpy(), strength=0.5)
    torch.testing.assert_close(2 * half.detail_layer(low).layer, method.detail_layer(low).layer, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("level", [0.0, 0.4])
def test_a_flat_exemplar_adds_nothing(level):
    method = EdgesWithDetail(Edges((4, 4)), np.full((64, 64), level, np.float32), strength=1.0)
    layer, share = method.detail_layer(mammogram()[..., :40, :40])
    assert share < 1e-12
    assert float(layer.abs().max()) < 1e-6


def test_is_an_upscaler_that_says_what_it_added(method):
    assert isinstance(method, Upscaler)
    stored = np.round(plane(8)[0, 0].numpy() * 1000).clip(0).astype(np.uint16)
    scan = Scan(stored, Grid(("y", "x")), Intensity(0, 1000, np.dtype(np.uint16)))
    adapted = method.adapt(scan)
    assert method.told == ""
    for said in ("strength=1", method.digest, "% of the gradient energy", f"threshold={adapted.edges.threshold:.9g}"):
        assert said in describe(adapted)
    other = EdgesWithDetail(method.edges, plane(16)[0, 0].numpy())
    assert other.digest != method.digest
    again = pickle.loads(pickle.dumps(adapted))
    low = plane(5, 24)
    assert torch.equal(again(low), adapted(low))


def test_tiled_equals_whole(method):
    size = tuple(2 * h + 12 for h in method.halo)
    low = mammogram()[..., : size[0], : size[1]]
    laws.tiled_equals_whole(method, low, (11, 23))
    small = EdgesWithDetail(Edges((3, 2)), plane(15)[0, 0].numpy(), strength=0.7)
    laws.tiled_equals_whole(small, mammogram()[..., :40, :48], (14, 40))


def test_a_volume_takes_detail_from_a_volume():
    exemplar = real_scan()[0, 0, :12, 100:124, 100:124]
    method = EdgesWithDetail(Edges((2, 1, 1)), exemplar.numpy(), strength=1.0)
    high = exemplar[None, None]
    low = method.edges.degradation.mean(high)
    assert power_db(method(low) - high) > power_db(method.edges(low) - high) + 1
    laws.tiled_equals_whole(method, low, (3, 24, 24))


def test_flat_fields_and_lines(method):
    laws.flat_stays_flat(method, (9, 9), tolerance=1e-6)
    low = noise(1, 1, 18, 20)
    laws.commutes_with_line(method, low, 1.0, 0.3)
    added = [float(method.detail_layer(gain * low).layer.abs().max()) for gain in (0.01, 1.0, 100.0)]
    assert added[0] < 0.1 * added[1]
    assert added[2] < 10 * added[1], "detail is not louder than twice the exemplar's"


def test_what_is_no_exemplar_is_refused():
    for wrong, said in (
        (np.zeros((4, 40, 40)), "2 axes"),
        (np.zeros((9, 40)), "at least"),
        (np.full((40, 40), np.nan), "holes"),
    ):
        with pytest.raises(ValueError, match=said):
            EdgesWithDetail(Edges((4, 4)), wrong)
    with pytest.raises(ValueError, match="strength"):
        EdgesWithDetail(Edges((4, 4)), np.zeros((40, 40)), strength=1.5)
