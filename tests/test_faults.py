"""Whatever call of a writer is its last, or fails, what was committed is there and the next run ends as it should.

`scenarios` says what is run, `faults` disturbs it at system calls, SQLite's own included, and `power` knows what a
power cut leaves. The steps that `test_crash` kills at have names; these here are all that there are.
"""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL
from typing import TypeVar

import faults
import power
import pytest
from faults import Call, Kind, Mode, Server
from scenarios import PUBLISHED, SCENARIOS, Scenario, State, quietly, state_of
from store_kit import flaws, named_files, segment_files

from mmsearch.retrieval.store import LocalStore, is_index

pytestmark = pytest.mark.skipif(faults.lacking() is not None, reason=str(faults.lacking()))

_FEW = 16
_MANY = 120
_EVERY = pytest.param(None, marks=pytest.mark.slow, id="every")

_T = TypeVar("_T")


@dataclass(frozen=True)
class Case:
    """A scenario, and what it does when nothing disturbs it.

    Attributes:
        name: of the scenario.
        place: what each run gets a copy of.
        states: what readers see before the run, after each of its transactions, and after it.
        log: its calls and marks.
    """

    name: str
    place: Path
    states: list[State]
    log: list[Call]

    @property
    def scenario(self) -> Scenario:
        return SCENARIOS[self.name]

    @property
    def calls(self) -> list[Call]:
        return [call for call in self.log if call.kind != Kind.MARK]

    def committed(self) -> list[int]:
        """How many transactions are committed when each of the calls begins."""
        done, counts = 0, []
        for call in self.log:
            if call.kind != Kind.MARK:
                counts.append(done)
            elif call.name in PUBLISHED:
                done += 1
        return counts

    def copy(self, to: Path) -> Path:
        return Path(shutil.copytree(self.place, to))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with faults.serve(faults.build(tmp_path_factory.mktemp("library"))) as server:
        yield server


