"""Encryption schemes and oblivious primitives: plain functions over flat arrays; no I/O, no roles, no channel."""
