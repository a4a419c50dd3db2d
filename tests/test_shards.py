"""Agenda, Share: every shard once, each after what it is made of, shares that cover the whole."""

import random

import pytest

from medsr.io.omezarr import plan_levels, shard_region
from medsr.scan import Axis, Grid
from medsr.shards import Agenda, Share, Task, all_tasks

PYRAMIDS = [
    ((700, 900), ("y", "x"), (32, 32), (64, 128)),
    ((20, 300, 400), ("z", "y", "x"), (4, 32, 32), (8, 64, 64)),
    ((3, 65, 65), ("c", "y", "x"), (32, 32), (32, 32)),
    ((33, 33), ("y", "x"), None, None),
]


def pyramid(shape: tuple[int, ...], axes: tuple[Axis, ...], chunk: object, shard: object) -> tuple:
    return plan_levels(shape, Grid(axes, (1.0,) * len(axes)), chunk=chunk, shard=shard)  # type: ignore[arg-type]


def worked_off(agenda: Agenda, levels: tuple, done: set[Task]) -> list[Task]:
    """Take and complete in random order, several at a time; checks that what a shard averages is there before."""
    chance, flying, order = random.Random(1), [], []
    while agenda.left:
        while len(flying) < 5 and (task := agenda.take()) is not None:
            flying.append(task)
            if task.level:
                fine = shard_region(levels[task.level], task.index)
                step, below = levels[task.level].step, levels[task.level - 1]
                corner = tuple(
                    min((s.stop - 1) * f, n - 1) // size
                    for s, f, n, size in zip(fine, step, below.shape, below.shard, strict=True)
                )
                assert Task(task.level - 1, corner) in done
        assert flying, "nothing is ready although something is left"
        task = flying.pop(chance.randrange(len(flying)))
        if chance.random() < 0.1:
            agenda.give_back(task)
            continue
        assert task not in done
        done.add(task)
        order.append(task)
        agenda.complete(task)
    return order


@pytest.mark.parametrize("case", PYRAMIDS)
@pytest.mark.parametrize("parts", [1, 2, 5, 40])
def test_shares_cover_every_shard_once(case: tuple, parts: int) -> None:
    levels = pyramid(*case)
    done: set[Task] = set()
    for number in range(1, parts + 1):
        share = Share(number, parts)
        agenda = Agenda(levels, mine=lambda place, count, share=share: share.owns(place, count, "scan"))
        assert len(worked_off(agenda, levels, done)) == agenda.total
    assert {t for t in all_tasks(levels) if t.level == 0} <= done
    rest = Agenda(levels, done=done)
    assert rest.finest_left == 0
    worked_off(rest, levels, done)
    assert done == set(all_tasks(levels))


def test_most_of_a_pyramid_is_built_inside_the_shares() -> None:
    levels = pyramid((8192, 8192), ("y", "x"), (64, 64), (256, 256))
    shares = [Share(number, 4) for number in range(1, 5)]
    inside = sum(
        Agenda(levels, mine=lambda place, count, share=share: share.owns(place, count, "a")).total for share in shares
    )
    assert inside > 0.97 * len(list(all_tasks(levels)))


def test_small_scans_are_spread_by_name() -> None:
    owners = [next(n for n in range(1, 9) if Share(n, 8).owns(0, 2, f"scan-{i}")) for i in range(200)]
    assert len(set(owners)) == 8
    assert all(Share(n, 8).owns(0, 2, "a") == Share(n, 8).owns(1, 2, "a") for n in range(1, 9))


@pytest.mark.parametrize(("number", "parts"), [(0, 4), (5, 4), (1, 0)])
def test_a_share_outside_its_parts_is_refused(number: int, parts: int) -> None:
    with pytest.raises(ValueError, match="i from 1 to n"):
        Share(number, parts)
