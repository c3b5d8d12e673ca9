"""Running the command line, in this process or in one of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmsearch import cli

MAIN = [sys.executable, "-c", "from mmsearch.cli import main; main()"]
"""The command line as a process of its own."""


class Result:
    """What a command wrote, and its exit code."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


Run = Callable[..., Result]


def run_here(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Result:
    """Runs a command in this process. A traceback fails the test, unless -v asks for one."""
    capsys.readouterr()
    code = cli.run([os.fspath(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err or "-v" in arguments
    return Result(code, captured.out, captured.err)


def run_alone(
    *arguments: str | Path, index: Path, stdin: bytes = b"", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """Runs a command in a process of its own, for its bytes."""
    return subprocess.run(
        [*MAIN, *(os.fspath(argument) for argument in arguments)],
        input=stdin,
        capture_output=True,
        env={**os.environ, "MMSEARCH_INDEX": str(index), **environment},
        timeout=120,
        check=False,
    )
