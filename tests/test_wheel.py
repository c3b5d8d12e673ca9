"""What is shipped: every source file, nothing else, and it runs from the wheel alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

import mmsearch

_FOLDERS = {"mmsearch": "mmsearch", "indexers": "mmsearch/indexers", "retrieval": "mmsearch/retrieval"}
_NOT_SHIPPED = {"__pycache__", "retrieval", "indexers"}  # the last two: the links in mmsearch/
_LIMIT = 64 * 2**20


def _source_files(repository: Path) -> set[str]:
    """Wheel paths of all files of the three folders."""
    found = set()
    for folder, package in _FOLDERS.items():
        base = repository / folder
        for directory, folders, files in os.walk(base):
            folders[:] = [name for name in folders if name not in _NOT_SHIPPED and not name.startswith(".")]
            for name in files:
                if not name.startswith("."):
                    found.add(f"{package}/{(Path(directory) / name).relative_to(base).as_posix()}")
    return found


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that no build folder is left in the checkout (or taken from it)."""
    copy = tmp_path_factory.mktemp("checkout") / "mmsearch"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / name, copy / name)
    for name in _FOLDERS:
        shutil.copytree(repository / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    command += ["--wheel-dir", str(out), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("mmsearch-*.whl")
    return built


def test_the_wheel_holds_every_source_file_and_nothing_else(wheel: Path, repository: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert shipped == _source_files(repository)


def test_the_wheel_brings_one_import_name_and_the_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"mmsearch"}
    assert any(name.endswith("LICENSE") for name in names)
    assert "mmsearch/py.typed" in names


def test_the_wheel_stays_within_its_size(wheel: Path) -> None:
    assert wheel.stat().st_size <= _LIMIT + 2**20


def test_versions_agree(wheel: Path, repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text("utf-8"))["project"]
    assert mmsearch.__version__ == project["version"]
    assert f"-{project['version']}-" in wheel.name
    assert project["version"] in (repository / "CHANGELOG.md").read_text("utf-8")


def test_the_extra_all_names_every_other_one(wheel: Path, repository: Path) -> None:
    extras = tomllib.loads((repository / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    (everything,) = extras["all"]
    named = set(everything.removeprefix("mmsearch[").removesuffix("]").split(","))
    assert named == set(extras) - {"all", "dev"}
    with zipfile.ZipFile(wheel) as archive:
        (path,) = [name for name in archive.namelist() if name.endswith("METADATA")]
        metadata = HeaderParser().parsestr(archive.read(path).decode())
    assert set(metadata.get_all("Provides-Extra") or ()) == set(extras)


def test_the_wheel_runs_from_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    # Somebody else's folder of the same name as one of ours must not get in the way.
    (tmp_path / "elsewhere" / "retrieval").mkdir(parents=True)
    code = """
import sys
sys.path.insert(0, sys.argv[1])
import mmsearch, mmsearch.retrieval.types, mmsearch.indexers
assert all(m.__file__.startswith(sys.argv[1]) for m in (mmsearch, mmsearch.retrieval.types, mmsearch.indexers))
sys.argv = ["mmsearch", "--version"]
from mmsearch.cli import main
main()
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(unpacked)],
        cwd=tmp_path / "elsewhere",
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert mmsearch.__version__ in done.stdout
