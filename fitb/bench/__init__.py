"""Benchmarks that users run on their own machine: medians with their spread, taken in turn."""
