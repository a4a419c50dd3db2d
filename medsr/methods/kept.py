"""Kept: results of slow work on a scan, made once in a process and never sent to another."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

__all__ = ["Kept"]

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Kept(Generic[Key, Value]):
    """The `most` latest results by their key; a pickled one arrives empty."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: OrderedDict[Key, Value] = OrderedDict()
        self._turn = threading.RLock()

    def __reduce__(self) -> tuple[type[Kept[Key, Value]], tuple[int]]:
        return Kept, (self._most,)

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """The value of a key, made by `make` where it is not there; one thread at a time."""
        with self._turn:
            if key not in self._values:
                self._values[key] = make()
            self._values.move_to_end(key)
            while len(self._values) > self._most:
                self._values.popitem(last=False)
            return self._values[key]
