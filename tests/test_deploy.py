"""What is shipped for deployment, by the linters of each kind (hadolint, Kubernetes' schemas, systemd-analyze) and by
rules of our own on top; the images are built only where a Docker engine is present."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

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


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)
def test_what_images_copy_is_enough_to_build(path: Path, tmp_path: Path) -> None:
    """The wheel, of what the build stage copies, by the back end that pip calls there."""
    for word, rest in instructions(path):
        if word == "COPY" and "--from" not in rest:
            *sources, target = rest.split()
            for source in sources:
                place = tmp_path / ("src" if target == "./" else f"src/{target}")
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    place.mkdir(exist_ok=True)
                    shutil.copy(ROOT / source, place)
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel"], check=False, capture_output=True, text=True,
        cwd=tmp_path / "src",
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    assert list((tmp_path / "src/dist").glob("fedlearn-*.whl"))


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)
def test_dockerfiles_by_hadolint(path: Path) -> None:
    program = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("there is no hadolint for this kind of machine")
    checked = subprocess.run([program, "--no-color", path], check=False, capture_output=True, text=True)
    assert (checked.returncode, checked.stdout) == (0, "")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)
@pytest.mark.timeout(1800)
def test_images_are_built(path: Path) -> None:
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "info"], check=False, capture_output=True).returncode
    ):
        pytest.skip("images are not built: there is no Docker engine")
    subprocess.run(["docker", "build", "--quiet", "--file", path, ROOT], check=True)


@pytest.mark.parametrize("path", MANIFESTS[1:], ids=lambda path: path.name)
def test_manifests_by_schema(path: Path) -> None:
    documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    assert {document["kind"] for document in documents} >= {"StatefulSet", "Service"}
    for document in documents:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_compose() -> None:
    composed = yaml.safe_load(MANIFESTS[0].read_text(encoding="utf-8"))
    assert set(composed) == {"services", "volumes"}
    for service in composed["services"].values():
        named = [volume.partition(":")[0] for volume in service["volumes"]]
        assert set(named) - {name for name in named if name.startswith(".")} <= set(composed["volumes"])


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


def test_unit_by_systemd(tmp_path: Path) -> None:
    """With a program that is there, or the first complaint would be about that."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("there is no systemd-analyze here")
    text = (ROOT / "deploy/fedlearn-serve@.service").read_text(encoding="utf-8")
    unit = tmp_path / "fedlearn-serve@.service"
    unit.write_text(text.replace("/opt/fedlearn/bin/fedlearn", "/bin/true"), encoding="utf-8")
    checked = subprocess.run([program, "verify", unit], check=False, capture_output=True, text=True)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_the_party_files_that_are_shipped_can_serve() -> None:
    contract = load_contract(ROOT / "fedlearn/demo-contract.toml")
    a, b = (load_party(ROOT / party / "party.toml") for party in ("party_a", "party_b"))
    assert contract.serving is not None
    assert a.service is not None
    assert b.service is not None
    assert b.service.peer == a.service.listen
    assert b.service.bands[-1].up_to is None
