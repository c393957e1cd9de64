"""What is shipped for deployment: plain rules on Dockerfiles, manifests and the unit; nothing is built here."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest

from fedlearn.contract import load_contract, load_party

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILES = [ROOT / party / "Dockerfile" for party in ("party_a", "party_b")]
MANIFESTS = [ROOT / "deploy/compose.yaml", *sorted((ROOT / "deploy/kubernetes").glob("*.yaml"))]


def instructions(path: Path) -> list[tuple[str, str]]:
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)
def test_dockerfiles(path: Path) -> None:
    found = instructions(path)
    words = [word for word, _ in found]
    last_stage = words[len(words) - words[::-1].index("FROM") - 1 :]
    assert {"USER", "HEALTHCHECK", "ENTRYPOINT", "STOPSIGNAL"} <= set(last_stage)
    assert "ADD" not in words
    for word, rest in found:
        if word == "FROM":
            assert re.search(r":\S*\d", rest), "an image without a pinned tag"
            assert ":latest" not in rest
        elif word == "USER":
            assert rest.split(":")[0] not in ("0", "root")
        elif word in ("CMD", "ENTRYPOINT"):
            assert rest.startswith("["), "exec form, so that SIGTERM arrives"
        elif word == "COPY" and "--from" not in rest:
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
        elif word == "RUN" and "pip install" in rest:
            assert rest.count("pip install") == rest.count("--no-cache-dir")
            assert "--require-hashes" in rest
    text = path.read_text(encoding="utf-8")
    assert path.parent.name.replace("_", "-") in text


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "\t" not in text
    assert not re.search(r"(password|token|BEGIN [A-Z ]*KEY)", text.replace("ServiceAccountToken", ""), re.I)
    for line in text.splitlines():
        assert not line.strip() or (len(line) - len(line.lstrip())) % 2 == 0, line
    if path.parent.name == "kubernetes":
        for rule in ("runAsNonRoot: true", "readOnlyRootFilesystem: true", "allowPrivilegeEscalation: false",
                     "path: /readyz", "path: /healthz", "replicas: 1"):  # fmt: skip
            assert rule in text
    else:
        for source in re.findall(r"dockerfile: (\S+)", text):
            assert (ROOT / source).exists()
        assert text.count("read_only: true") == text.count("no-new-privileges:true") == 2


def test_unit() -> None:
    parsed = configparser.ConfigParser(strict=True, interpolation=None)
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read(ROOT / "deploy/fedlearn-serve@.service")
    service = parsed["Service"]
    assert service["ExecStart"].split()[1:3] == ["serve", "--party"]
    assert service["Restart"] == "always"
    assert service["User"] != "root"


def test_the_party_files_that_are_shipped_can_serve() -> None:
    contract = load_contract(ROOT / "fedlearn/demo-contract.toml")
    a, b = (load_party(ROOT / party / "party.toml") for party in ("party_a", "party_b"))
    assert contract.serving is not None
    assert a.service is not None
    assert b.service is not None
    assert b.service.peer == a.service.listen
    assert b.service.bands[-1].up_to is None
