"""How a fine scan becomes a coarse one: kernels in micrometers, sampling, noise, and the range a method expects."""

from __future__ import annotations
