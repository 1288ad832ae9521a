"""Benchmarks, run by `make bench-*`; their arithmetic is tested, their times never are."""
