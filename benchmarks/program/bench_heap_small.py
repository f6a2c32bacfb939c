"""Preloaded, this is 50 MB of small objects."""

from __future__ import annotations

import bench_heap

RECORDS = bench_heap.records(50)
