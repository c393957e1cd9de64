"""``python -m party_b`` is ``party-b``."""

from party_b.launch import main

main()