@pytest.fixture(scope="module")
def case(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    made: dict[str, Case] = {}

    def get(name: str) -> Case:
        if name not in made:
            made[name] = _observe(server, name, tmp_path_factory.mktemp(name))
        return made[name]

    return get


def _observe(server: Server, name: str, folder: Path) -> Case:
    scenario = SCENARIOS[name]
    place, whole, before, logged = (folder / part for part in ("place", "whole", "before", "logged"))
    place.mkdir()
    scenario.prepare(place, folder / "shared")
    for copy in (whole, before, logged):
        shutil.copytree(place, copy)
    states = [state_of(before / scenario.index)]

    def look(step: str) -> None:
        if step in PUBLISHED:
            states.append(state_of(whole / scenario.index))

    scenario.run(whole / scenario.index, look)
    after = state_of(whole / scenario.index)
    if states[-1] != after:
        states.append(after)
    outcome = server.run(name, logged, Mode.WATCH, log=folder / "log")
    assert (outcome.code, outcome.error) == (0, None)
    case = Case(name, place, states, faults.read_log(folder / "log"))
    assert outcome.calls == len(case.calls)
    return case


def _sample(things: Sequence[_T], most: int | None) -> Sequence[_T]:
    """All of them, or of too many the last, and as many as that at even distances."""
    if most is None or len(things) <= most:
        return things
    early, last = things[: -most // 2], things[-most // 2 :]
    return [*early[:: -(-len(early) // (most // 2))], *last]


def _orphans(store: LocalStore) -> set[str]:
    return segment_files(store) - named_files(store)


def _check(case: Case, place: Path, allowed: Sequence[State]) -> None:
    """What was committed is there and sound, and the run can be repeated."""
    index = place / case.scenario.index
    assert state_of(index) in allowed
    if is_index(index):
        store = LocalStore.open(index)
        assert flaws(store) == []
        with store.writer():  # sweeps
            pass
        assert _orphans(store) == set()
    case.scenario.run(index, quietly)
    assert state_of(index) == case.states[-1]
    store = LocalStore.open(index)
    assert flaws(store) == []
    assert _orphans(store) == set()


def _die(case: Case, server: Server, folder: Path, mode: Mode, numbers: Iterable[int]) -> None:
    committed = case.committed()
    for number in numbers:
        place = case.copy(folder / str(number))
        assert server.run(case.name, place, mode, number).code == -SIGKILL
        done = committed[number]
        try:
            _check(case, place, case.states[done : done + 2])
        except Exception as error:
            raise AssertionError(f"{mode.name} at call {number}, {_show(case, number)}") from error
        shutil.rmtree(place)


def _show(case: Case, number: int) -> str:
    call = case.calls[number]
    return f"{call.kind.name} {Path(call.name).name} at {call.offset} ({len(call.data)} bytes)"


def test_every_call_is_seen(case: Callable[[str], Case]) -> None:
    seen = {f"{call.kind.name} {Path(call.name).name}" for name in SCENARIOS for call in case(name).calls}
    for pattern in (
        r"MKDIR index",
        r"CREATE lock",
        r"CREATE catalog\.sqlite-wal",
        r"WRITE catalog\.sqlite-wal",
        r"SYNC catalog\.sqlite-wal",
        r"WRITE catalog\.sqlite",
        r"SYNC catalog\.sqlite",
        r"TRUNCATE catalog\.sqlite",
        r"UNLINK catalog\.sqlite-wal",
        r"CREATE image-\d+\.seg\.tmp",
        r"WRITE image-\d+\.seg\.tmp",
        r"SYNC image-\d+\.seg\.tmp",
        r"RENAME image-\d+\.seg\.tmp",
        r"SYNC segments",
        r"UNLINK image-\d+\.seg",
        r"SYNC tokens-\d+\.seg\.tmp",
        r"RENAME tokens-\d+\.seg\.tmp",
        r"UNLINK tokens-\d+\.seg",
        r"RENAME catalog\.sqlite\.new",
        r"SYNC index",
    ):
        assert any(re.fullmatch(pattern, one) for one in seen), pattern


@pytest.mark.parametrize("most", [_MANY, _EVERY])
@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_at_every_call(
    case: Callable[[str], Case], server: Server, tmp_path: Path, name: str, most: int | None
) -> None:
    observed = case(name)
    numbers = [at for at, call in enumerate(observed.calls) if most is None or len(call.data) != 1]  # shared memory
    _die(observed, server, tmp_path, Mode.KILL, _sample(numbers, most))


@pytest.mark.parametrize("most", [_FEW, _EVERY])
@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_in_the_middle_of_a_write(
    case: Callable[[str], Case], server: Server, tmp_path: Path, name: str, most: int | None
) -> None:
    observed = case(name)
    long = [number for number, call in enumerate(observed.calls) if len(call.data) > 1]
    _die(observed, server, tmp_path, Mode.TEAR, _sample(long, most))


@dataclass(frozen=True)
class Survival:
    """A run that met a fault and went on.

    Attributes:
        at: the call that it met.
        error: the class and message of what it raised, or None.
        loss: what was lost or cannot be repeated; None where all is well.
    """

    at: str
    error: str | None
    loss: str | None


Survive = Callable[[str, Mode, int | None], list[Survival]]


@pytest.fixture(scope="module")
def survive(case: Callable[[str], Case], server: Server, tmp_path_factory: pytest.TempPathFactory) -> Survive:
    """Runs (scenario, mode, how many of its places) in processes that live on; each only once."""
    known: dict[tuple[str, Mode, int | None], list[Survival]] = {}

    def get(name: str, mode: Mode, most: int | None) -> list[Survival]:
        if (name, mode, most) not in known:
            observed = case(name)
            folder = tmp_path_factory.mktemp(f"{name}-{mode.name}")
            numbers = _sample([at for at, call in enumerate(observed.calls) if _meets(mode, call)], most)
            known[name, mode, most] = [_survival(observed, server, folder, mode, number) for number in numbers]
        return known[name, mode, most]

    return get


def _meets(mode: Mode, call: Call) -> bool:
    if mode == Mode.BROKEN_SYNC:
        return call.kind == Kind.SYNC
    return call.grows and (mode == Mode.FULL or len(call.data) > 1)


def _survival(case: Case, server: Server, folder: Path, mode: Mode, number: int) -> Survival:
    place = case.copy(folder / str(number))
    outcome = server.run(case.name, place, mode, number)
    loss = None
    if outcome.code != 0:
        loss = f"the same process cannot do it once the disk is well (code {outcome.code})"
    elif outcome.seen not in case.states[case.committed()[number] :]:
        loss = f"readers see {outcome.seen}"
    elif outcome.error is None and outcome.seen != case.states[-1]:
        loss = f"no error, and readers see {outcome.seen}"
    else:
        try:
            _check(case, place, [case.states[-1]])
        except Exception as error:
            loss = repr(error)
    shutil.rmtree(place)
    return Survival(f"{mode.name} at call {number}, {_show(case, number)}", outcome.error, loss)


_DISKS = [
    pytest.param(name, mode, id=f"{name}-{mode.name}")
    for name in SCENARIOS
    for mode in (Mode.FULL, Mode.SHORT, Mode.BROKEN_SYNC)
]


@pytest.mark.parametrize("most", [_FEW, _EVERY])
@pytest.mark.parametrize(("name", "mode"), _DISKS)
def test_a_bad_disk_loses_nothing(survive: Survive, name: str, mode: Mode, most: int | None) -> None:
    assert [one for one in survive(name, mode, most) if one.loss is not None] == []


@pytest.mark.parametrize("most", [_FEW, _EVERY])
@pytest.mark.parametrize(("name", "mode"), _DISKS)
def test_a_bad_disk_is_called_one(survive: Survive, name: str, mode: Mode, most: int | None) -> None:
    """Not a damaged index: whoever repairs that, repairs what is well."""
    words = r"IndexUnusable: .*(No space left on device|disk is full|disk I/O error|Input/output error|unable to open)"
    raised = [one for one in survive(name, mode, most) if one.error is not None]
    assert [one for one in raised if not re.match(words, str(one.error))] == []


_CUTS: tuple[tuple[power.Data, power.Names], ...] = (
    ("synced", "synced"),
    ("synced", "all"),
    ("some", "synced"),
    ("some", "all"),
    ("all", "synced"),
)


def _cuts(case: Case, server: Server, folder: Path) -> Iterator[tuple[power.Image, int, str]]:
    """What power cuts may leave at each call, without those that leave the same; and what was committed before."""
    chance = random.Random(0)
    running = case.copy(folder / "running")
    disk = power.Disk(running)
    assert server.run(case.name, running, Mode.WATCH, log=folder / "log").code == 0
    seen: set[tuple[power.Image, int]] = set()
    done = 0
    for call in faults.read_log(folder / "log"):
        for data, names in _CUTS:
            image = disk.cut(data, names, chance)
            if (image, done) not in seen:
                seen.add((image, done))
                yield image, done, f"{data} data and {names} names before {call.kind.name} {Path(call.name).name}"
        if call.kind != Kind.MARK:
            disk.do(call)
        elif call.name in PUBLISHED:
            done += 1


_WHOLE = ("create-below", "commit", "merge")  # these at every point in quick runs too


@pytest.mark.parametrize(
    ("name", "most"),
    [
        pytest.param(name, most, id=f"{name}-{most or 'every'}", marks=marks)
        for name in SCENARIOS
        for most, marks in ([(None, [])] if name in _WHOLE else [(2 * _FEW, []), (None, [pytest.mark.slow])])
    ],
)
def test_a_power_cut(case: Callable[[str], Case], server: Server, tmp_path: Path, name: str, most: int | None) -> None:
    observed = case(name)
    for image, done, when in _sample(list(_cuts(observed, server, tmp_path)), most):
        place = tmp_path / "left"
        power.restore(image, place)
        try:
            _check(observed, place, observed.states[done : done + 2])
        except Exception as error:
            raise AssertionError(f"power cut with {when}") from error
        shutil.rmtree(place)
