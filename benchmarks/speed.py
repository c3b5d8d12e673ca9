"""Speed and memory of mmsearch, as ratios against something timed in the same run.

    python benchmarks/speed.py --data ../shared/data --out benchmarks/results/speed.json
    python benchmarks/speed.py --photos ~/Pictures --only help query

Contenders take turns, in an order that reverses every round, and a figure is the median over the rounds of the
ratio within a round. Seconds on a busy machine mean nothing, these ratios still mean a little.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from contest import (
    HERE,
    Figure,
    alternate,
    child,
    first_line,
    index_once,
    mmsearch,
    python,
    ratio,
    wall,
    write_result,
    write_table,
)
from machine import describe

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mmsearch.retrieval.encoders.starter import StarterEncoder

HEAVY = ("torch", "onnxruntime", "faiss", "sqlalchemy", "numpy")
SUFFIXES = (".jpg", ".jpeg", ".png")
QUERY = "a dog"


class Workshop:
    """What measurements share: settings, scratch folders, photos, the loaded starter.

    Args:
        folder: scratch; must be on a local disk.
        originals: photos to measure with.
        rounds: how often each contender has its turn.
        files: how many tiny files a large corpus has.
        torch_photos: how many photos the slow torch loop gets.
    """

    def __init__(self, folder: Path, originals: list[Path], *, rounds: int, files: int, torch_photos: int) -> None:
        self.folder = folder
        self.rounds = rounds
        self.files = files
        self.torch_photos = torch_photos
        self._originals = originals
        self._indexes = 0

    @cached_property
    def photos(self) -> Path:
        """A folder with copies of the photos and nothing else."""
        return self.copies("photos", 1)

    @cached_property
    def count(self) -> int:
        """How many photos there are."""
        return len(self._originals)

    def copies(self, name: str, times: int, limit: int | None = None) -> Path:
        """A folder with `times` copies of each photo, all of different content."""
        folder = self.folder / name
        folder.mkdir()
        for number, photo in enumerate(self._originals[:limit]):
            content = photo.read_bytes()
            for copy in range(times):  # decoders stop before what follows the end of a picture
                tail = bytes([copy]) if copy else b""
                (folder / f"{number:05}-{copy}{photo.suffix.lower()}").write_bytes(content + tail)
        return folder

    def tiny_files(self, count: int) -> Path:
        """A folder of `count` pictures of one pixel, a hundred to a folder."""
        top = self.folder / f"tiny-{count}"
        for number in range(count):
            folder = top / f"{number // 100:04}"
            if number % 100 == 0:
                folder.mkdir(parents=True, exist_ok=True)  # another measurement may have made the same files
            pixel = (number + 1).to_bytes(3, "big")
            (folder / f"{number:06}.ppm").write_bytes(b"P6 1 1 255\n" + pixel)
        return top

    def fresh_index(self) -> Path:
        """A path where no index is yet."""
        self._indexes += 1
        return self.folder / f"index-{self._indexes}"

    @cached_property
    def encoder(self) -> StarterEncoder:
        """The starter, loaded and warm; indexing with it has imported everything it needs."""
        from mmsearch.retrieval.encoders.starter import StarterEncoder

        encoder = StarterEncoder()
        self.index(self.copies("warm-up", 1, limit=2 * encoder.batch_size), encoder)
        return encoder

    def index(self, folder: Path, encoder: StarterEncoder) -> float:
        """Seconds to index a folder into a fresh index: scan, read, decode, encode, commit."""
        from mmsearch.indexers.paths import open_sources
        from mmsearch.indexers.pipeline import index_sources
        from mmsearch.retrieval.store import LocalStore

        path = self.fresh_index()
        expected = sum(1 for _ in folder.iterdir())
        start = time.perf_counter()
        store = LocalStore.create(path, model=encoder.name, identity=encoder.identity, dim=encoder.dim)
        report = index_sources(open_sources([folder], index_path=path), store, lambda: encoder)
        seconds = time.perf_counter() - start
        if report.added + report.copied != expected:
            raise SystemExit(f"{expected} photos, but the run reports {report}")
        shutil.rmtree(path)
        return seconds


# The measurements. Each takes the workshop and returns its figure; the first line says what it is.


def indexing_encoder(shop: Workshop) -> Figure:
    """Images a second: indexing / ONNX Runtime image tower alone on ready tensors."""
    import numpy as np
    import onnxruntime

    from mmsearch.retrieval.encoders.machine import usable_cpus
    from mmsearch.retrieval.encoders.starter import FOLDER
    from mmsearch.retrieval.media import load_image

    encoder = shop.encoder
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cpus()
    tower = onnxruntime.InferenceSession(FOLDER / "image.onnx", options, providers=["CPUExecutionProvider"])
    pixels = [
        encoder.preprocess(load_image(path.read_bytes(), target=encoder.image_size).image)
        for path in sorted(shop.photos.iterdir())
    ]
    batches = [
        np.stack(pixels[start : start + encoder.batch_size]) for start in range(0, len(pixels), encoder.batch_size)
    ]
    del pixels

    def alone() -> float:
        start = time.perf_counter()
        for batch in batches:
            _rows: NDArray[np.float32] = tower.run(None, {"pixels": batch})[0]
        return time.perf_counter() - start

    tower.run(None, {"pixels": batches[0]})
    seconds = alternate(shop.rounds, {"indexing": lambda: shop.index(shop.photos, encoder), "encoder alone": alone})
    rates = {name: round(shop.count / statistics.median(each), 1) for name, each in seconds.items()}
    return Figure(
        "indexing-encoder",
        first_line(indexing_encoder),
        ratio(seconds["encoder alone"], seconds["indexing"]),
        ">=",
        0.85,
        seconds,
        {"photos": shop.count, "images/s": rates, "batch": encoder.batch_size, "threads": usable_cpus()},
    )


def indexing_torch(shop: Workshop) -> Figure:
    """Images a second: indexing / a plain torch loop (eager, open_clip, batch 32) over the same photos."""
    encoder = shop.encoder
    photos = sorted(shop.photos.iterdir())
    some = photos[:: max(1, len(photos) // shop.torch_photos)][: shop.torch_photos]
    with torch_loop(shop.folder / "export") as loop:
        loop(some[:32])
        seconds = alternate(
            shop.rounds, {"indexing": lambda: shop.index(shop.photos, encoder), "torch loop": lambda: loop(some)}
        )
    rates = {
        "indexing": round(len(photos) / statistics.median(seconds["indexing"]), 1),
        "torch loop": round(len(some) / statistics.median(seconds["torch loop"]), 1),
    }
    return Figure(
        "indexing-torch",
        first_line(indexing_torch),
        ratio(seconds["torch loop"], seconds["indexing"]) * len(photos) / len(some),
        ">=",
        3.0,
        seconds,
        {"photos": len(photos), "photos of the torch loop": len(some), "images/s": rates},
    )


@contextlib.contextmanager
def torch_loop(folder: Path) -> Iterator[Callable[[list[Path]], float]]:
    """A process with the starter in torch; calling it embeds photos and gives the seconds that took."""
    process = subprocess.Popen(
        python(HERE / "torch_loop.py", folder), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    questions, answers = process.stdin, process.stdout

    def ask(photos: list[Path]) -> float:
        print(json.dumps([str(path) for path in photos]), file=questions, flush=True)
        answer = answers.readline()
        if not answer:
            raise SystemExit("the torch loop ended early; its messages are above")
        return float(json.loads(answer))

    try:
        yield ask
    finally:
        process.kill()  # nothing of it is left to keep
        process.wait()
        questions.close()
        answers.close()


def rescan(shop: Workshop) -> Figure:
    """Microseconds a file of a second run over unchanged files, over the same run with one file."""
    many, one = shop.tiny_files(shop.files), shop.tiny_files(1)
    contenders: dict[str, Callable[[], float]] = {}

    def again(folder: Path, index: Path) -> float:
        found = index_once(folder, index, "fake")
        if found["added"] or found["unchanged"] != (shop.files if folder == many else 1):
            raise SystemExit(f"not a run over unchanged files: {found}")
        return found["seconds"]

    for size, folder in (("many files", many), ("one file", one)):
        index = shop.fresh_index()
        index_once(folder, index, "fake")
        contenders[f"add, {size}"] = partial(again, folder, index)
        contenders[f"command, {size}"] = wall(mmsearch("index", folder, "--index", index))
    seconds = alternate(shop.rounds, contenders)
    micros = {
        way: 1e6
        * (statistics.median(seconds[f"{way}, many files"]) - statistics.median(seconds[f"{way}, one file"]))
        / (shop.files - 1)
        for way in ("add", "command")
    }
    return Figure(
        "rescan",
        first_line(rescan) + " (the worse of Index.add and the command)",
        max(micros.values()),
        "<=",
        40.0,
        seconds,
        {"files": shop.files, "us/file": {way: round(value, 1) for way, value in micros.items()}},
    )


def memory(shop: Workshop) -> Figure:
    """Peak memory: indexing 4 n photos / indexing n of them."""
    count = min(500, shop.count)
    times = -(-100 // count)  # fewer files than are read ahead would not fill the queues of the smaller run
    folders = {
        "n": shop.copies("n", times, limit=count),
        "4 n": shop.copies("4n", 4 * times, limit=count),
    }
    return _memory_figure(shop, "memory", first_line(memory), folders, "starter", times * count)


def memory_files(shop: Workshop) -> Figure:
    """Peak memory: indexing 4 n tiny files with an encoder without weights / indexing n of them."""
    count = max(1, shop.files // 4)
    folders = {"n": shop.tiny_files(count), "4 n": shop.tiny_files(4 * count)}
    return _memory_figure(shop, "memory-files", first_line(memory_files), folders, "fake", count)


def _memory_figure(shop: Workshop, name: str, what: str, folders: Mapping[str, Path], model: str, count: int) -> Figure:
    def peak(folder: Path) -> float:
        index = shop.fresh_index()
        found = index_once(folder, index, model)
        shutil.rmtree(index)
        return found["peak_bytes"] / 2**20

    contenders = {size: partial(peak, folder) for size, folder in folders.items()}
    peaks = alternate(min(3, shop.rounds), contenders)
    more = statistics.median(peaks["4 n"]) - statistics.median(peaks["n"])
    notes = {"n": count, "unit": "MiB", "bytes for each further file": round(more * 2**20 / (3 * count))}
    return Figure(name, what, ratio(peaks["4 n"], peaks["n"]), "<=", 1.1, peaks, notes)


def help(shop: Workshop) -> Figure:
    """Whole process: `mmsearch --help` / `python -c pass`."""
    seconds = alternate(
        max(10, 4 * shop.rounds), {"--help": wall(mmsearch("--help")), "pass": wall(python("-c", "pass"))}
    )
    return Figure("help", first_line(help), ratio(seconds["--help"], seconds["pass"]), "<=", 6.0, seconds)


def imports(shop: Workshop) -> Figure:
    """How many of torch, onnxruntime, faiss, sqlalchemy, numpy `--help` and `query --help` import."""
    loaded: dict[str, list[str]] = {}
    for arguments in (["--help"], ["query", "--help"]):
        code = (
            "import sys; from mmsearch.cli import run; run(sys.argv[1:]);"
            "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
        )
        names = child(python("-c", code, *arguments)).stdout.splitlines()[-1].split()
        loaded[" ".join(arguments)] = [name for name in names if name not in sys.stdlib_module_names]
    heavy = sorted(set(HEAVY).intersection(*[[name for names in loaded.values() for name in names]]))
    return Figure("imports", first_line(imports), len(heavy), "<=", 0, notes={"heavy": heavy, "loaded": loaded})


def query(shop: Workshop) -> Figure:
    """Whole process: a text query on an index of the photos / `python -c "import torch"`."""
    index = shop.fresh_index()
    child(mmsearch("index", shop.photos, "--index", index, "--model", "starter"))
    command = mmsearch("query", QUERY, "--index", index)
    seconds = alternate(2 * shop.rounds, {"query": wall(command), "import torch": wall(python("-c", "import torch"))})
    return Figure(
        "query",
        first_line(query),
        ratio(seconds["query"], seconds["import torch"]),
        "<=",
        0.5,
        seconds,
        {"images": shop.count, "import ms": _import_times("query", QUERY, "--index", str(index))},
    )


def _import_times(*arguments: str) -> dict[str, float]:
    """Milliseconds of a command that went into importing, by top-level package, the largest first."""
    code = "import sys; from mmsearch.cli import run; run(sys.argv[1:])"
    total: Counter[str] = Counter()
    for line in child(python("-X", "importtime", "-c", code, *arguments)).stderr.splitlines():
        own, _, name = line.removeprefix("import time:").partition("|")
        if line.startswith("import time:") and own.strip().isdigit():
            package = name.partition("|")[2].strip().partition(".")[0]
            total["(standard library)" if package in sys.stdlib_module_names else package] += int(own)
    largest = {name: round(micros / 1000, 1) for name, micros in total.most_common(12)}
    return {"(all)": round(total.total() / 1000, 1), **largest}


MEASUREMENTS: dict[str, Callable[[Workshop], Figure]] = {
    "imports": imports,
    "help": help,
    "query": query,
    "rescan": rescan,
    "memory": memory,
    "memory-files": memory_files,
    "indexing-encoder": indexing_encoder,
    "indexing-torch": indexing_torch,
}


def find_photos(arguments: argparse.Namespace) -> list[Path]:
    """The photos to measure with, in the order of their names."""
    if arguments.data is not None:
        folder = arguments.data / "flickr8k"
        entries = json.loads((folder / "captions.json").read_text("utf-8"))
        photos = [folder / "images" / entry["file_name"] for entry in entries if entry["split"] == "val"]
    else:
        photos = [path for path in arguments.photos.rglob("*") if path.suffix.lower() in SUFFIXES]
    if not photos:
        raise SystemExit("no photos there")
    return sorted(photos)[: arguments.limit]


def main(argv: list[str] | None = None) -> None:
    """Measures, prints the table, and writes JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--photos", type=Path, metavar="DIR", help="a folder of photos")
    where.add_argument("--data", type=Path, metavar="DIR", help="takes the validation photos of DIR/flickr8k")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures here, as JSON")
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, metavar="NAME", help=", ".join(MEASUREMENTS))
    parser.add_argument("--limit", type=int, default=1000, help="photos at most (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender (%(default)s)")
    parser.add_argument("--files", type=int, default=10_000, help="tiny files of a large corpus (%(default)s)")
    parser.add_argument("--torch-photos", type=int, default=128, help="photos for the torch loop (%(default)s)")
    arguments = parser.parse_args(argv)
    if min(arguments.limit, arguments.rounds, arguments.torch_photos) < 1 or arguments.files < 4:
        parser.error("--limit, --rounds and --torch-photos want 1 or more, --files 4 or more")
    chosen = arguments.only or list(MEASUREMENTS)
    where_it_ran = describe()
    figures = []
    with tempfile.TemporaryDirectory(prefix="mmsearch-speed-") as folder:
        shop = Workshop(
            Path(folder),
            find_photos(arguments),
            rounds=arguments.rounds,
            files=arguments.files,
            torch_photos=arguments.torch_photos,
        )
        for name, measure in MEASUREMENTS.items():
            if name in chosen:
                print(f"{name} ...", file=sys.stderr, flush=True)
                figures.append(measure(shop))
                print(f"{name}: {figures[-1].value:.3g}", file=sys.stderr, flush=True)
    write_table(figures)
    if arguments.out:
        command = ["benchmarks/speed.py", *(argv if argv is not None else sys.argv[1:])]
        about = {"photos": shop.count, "rounds": arguments.rounds}
        write_result(arguments.out, "speed", command, where_it_ran, about, figures)


if __name__ == "__main__":
    main()
