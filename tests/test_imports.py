"""What starting up may load: an import is a budget. And the public names are listed once."""

from __future__ import annotations

import subprocess
import sys

import pytest

import mmsearch

_HEAVY = {"torch", "onnxruntime", "faiss", "sqlalchemy", "numpy", "transformers", "open_clip", "PIL", "rich"}


def _loaded(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after running `code`."""
    script = f"{code}\nimport sys\nprint('loaded:', *{{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    last = done.stdout.splitlines()[-1]
    assert last.startswith("loaded: ")
    return set(last.split()[1:])


def _command(*arguments: str) -> str:
    return f"""
import sys
sys.argv = ["mmsearch", *{list(arguments)!r}]
from mmsearch.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""


@pytest.mark.parametrize("arguments", [("--help",), ("query", "--help"), ("index", "--help"), ("--version",)])
def test_help_loads_nothing_heavy(arguments: tuple[str, ...]) -> None:
    assert _loaded(_command(*arguments)) & _HEAVY == set()


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert _loaded("import mmsearch") & (_HEAVY | {"typer", "click"}) == set()


def test_the_plain_types_need_no_numpy() -> None:
    assert (
        _loaded("import mmsearch.retrieval.types, mmsearch.retrieval.errors, mmsearch.retrieval.encoders") & _HEAVY
        == set()
    )


def test_public_names_are_sorted_and_complete() -> None:
    assert list(mmsearch.__all__) == sorted(mmsearch.__all__)
    for name in mmsearch.__all__:
        assert getattr(mmsearch, name) is not None
    assert set(mmsearch.__all__) <= set(dir(mmsearch))
    visible = {name for name in vars(mmsearch) if not name.startswith("_")}
    modules = {name for name in visible if getattr(getattr(mmsearch, name), "__name__", "").startswith("mmsearch.")}
    borrowed = {"annotations", "importlib", "TYPE_CHECKING", "Any"}
    assert visible - modules - borrowed <= set(mmsearch.__all__)


def test_every_error_is_public() -> None:
    from mmsearch.retrieval import errors

    ours = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert ours <= set(mmsearch.__all__)
    for name in ours:
        assert issubclass(getattr(errors, name), errors.MMSearchError)
        assert name in (errors.__doc__ or ""), f"{name} is missing in the tree of errors.py"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        mmsearch.nonsense  # noqa: B018
