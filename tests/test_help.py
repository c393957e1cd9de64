"""Every command of the tree tells how it is used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command

from fedlearn.cli.main import app


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


@pytest.mark.parametrize(("name", "command"), list(commands(get_command(app))), ids=lambda value: str(value)[:30])
def test_every_command_has_an_example(name: str, command: Any) -> None:
    assert "Example: " in command.help, f"{name} --help has no example"
    assert name.rsplit(maxsplit=1)[-1] in command.help.split("Example: ")[1]
