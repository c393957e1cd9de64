"""``python -m fedlearn`` is ``fedlearn``."""

from fedlearn.cli.main import main

main()
