"""One command tree for both parties; ``party-a`` and ``party-b`` are this tree with a default party file."""
