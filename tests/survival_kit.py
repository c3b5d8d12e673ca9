"""Processes for the tests of survival: another user, a holder of the lock, a writer and readers of one index.

`python tests/survival_kit.py ROLE ARGUMENT...`; the roles are the functions of `ROLES`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NOBODY = 65534


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(HERE.parent), str(HERE)])
    return {**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def start(role: str, *arguments: object) -> subprocess.Popen[str]:
    """One of the roles below, in a process of its own, with pipes."""
    return subprocess.Popen(
        [sys.executable, __file__, role, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )


def state_of(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Every file and folder below: mode, time of its last change, digest of its content."""
    state = {}
    for path in sorted([folder, *folder.rglob("*")]):
        stat = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        state[str(path)] = (stat.st_mode, stat.st_mtime_ns, content)
    return state


# Another user


def command(*arguments: str) -> dict[str, Any]:
    """Runs one command line of mmsearch here."""
    from mmsearch.cli import run

    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for name in ("stdout", "stderr")}
    with contextlib.redirect_stdout(streams["stdout"]), contextlib.redirect_stderr(streams["stderr"]):
        code = run(list(arguments))
    for stream in streams.values():
        stream.flush()
    return {"code": code, **{name: stream.buffer.getvalue().decode() for name, stream in streams.items()}}  # type: ignore[attr-defined]


def as_somebody_else() -> None:
    """Runs the command lines of stdin (JSON) as a user whom permissions bind, as they do not bind root.

    Everything is imported before, because that user may not be allowed to read this interpreter's files.
    """
    with tempfile.TemporaryDirectory() as rehearsal:
        pictures = Path(rehearsal, "pictures")
        pictures.mkdir()
        (pictures / "red.ppm").write_bytes(b"P6 1 1 255\n\xff\0\0")
        index = ("--index", f"{rehearsal}/index")
        assert command("index", str(pictures), "--model", "fake", *index)["code"] == 0
        (pictures / "green.ppm").write_bytes(b"P6 1 1 255\n\0\xff\0")
        assert command("index", *index)["code"] == 0
        assert command("query", "red", *index)["code"] == 0
        assert command("info", *index)["code"] == 0
        assert command("info", "--index", f"{rehearsal}/absent")["code"] == 3
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    for line in sys.stdin:
        sys.stdout.write(json.dumps(command(*json.loads(line))) + "\n")
        sys.stdout.flush()


# The lock


def hold(index: str) -> None:
    """Holds the lock of an index, with a change that is not committed, until stdin ends."""
    from store_kit import add

    from mmsearch.retrieval.store import LocalStore

    with LocalStore.open(Path(index)).writer() as writer:
        add(writer, Path(index).parent, "uncommitted.jpg", "uncommitted")
        sys.stdout.write("held\n")
        sys.stdout.flush()
        sys.stdin.read()


def try_to_write(index: str) -> None:
    """Says whether the index can be written to."""
    from mmsearch.retrieval.errors import IndexLocked
    from mmsearch.retrieval.store import LocalStore

    try:
        with LocalStore.open(Path(index)).writer():
            sys.stdout.write("written\n")
    except IndexLocked as error:
        sys.stdout.write(f"{error}\n")


def leave_a_log(index: str, root: str, uri: str) -> None:
    """Takes a file out of the index and dies like a process that is killed: the catalog's log stays behind."""
    from mmsearch.retrieval.store import LocalStore

    writer = LocalStore.open(Path(index)).writer()
    writer.remove(root, [uri])
    writer.commit()
    os._exit(0)


# A writer and its readers


def expected(folder: Path, generation: int) -> dict[str, str] | None:
    """What the writer said that a generation would hold: uri to content."""
    try:
        return dict(json.loads((folder / f"{generation}.json").read_text()))
    except FileNotFoundError:
        return None


