"""Benchmarks: never timed tests. `make bench [PEER=FILE] [ARGS="end_to_end …"]`, or ARGS=--help."""
