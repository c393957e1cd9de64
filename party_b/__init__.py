"""Party B: its settings and its launcher."""
