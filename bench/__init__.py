"""Benchmarks: what a call costs, beside what it cost before."""
