"""Measures attention against installed peers, all in one interleaved run."""
