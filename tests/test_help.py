"""Every command of the tree tells how it is used."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command

from fedlearn.cli.main import app, run


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


#: These print JSON in any case, or log it.
ALWAYS = {"contract schema", "contract show", "party schema", "party show", "serve"}


@pytest.mark.parametrize(("name", "command"), list(commands(get_command(app))), ids=lambda value: str(value)[:30])
def test_every_command_can_answer_in_json(name: str, command: Any) -> None:
    assert name in ALWAYS or any("--json" in option.opts for option in command.params), name


@pytest.mark.parametrize(
    "arguments", [["version"], ["keys", "authority", "ca"], ["keys", "request", "k", "--party", "b"]]
)
def test_small_commands_in_json(
    arguments: list[str], tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run([*arguments, "--json"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out), dict)