def write_in_a_loop(index: str, plans: str, seconds: str) -> None:
    """Adds, changes, removes, moves and merges; says before each commit what its generation will hold."""
    import random

    from store_kit import add, ref

    from mmsearch.retrieval.store import LocalStore

    chance = random.Random(7)
    root, plan_folder = Path(index).parent, Path(plans)
    held: dict[str, str] = {}
    number = 0

    def plan(generation: int) -> None:
        unfinished = plan_folder / "unfinished"
        unfinished.write_text(json.dumps(held))
        unfinished.rename(plan_folder / f"{generation}.json")

    deadline = time.monotonic() + float(seconds)
    with LocalStore.open(Path(index)).writer() as writer:
        generation = writer.commit()
        plan(generation)
        while time.monotonic() < deadline:
            number += 1
            for _ in range(chance.randint(1, 4)):
                uri = f"{chance.randint(0, 60)}.jpg"
                what = chance.random()
                if uri in held and what < 0.3:
                    writer.remove(str(root), [uri])
                    del held[uri]
                elif uri in held and what < 0.4 and "moved.jpg" not in held:
                    writer.move(str(root), uri, ref(root, "moved.jpg"))
                    held["moved.jpg"] = held.pop(uri)
                else:
                    held[uri] = f"content {chance.randint(0, 200)}"
                    add(writer, root, uri, held[uri], stamp=(number, number))
            plan(generation + 1)
            generation = writer.commit()
            if number % 7 == 0:
                plan(generation + 1)  # a merge is a generation of the same content
                writer.merge()
                generation = writer.commit()
    sys.stdout.write(f"{generation}\n")


def wrong_answers(index: Path, plans: Path, stop: Any) -> tuple[int, set[int], list[str]]:
    """Searches until `stop()`; returns how often, of which generations, and what was not as it was planned."""
    from store_kit import brute_force, key, queries, vector

    from mmsearch.retrieval.store import Snapshot

    wrong: list[str] = []
    seen: set[int] = set()
    count = 0
    while not stop() and not wrong:
        count += 1
        with Snapshot.open(index) as snapshot:
            plan = expected(plans, snapshot.generation)
            if plan is None:
                wrong.append(f"generation {snapshot.generation} was never planned")
                break
            seen.add(snapshot.generation)
            for query in queries(2, seed=count):  # the second search may come after commits and merges
                found = snapshot.search("image", query[None], 1000)[0]
                records = snapshot.items([one.item_id for one in found])
                if {record.uri: record.content_hash for record in records.values()} != {
                    uri: key(content) for uri, content in plan.items()
                } or len(found) != len(plan):
                    wrong.append(f"generation {snapshot.generation} does not hold what was planned")
                    break
                rows = {id_: vector(key(plan[record.uri])) for id_, record in records.items()}
                best = brute_force(snapshot, "image", rows, query, len(rows))
                if [(one.item_id, one.score) for one in found] != best:
                    wrong.append(f"generation {snapshot.generation}: another order")
    return count, seen, wrong


def read_in_a_loop(index: str, plans: str) -> None:
    """Searches until the folder of plans has a file `stop`; prints how often, the generations, and what was wrong."""
    stop = Path(plans, "stop").exists
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    count, seen, wrong = wrong_answers(Path(index), Path(plans), stop)
    sys.stdout.write(json.dumps([count, sorted(seen), wrong]) + "\n")


# Many files


def index_and_measure(folder: str, index: str) -> None:
    """Prints the report of a run as JSON, its seconds, and the most bytes of memory that this process had."""
    import resource

    seconds = -time.monotonic()
    ran = command("index", folder, "--model", "fake", "--json", "--index", index)
    seconds += time.monotonic()
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    sys.stdout.write(json.dumps([json.loads(ran["stdout"]), seconds, peak]) + "\n")


ROLES = {
    role.__name__: role
    for role in (as_somebody_else, hold, try_to_write, leave_a_log, write_in_a_loop, read_in_a_loop, index_and_measure)
}

if __name__ == "__main__":
    ROLES[sys.argv[1]](*sys.argv[2:])
