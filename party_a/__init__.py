"""Party A: its settings and its launcher."""
