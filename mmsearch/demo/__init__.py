"""`mmsearch demo`: a small folder of pictures and notes made offline, indexed with the starter, and searched.

Nothing is downloaded. The photographs are those that the scikit-image wheel carries and whose authors
have put them into the public domain or under CC0; the other pictures are drawn here.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import mmsearch
from mmsearch.retrieval.errors import UsageError
from mmsearch.retrieval.types import Hit, Selection

if TYPE_CHECKING:
    from mmsearch.demo.canvas import Canvas

_MARKER = "CREDITS"

_PHOTOS = {
    "astronaut.png": ("astronaut.png", "NASA, public domain"),
    "brick.png": ("brick-wall.png", "cc0textures.com, CC0"),
    "camera.png": ("photographer.png", "Lav Varshney, CC0"),
    "chelsea.png": ("chelsea.png", "Stefan van der Walt, CC0"),
    "clock_motion.png": ("moving-clock.png", "Stefan van der Walt, public domain"),
    "coffee.png": ("coffee.png", "Rachel Michetti, CC0"),
    "grass.png": ("grass.png", "linolafett, CC0"),
    "gravel.png": ("gravel.png", "cc0textures.com, CC0"),
    "horse.png": ("horse.png", "Andreas Preuss, CC0"),
    "hubble_deep_field.jpg": ("galaxies.jpg", "NASA, public domain"),
    "rocket.jpg": ("rocket.jpg", "SpaceX, public domain"),
}
"""File in scikit-image's data folder -> file here, and whose it is (from scikit-image's own notes)."""

_NOTES = {
    "apple-pie.txt": "Apple pie\n\nPeel six sour apples and cut them into slices. Mix them with sugar, "
    "cinnamon and the juice of a lemon. Line a dish with pastry, fill it, and bake it for forty minutes "
    "in a hot oven.\n",
    "packing-list.txt": "For the week in the mountains: warm jacket, hiking boots, woollen socks, sun cream, a map, "
    "a headlamp with new batteries, two water bottles.\n",
    "guitar-lesson.txt": "Next lesson on Tuesday at six. Practise the change from G to C, slowly, with a metronome. "
    "Buy new strings.\n",
    "旅行日记.txt": "今天早上我们坐船出海。天气很好，海水很蓝。下午在沙滩上晒太阳，晚上看了日落。\n",
    "番茄炒蛋.txt": "番茄两个，鸡蛋三个。先炒鸡蛋，盛出来。再炒番茄，加一点糖和盐，最后把鸡蛋倒回锅里。\n",
}

_QUERIES: tuple[tuple[str, Selection, bool], ...] = (
    ("a cup of coffee", "image", True),
    ("a guitar", "image", False),
    ("一匹马", "image", True),
    ("what to take on a hike", "text", False),
    ("海边的一天", "text", False),
)
"""What the demo asks: the query, the modality, and whether its answer is among the photographs.

