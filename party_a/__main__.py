"""``python -m party_a`` is ``party-a``."""

from party_a.launch import main

main()
