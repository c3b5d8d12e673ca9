"""Pictures in the terminal: only where it answers that it shows them, and not a byte of them elsewhere."""

from __future__ import annotations

import base64
import io
import os
import re
import select
import signal
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_kit import MAIN, Result
from PIL import Image

from mmsearch.thumbnails import may_speak_kitty

pty = pytest.importorskip("pty")
fcntl = pytest.importorskip("fcntl")
termios = pytest.importorskip("termios")

Draw = Callable[..., Path]

_ASKED = b"\x1b_Gi=31,s=1,v=1,a=q"
_YES, _NO = b"\x1b_Gi=31;OK\x1b\\\x1b[?62;c", b"\x1b[?62;c"
_KITTY = {"TERM": "xterm-kitty"}
_SENT = re.compile(rb"\x1b_G([^;\x1b]*);?([^\x1b]*)\x1b\\")
_PLACE = "\U0010eeee".encode()


@pytest.fixture
def indexed(run: Callable[..., Result], tmp_path: Path, draw: Draw) -> Path:
    folder = tmp_path / "pictures"
    draw(folder / "red.png", "red", size=(120, 80))
    draw(folder / "blue.png", "blue", size=(60, 120))
    assert run("index", folder, "--model", "fake").code == 0
    return folder


class Terminal:
    """A terminal that runs one command and answers what it is asked with fixed bytes."""

    def __init__(self, answer: bytes, *, pixels: tuple[int, int] = (960, 720), columns: int = 120) -> None:
        self.answer, self.pixels, self.columns = answer, pixels, columns
        self.typed = b""

    def run(self, *arguments: str, **environment: str) -> tuple[int, bytes]:
        """The exit code of a command, and all that it wrote to the terminal."""
        clean = {name: value for name, value in os.environ.items() if name not in _TOLD}
        process, ours = pty.fork()
        if process == 0:
            os.read(0, 1)  # until the window has its size
            os.execvpe(MAIN[0], [*MAIN, *arguments], {**clean, **environment})
        size = struct.pack("HHHH", 40, self.columns, *self.pixels)
        fcntl.ioctl(ours, termios.TIOCSWINSZ, size)
        attributes = termios.tcgetattr(ours)
        attributes[3] &= ~(termios.ICANON | termios.ECHO)
        termios.tcsetattr(ours, termios.TCSANOW, attributes)
        os.write(ours, b"x" + self.typed)
        written, answered = b"", False
        end = time.monotonic() + 120
        while time.monotonic() < end and select.select([ours], [], [], 60)[0]:
            try:
                block = os.read(ours, 65536)
            except OSError:  # Linux says so when the other end is closed
                break
            written += block
            if not answered and b"\x1b[c" in written:
                answered = True
                os.write(ours, self.answer)
        os.close(ours)
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), written


_TOLD = {"TERM", "TERM_PROGRAM", "TMUX", "STY", "KITTY_WINDOW_ID", "COLUMNS", "LINES"}


def _pictures(written: bytes) -> list[Image.Image]:
    """What was sent as pictures, in order."""
    data: dict[bytes, str] = {}
    for keys, payload in _SENT.findall(written):
        known = dict(pair.split(b"=") for pair in keys.split(b","))
        if b"m" in known:
            data[known[b"i"]] = data.get(known[b"i"], "") + payload.decode()
    return [Image.open(io.BytesIO(base64.b64decode(one))) for one in data.values()]


def test_a_terminal_that_answers_gets_pictures(indexed: Path) -> None:
    code, written = Terminal(_YES).run("query", "red", **_KITTY)
    assert code == 0
    assert written.count(_ASKED) == 1
    wide, tall = _pictures(written)
    assert wide.width > wide.height and tall.height > tall.width
    assert wide.convert("RGB").getpixel((2, 2)) == (255, 0, 0)
    lines = written.split(b"\n")
    first = next(at for at, line in enumerate(lines) if b"red.png" in line)
    assert _PLACE in lines[first + 1]
    assert b"blue.png" in written[written.rindex(b"red.png") :]


def test_pictures_fit_between_the_path_and_the_edge(indexed: Path) -> None:
    _, written = Terminal(_YES, columns=30).run("query", "red", **_KITTY)
    rows = [line for line in written.decode().split("\n") if "\U0010eeee" in line]
    assert rows
    for row in rows:
        assert row.count("\U0010eeee") + len(row) - len(row.lstrip(" ")) <= 30


