"""Readers: read_scan and find_scans; READERS is a plain tuple."""

from medsr.io.source import Reader, Source

__all__ = ["Reader", "Source"]
