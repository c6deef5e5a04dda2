"""The kernels, one folder per device."""