@pytest.mark.parametrize(
    ("answer", "pixels"),
    [(_NO, (960, 720)), (b"\x1b_Gi=31;ENOTSUPPORTED\x1b\\" + _NO, (960, 720)), (_YES, (0, 0))],
    ids=["no", "an error", "no size"],
)
def test_a_terminal_that_does_not_gets_none(answer: bytes, pixels: tuple[int, int], indexed: Path) -> None:
    code, written = Terminal(answer, pixels=pixels).run("query", "red", **_KITTY)
    assert code == 0
    assert b"red.png" in written
    assert _PLACE not in written and b"a=p" not in written
    code, written = Terminal(answer, pixels=pixels).run("query", "red", "--thumbnails", **_KITTY)
    assert code == 2
    assert b"this terminal does not show pictures" in written and b"--html" in written


def test_a_terminal_that_says_nothing_is_waited_for_but_not_long(indexed: Path) -> None:
    since = time.monotonic()
    code, written = Terminal(b"").run("query", "red", **_KITTY)
    assert code == 0 and b"red.png" in written and _PLACE not in written
    assert time.monotonic() - since < 60


def test_what_is_typed_already_is_not_taken(indexed: Path) -> None:
    terminal = Terminal(_YES)
    terminal.typed = b"ls"
    code, written = terminal.run("query", "red", **_KITTY)
    assert code == 0 and b"red.png" in written
    assert _ASKED not in written and _PLACE not in written


@pytest.mark.parametrize(
    "environment",
    [
        {"TERM": "xterm-256color"},
        {"TERM": "dumb"},
        {"TERM": "tmux-256color", "TMUX": "/socket,1,0", "KITTY_WINDOW_ID": "1"},
        {"TERM": "screen", "STY": "1.host", "KITTY_WINDOW_ID": "1"},
        {"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"},
        {"TERM": "xterm-256color", "KONSOLE_VERSION": "230800"},
        {},
    ],
    ids=["xterm", "dumb", "tmux", "screen", "wezterm", "konsole", "nothing"],
)
def test_others_are_not_even_asked(environment: dict[str, str], indexed: Path) -> None:
    assert not may_speak_kitty(environment)
    if environment.get("TERM") not in ("xterm-256color", "tmux-256color"):
        return  # one that is started stands for all
    code, written = Terminal(_YES).run("query", "red", **environment)
    assert code == 0
    assert b"\x1b" not in written
    assert b"red.png" in written


@pytest.mark.parametrize("arguments", [("--json",), ("--paths0",), ("--no-thumbnails",)])
def test_nor_where_something_else_was_asked_for(arguments: tuple[str, ...], indexed: Path) -> None:
    code, written = Terminal(_YES).run("query", "red", *arguments, **_KITTY)
    assert code == 0
    assert b"\x1b" not in written


def test_a_pipe_gets_lines(indexed: Path) -> None:
    done = subprocess.run(
        [*MAIN, "query", "red"], capture_output=True, env={**os.environ, **_KITTY}, timeout=120, check=True
    )
    assert b"\x1b" not in done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 2


def test_pictures_that_cannot_be_read_leave_their_lines(indexed: Path) -> None:
    (indexed / "red.png").write_bytes(b"no picture")
    (indexed / "blue.png").unlink()
    code, written = Terminal(_YES).run("query", "red", **_KITTY)
    assert code == 0
    assert b"red.png" in written and b"blue.png" in written
    assert _PLACE not in written and _pictures(written) == []


def test_names_stay_inert_beside_pictures(run: Callable[..., Result], indexed: Path, draw: Draw) -> None:
    (indexed / "red.png").rename(indexed / "\x1b]0;owned\x07\u202ered.png")
    assert run("index").code == 0
    _, written = Terminal(_YES).run("query", "red", **_KITTY)
    assert b"\\x1b]0;owned\\x07\\u202ered.png" in written
    assert b"\x1b]0;" not in written and "\u202e".encode() not in written
    assert _PLACE in written


def test_without_the_package_there_are_only_lines(
    run: Callable[..., Result], indexed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmsearch import thumbnails

    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in _TOLD:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-kitty")
    assert thumbnails.drawing(wanted=False) is None
    result = run("query", "red", "--thumbnails")
    assert result.code == 1
    assert "pip install 'mmsearch[terminal]'" in result.err


def test_a_job_in_the_background_is_not_stopped(indexed: Path) -> None:
    """Which asking the terminal would do: only the job in front may change its modes."""
    process, ours = pty.fork()
    if process == 0:
        signal.signal(signal.SIGTTOU, signal.SIG_DFL)
        fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 960, 720))
        job = os.fork()
        if job == 0:
            os.setpgid(0, 0)
            environment = {name: value for name, value in os.environ.items() if name not in _TOLD}
            os.execvpe(MAIN[0], [*MAIN, "query", "red"], {**environment, **_KITTY})
        _, status = os.waitpid(job, os.WUNTRACED)
        os._exit(99 if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status))
    written = b""
    while select.select([ours], [], [], 60)[0]:
        try:
            written += os.read(ours, 65536)
        except OSError:
            break
    os.close(ours)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    assert b"red.png" in written and b"\x1b" not in written
