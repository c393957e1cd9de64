"""``party-a``: the fedlearn command tree with this party's own file as the default."""

import os
from pathlib import Path


def main() -> None:
    """Run fedlearn as party A; ``--party`` still chooses another file."""
    os.environ.setdefault("FEDLEARN_PARTY", str(Path(__file__).with_name("party.toml")))
    from fedlearn.cli.main import main as fedlearn

    fedlearn()


if __name__ == "__main__":
    main()
