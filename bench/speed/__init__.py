"""How fast SegmentQL is beside others that do the same work: `make bench` and `make bench-check`."""
