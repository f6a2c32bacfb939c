"""Preloaded, this is 1024 MB of small objects."""

from __future__ import annotations

import bench_heap

RECORDS = bench_heap.records(1024)
