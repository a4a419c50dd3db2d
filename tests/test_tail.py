"""The folded tail: equal to the shuffle and the convolution it stands for, edges included."""

import math

import pytest
import torch
from torch.nn import functional

from medsr.methods.shuffle import pixel_shuffle
from medsr.methods.tail import FoldedTail, fold, with_edge_cells

CASES = [
    ((2, 2), (9, 9), (11, 13), 1),
    ((3, 3), (9, 9), (7, 5), 1),
    ((5, 2), (3, 7), (4, 9), 2),
    ((1, 2), (5, 5), (6, 7), 3),
    ((2, 2), (1, 1), (5, 4), 1),
    ((2, 3), (11, 3), (2, 1), 1),
    ((2, 2), (9, 9), (1, 1), 1),
    ((1, 2, 2), (3, 3, 3), (4, 5, 6), 1),
    ((2, 2, 2), (5, 5, 5), (3, 4, 5), 1),
    ((3, 1, 2), (9, 3, 5), (2, 1, 3), 2),
]


def naive(cells, weight, bias, stage):
    fine = pixel_shuffle(cells, stage)
    fine = functional.pad(fine, [k // 2 for k in reversed(weight.shape[2:]) for _ in range(2)], mode="replicate")
    return (functional.conv2d if fine.ndim == 4 else functional.conv3d)(fine, weight, bias)


def drawn(stage, taps, size, out, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    cells = torch.randn(2, 6 * math.prod(stage), *size, generator=generator, dtype=dtype)
    weight = torch.randn(out, 6, *taps, generator=generator, dtype=dtype) / math.sqrt(6 * math.prod(taps))
    return cells, weight, torch.randn(out, generator=generator, dtype=dtype)


@pytest.mark.parametrize(("stage", "taps", "size", "out"), CASES)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_equals_the_convolution_after_the_shuffle(stage, taps, size, out, dtype, limit):
    cells, weight, bias = drawn(stage, taps, size, out, dtype)
    expected = naive(cells, weight, bias, stage)
    tail = FoldedTail(weight, bias, stage)
    assert tail(cells).dtype == dtype
    torch.testing.assert_close(tail(cells), expected, atol=limit, rtol=0)
    torch.testing.assert_close(FoldedTail(weight, None, stage)(cells), expected - bias.reshape(-1, *[1] * len(size)),
                               atol=limit, rtol=0)  # fmt: skip


@pytest.mark.parametrize(("stage", "taps", "size", "out"), CASES)
def test_zeros_beyond_the_edges_are_felt_near_them_only(stage, taps, size, out):
    radius = [math.ceil(k // 2 / s) for k, s in zip(taps, stage, strict=True)]
    size = tuple(n + 2 * r for n, r in zip(size, radius, strict=True))
    cells, weight, bias = drawn(stage, taps, size, out)
    inside = (..., *(slice(r * s, (n - r) * s) for n, r, s in zip(size, radius, stage, strict=True)))
    found = FoldedTail(weight, bias, stage, edges=False)(cells)
    expected = naive(cells, weight, bias, stage)
    assert found.shape == expected.shape
    torch.testing.assert_close(found[inside], expected[inside], atol=1e-12, rtol=0)


def test_kernel_is_as_wide_as_the_algebra_says():
    weight = torch.randn(1, 64, 9, 9)
    assert fold(weight, (2, 2)).shape == (4, 256, 5, 5)
    assert fold(weight, (3, 3)).shape == (9, 576, 5, 5)
    assert fold(weight, (2, 2), group=(2, 2)).shape == (16, 256, 6, 6)
    assert FoldedTail(weight, None, (2, 2)).group == (1, 1)
    assert FoldedTail(weight, None, (2, 2), multiple=(2, 2)).group == (2, 1)
    assert float(fold(weight, (2, 2)).abs().sum()) == pytest.approx(4 * float(weight.abs().sum()))


@pytest.mark.parametrize("edges", [True, False])
@pytest.mark.parametrize(
    ("taps", "stage", "size", "multiple"),
    [
        ((9, 9), (2, 2), (12, 7), 2),
        ((9, 9, 9), (1, 2, 2), (12, 6, 11), 2),
        ((11, 11), (2, 2), (16, 9), 4),
        ((13, 13), (2, 2), (16, 9), 4),
    ],
)
def test_groups_are_the_same_convolution(taps, stage, size, multiple, edges):
    cells, weight, bias = drawn(stage, taps, size, 1)
    grouped = FoldedTail(weight, bias, stage, multiple=(multiple,) * len(stage), edges=edges)
    assert max(grouped.group) == 2
    alone = FoldedTail(weight, bias, stage, edges=edges)
    torch.testing.assert_close(grouped(cells), alone(cells), atol=1e-12, rtol=0)


def test_edge_cells_are_the_repeated_fine_samples():
    cells, *_ = drawn((2, 3), (3, 3), (3, 4), 1)
    fine = functional.pad(pixel_shuffle(cells, (2, 3)), (6, 6, 2, 2), mode="replicate")
    assert torch.equal(pixel_shuffle(with_edge_cells(cells, (2, 3), (1, 2)), (2, 3)), fine)