Chosen from about thirty as ones that the starter answers; it fails on others ("a cat", "a rocket", "a clock")."""


def run(folder: Path | None = None, *, index_path: Path | None = None, echo: Callable[[str], None]) -> None:
    """Makes the demo folder, indexes it with the starter model, asks a few questions, says what to type next.

    Run again, it keeps what is there and makes only what is missing.

    Args:
        folder: where to put it; by default `mmsearch-demo` in the working directory, or in the user's data folder
            where the working directory cannot be written to. Made if it is missing; otherwise it must be empty or
            an earlier demo.
        index_path: the index to fill; `index` within the folder by default.
        echo: called with each line for the user.

    Raises:
        UsageError: the folder holds something else.
    """
    folder = Path(os.path.abspath(folder)) if folder is not None else _default_folder()
    index_path = Path(os.path.abspath(index_path)) if index_path is not None else folder / "index"
    photos = make_folder(folder)
    if not photos:
        echo("Drawn pictures only: the photographs come with scikit-image (pip install 'mmsearch[demo]').")
    pictures = sum(1 for _ in (folder / "pictures").iterdir())
    notes = sum(1 for _ in (folder / "notes").iterdir())
    echo(f"{pictures} pictures and {notes} notes are in {folder}")
    echo("Indexing them with the starter model that comes with mmsearch ...")
    with mmsearch.open(index_path, model="starter") as index:
        report = index.add(folder)
        echo(f"{report.items} items are in the index; that took {report.seconds:.1f} s.")
        for failure in report.failed:
            echo(f"  not indexed: {failure.path}: {failure.error}")
        for query, modality, needs_photos in _QUERIES:
            if photos or not needs_photos:
                hits = index.search(query, k=3, modality=modality)
                echo("")
                echo(f'{"Pictures" if modality == "image" else "Notes"} for "{query}":')
                for hit in hits:
                    echo(_shown(hit))
    echo("")
    for line in _next_steps(folder, index_path):
        echo(line)


def make_folder(folder: Path) -> int:
    """Fills the folder with `pictures`, `notes` and credits; returns how many photographs are among the pictures."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; name a folder for the demo")
    if folder.is_dir() and not (folder / _MARKER).exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty and no earlier demo; name a new folder for the demo")
    from mmsearch.demo import creatures, food, places, things

    for part in ("pictures", "notes"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    _write(folder / _MARKER, _credits().encode())
    for name, text in _NOTES.items():
        _write(folder / "notes" / name, text.encode())
    paintings = {**creatures.PICTURES, **food.PICTURES, **places.PICTURES, **things.PICTURES}
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        jobs = [
            pool.submit(partial(_draw, folder / "pictures" / f"{name}.jpg", paint)) for name, paint in paintings.items()
        ]
    for job in jobs:
        job.result()
    return _copy_photos(folder / "pictures")


def _default_folder() -> Path:
    parent = Path.cwd()
    if not os.access(parent, os.W_OK):
        import platformdirs

        parent = Path(platformdirs.user_data_dir("mmsearch"))
    return parent / "mmsearch-demo"


def _copy_photos(folder: Path) -> int:
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        return 0
    source = Path(spec.origin).parent / "data"
    copied = 0
    for name, (here, _) in _PHOTOS.items():
        if (source / name).is_file():
            _write(folder / here, (source / name).read_bytes())
            copied += 1
    return copied


def _draw(path: Path, paint: Callable[[], Canvas]) -> None:
    if path.exists():
        return
    import io

    content = io.BytesIO()
    paint().picture().save(content, "JPEG", quality=90)
    _write(path, content.getvalue())


def _write(path: Path, content: bytes) -> None:
    """Writes a file that is not there yet, whole or not at all."""
    if not path.exists():
        part = path.with_name(f".{path.name}.part")
        part.write_bytes(content)
        part.replace(path)


def _credits() -> str:
    lines = [f"pictures/{here}: {credit}; as shipped by scikit-image" for here, credit in _PHOTOS.values()]
    return "\n".join([*lines, "All other pictures and the notes: made by mmsearch demo.", ""])


def _shown(hit: Hit) -> str:
    return f"  {hit.rank}  {hit.score:.3f}  {hit.path}"


def _next_steps(folder: Path, index_path: Path) -> list[str]:
    command = shlex.quote(_command())
    here = f"--index {shlex.quote(str(index_path))}"
    example = shlex.quote(str(folder / "pictures" / "sailing-boat.jpg"))
    return [
        "Ask it something else, in words or by example:",
        f'  {command} query "a man with a camera" {here}',
        f'  {command} query "绿色的草地" {here}',
        f"  {command} query --image {example} {here}",
        "Then your own pictures and notes:",
        f"  {command} index ~/Pictures",
        f'  {command} query "children playing on a beach"',
    ]


def _command() -> str:
    """How the user can call mmsearch from this shell: its name if that is found, else its path."""
    installed = Path(sys.executable).parent / "mmsearch"
    found = shutil.which("mmsearch")
    if found is not None and (not installed.exists() or Path(found).samefile(installed)):
        return "mmsearch"
    return str(installed) if installed.exists() else f"{sys.executable} -m mmsearch"
