"""Fixtures that several test files share. No test sees the user's folders, an index of theirs, or the network."""

from __future__ import annotations

import functools
import os
import re
import signal
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from cli_kit import Result

    from mmsearch.retrieval.encoders.fake import FakeEncoder

REPOSITORY = Path(__file__).resolve().parent.parent
REQUIRE_SHARED = "MMSEARCH_REQUIRE_SHARED"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-goldens", action="store_true", help="rewrite generated files instead of comparing")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Reports travel between processes as UTF-8; what a test prints of odd file names may be none."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(autouse=True, scope="session")
def _interruptible() -> None:
    """Shells start background jobs with SIGINT ignored; Ctrl-C is tested there too."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home of its own for every test; model hubs refuse the connection at once."""
    home = tmp_path_factory.mktemp("home")
    for name in list(os.environ):
        if name.startswith(("MMSEARCH_", "XDG_", "HF_", "HUGGINGFACE_", "TRANSFORMERS_")) and name != REQUIRE_SHARED:
            monkeypatch.delenv(name)
    for name, folder in (
        ("HOME", "."),
        ("XDG_CACHE_HOME", "cache"),
        ("XDG_CONFIG_HOME", "config"),
        ("XDG_DATA_HOME", "data"),
        ("XDG_STATE_HOME", "state"),
        ("HF_HOME", "huggingface"),
    ):
        monkeypatch.setenv(name, str(home / folder))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The data beside the checkout; the test skips without it, or fails where it is required."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        reason = "needs the pictures of ../shared/data, which is not there"
        if os.environ.get(REQUIRE_SHARED) == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


@pytest.fixture
def encoder() -> FakeEncoder:
    """An encoder without weights that knows colours."""
    from mmsearch.retrieval.encoders.fake import FakeEncoder

    return FakeEncoder()


@pytest.fixture
def draw() -> Callable[..., Path]:
    """Paints a shape and saves it in the format of the path's ending: draw(path, "red", "circle")."""

    def paint(path: Path, colour: str, shape: str = "square", size: tuple[int, int] = (96, 64)) -> Path:
        from PIL import Image, ImageDraw

        image = Image.new("RGB", size, colour)
        box = (size[0] // 3, size[1] // 3, 2 * size[0] // 3, 2 * size[1] // 3)
        canvas = ImageDraw.Draw(image)
        if shape == "circle":
            canvas.ellipse(box, fill="white")
        elif shape == "triangle":
            canvas.polygon([(box[0], box[3]), (box[2], box[3]), (size[0] // 2, box[1])], fill="white")
        else:
            canvas.rectangle(box, fill="white")
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
        return path

    return paint


@pytest.fixture
def pictures(tmp_path: Path, draw: Callable[..., Path]) -> Path:
    """A folder of six small pictures, one in a folder below, and two texts."""
    folder = tmp_path / "pictures"
    draw(folder / "red-square.png", "red")
    draw(folder / "green-circle.jpg", "green", "circle")
    draw(folder / "blue-triangle.png", "blue", "triangle")
    draw(folder / "yellow-square.webp", "yellow")
    draw(folder / "black-circle.gif", "black", "circle")
    draw(folder / "more" / "orange-triangle.jpg", "orange", "triangle")
    (folder / "roses.txt").write_text("Roses are red.\n", encoding="utf-8")
    (folder / "more" / "天空.txt").write_text("天空是蓝色的。\n", encoding="utf-8")
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Result]:
    """Runs a command line on an index of the test's own."""
    from cli_kit import run_here

    monkeypatch.setenv("MMSEARCH_INDEX", str(tmp_path / "index"))
    monkeypatch.setenv("COLUMNS", "80")
    return functools.partial(run_here, capsys)


@pytest.fixture
def golden(repository: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compares text with tests/golden/NAME; `--update-goldens` rewrites it, nothing else does."""

    def compare(name: str, text: str) -> None:
        text = text.replace(str(tmp_path), "/tmp/x")
        text = re.sub(r"\d+\.\d s$", "0.0 s", text, flags=re.MULTILINE)
        text = re.sub(r"(\d\.\d{3})\d+", r"\1", text)  # what processors agree on
        text = re.sub(r"\d+(\.\d+)? kB", "1 kB", text)
        path = repository / "tests" / "golden" / name
        if request.config.getoption("--update-goldens"):
            path.write_text(text, encoding="utf-8")
        assert path.is_file(), f"{path} is missing; run with --update-goldens"
        assert text == path.read_text(encoding="utf-8")

    return compare
