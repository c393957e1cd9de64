"""Benchmarks: two party processes over mutual TLS on loopback, with a yardstick in the same run."""
