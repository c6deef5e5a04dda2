"""Gluon kernels for Hopper: TMA, wgmma and a partition for each consumer warpgroup."""
