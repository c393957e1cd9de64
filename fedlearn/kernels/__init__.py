"""Numba loops over plain arrays: no cryptography, no I/O, no roles. Every kernel releases the GIL."""
