"""The walls of the code base, read off its syntax trees: who may import whom, and what must not occur."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

_FOLDERS = {"mmsearch": "mmsearch", "indexers": "mmsearch.indexers", "retrieval": "mmsearch.retrieval"}

_ARROW = {
    "mmsearch.retrieval": ("mmsearch.retrieval",),
    "mmsearch.indexers": ("mmsearch.retrieval", "mmsearch.indexers"),
    "mmsearch": ("mmsearch",),
}
"""What each part may import of mmsearch: the arrow is mmsearch -> indexers -> retrieval."""

_WALLS = {
    "torch": (
        "mmsearch.retrieval.encoders.open_clip",
        "mmsearch.retrieval.encoders.towers",
        "mmsearch.retrieval.encoders.export",
        "mmsearch.retrieval.rerank.blip",
        "mmsearch.retrieval.rerank.cross_encoder",
        "mmsearch.indexers.train",
    ),
    "faiss": ("mmsearch.retrieval.store.segments",),
    "sqlalchemy": tuple(f"mmsearch.retrieval.store.{name}" for name in ("catalog", "migrations", "models", "schema")),
    "PIL": (
        "mmsearch.retrieval.media",
        "mmsearch.retrieval.encoders",
        "mmsearch.retrieval.explain",
        "mmsearch.indexers.train",
        "mmsearch.demo",
    ),
    "matplotlib": ("mmsearch.curves",),
    "pyarrow": ("mmsearch.indexers.tables",),
    "typer": ("mmsearch.cli",),
    "rich": ("mmsearch.cli", "mmsearch.output", "mmsearch.progress", "mmsearch.thumbnails"),
    "textual_image": ("mmsearch.thumbnails",),
}
"""Third-party package -> the modules (and everything below them) that may import it."""
_WALLS |= dict.fromkeys(("open_clip", "timm", "torchvision"), _WALLS["torch"])
_WALLS["pillow_heif"] = _WALLS["PIL"]
_WALLS["click"] = _WALLS["typer"]

_EAGER = ("torch", "open_clip", "transformers", "faiss", "sqlalchemy", "onnxruntime")
"""Packages that only the modules behind their wall may import at top level."""

_MODULE_NAMES = ("utils", "helpers", "common", "manager", "misc")
_WORDS = re.compile(
    r"^(process|handle|clip)_|(Manager|Service|Helper)$|vectori[sz]e|confidence|n_results|similarity_percent|^IndexError$"
)
"""Words that mean too much or something else here; see the list of words to use in the design."""

_MACHINE_PATH = re.compile(r"(^|[^A-Za-z0-9_.}])/(root|work|farm|opt|home)/")
_TEXT = {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".sh", ".json", ""}


def _module(path: Path, repository: Path) -> str:
    first, *rest = path.relative_to(repository).with_suffix("").parts
    return ".".join([_FOLDERS[first], *(part for part in rest if part != "__init__")])


def _sources(repository: Path) -> dict[str, Path]:
    links = {repository / "mmsearch" / "retrieval", repository / "mmsearch" / "indexers"}
    return {
        _module(path, repository): path
        for folder in _FOLDERS
        for path in sorted((repository / folder).rglob("*.py"))
        if links.isdisjoint(path.parents)
    }


def _type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _imports(node: ast.AST, *, types: bool = False) -> Iterator[tuple[str, ast.stmt, bool]]:
    """Imported module names, the statement, and whether it is for type checkers only."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield alias.name, child, types
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"relative import in line {child.lineno}"
            assert child.module is not None
            for alias in child.names:
                yield f"{child.module}.{alias.name}", child, types
        elif _type_checking(child):
            assert isinstance(child, ast.If)
            for statement in child.body:
                yield from _imports(ast.Module([statement], []), types=True)
            for statement in child.orelse:
                yield from _imports(ast.Module([statement], []), types=types)
        else:
            yield from _imports(child, types=types)


def _within(module: str, parts: tuple[str, ...]) -> bool:
    return any(module == part or module.startswith(f"{part}.") for part in parts)


@pytest.fixture(scope="module")
def trees(repository: Path) -> dict[str, ast.Module]:
    found = {name: ast.parse(path.read_text("utf-8"), str(path)) for name, path in _sources(repository).items()}
    assert len(found) > 20
    return found


def test_imports_follow_the_arrow(trees: dict[str, ast.Module]) -> None:
    wrong = []
    for module, tree in trees.items():
        part = next(part for part in _ARROW if _within(module, (part,)))
        for name, statement, _ in _imports(tree):
            ours = name.split(".")[0] in ("mmsearch", "retrieval", "indexers")
            if ours and not _within(name, _ARROW[part]):
                wrong.append(f"{module}:{statement.lineno} imports {name}")
    assert wrong == []


def test_third_party_packages_stay_behind_their_walls(trees: dict[str, ast.Module]) -> None:
    wrong = []
    for module, tree in trees.items():
        for name, statement, types in _imports(tree):
            package = name.split(".")[0]
            if package in _WALLS and not types and not _within(module, _WALLS[package]):
                wrong.append(f"{module}:{statement.lineno} imports {name}")
    assert wrong == []


def test_heavy_packages_are_imported_where_they_are_needed(trees: dict[str, ast.Module]) -> None:
    wrong = []
    for module, tree in trees.items():
        top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        for name, statement, _ in _imports(top):
            package = name.split(".")[0]
            if package in _EAGER and not _within(module, _WALLS.get(package, ())):
                wrong.append(f"{module}:{statement.lineno} imports {name} at the top")
    assert wrong == []


def test_every_module_postpones_annotations(trees: dict[str, ast.Module]) -> None:
    wrong = [
        module
        for module, tree in trees.items()
        if len(tree.body) > 1 and not any(name == "__future__.annotations" for name, _, _ in _imports(tree))
    ]
    assert wrong == []


def test_the_library_never_prints_and_never_exits(trees: dict[str, ast.Module]) -> None:
    wrong = []
    for module, tree in trees.items():
        if _within(module, ("mmsearch.cli", "mmsearch.output", "mmsearch.progress", "mmsearch.indexers.train")):
            continue
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        wrong += [
            f"{module}:{call.lineno} calls {ast.unparse(call.func)}"
            for call in calls
            if ast.unparse(call.func) in ("print", "sys.exit", "exit", "os._exit")
        ]
    assert wrong == []


def test_modules_are_named_after_what_they_hold(trees: dict[str, ast.Module]) -> None:
    assert [name for name in trees if name.rsplit(".", 1)[-1] in _MODULE_NAMES] == []


def test_names_in_code_are_the_projects_words(trees: dict[str, ast.Module]) -> None:
    wrong = []
    for module, tree in trees.items():
        for node in ast.walk(tree):
            name = node.arg if isinstance(node, ast.arg) else getattr(node, "name", None)
            if (
                isinstance(name, str)
                and isinstance(node, ast.arg | ast.FunctionDef | ast.ClassDef)
                and _WORDS.search(name)
            ):
                wrong.append(f"{module}:{node.lineno} {name}")
    assert wrong == []


def test_no_path_of_one_machine_is_written_down(repository: Path) -> None:
    wrong = []
    for folder in ("benchmarks", "docs", "indexers", "retrieval", "mmsearch", "scripts", "tests", ".ci", "."):
        paths = (repository / folder).iterdir() if folder == "." else (repository / folder).rglob("*")
        for path in paths:
            if (
                path.is_file()
                and path.name != ".git"  # of a linked worktree: a file that says where the repository is
                and path.suffix in _TEXT
                and path.stat().st_size < 2**20
                and "__pycache__" not in path.parts
            ):
                lines = path.read_text("utf-8", errors="replace").splitlines()
                wrong += [f"{path}:{n}" for n, line in enumerate(lines, 1) if _MACHINE_PATH.search(line)]
    assert wrong == []


def test_a_wall_names_modules_that_exist(trees: dict[str, ast.Module]) -> None:
    # A wall around a module that was renamed protects nothing.
    for package in ("torch", "faiss", "sqlalchemy", "PIL", "pyarrow", "typer"):
        for module in _WALLS[package]:
            assert any(_within(name, (module,)) for name in trees), f"{package}: {module} is gone"


def test_the_check_sees_what_it_should() -> None:
    source = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import torch
def later():
    from faiss import IndexFlat
"""
    found = {name: types for name, _, types in _imports(ast.parse(source))}
    assert found == {"typing.TYPE_CHECKING": False, "torch": True, "faiss.IndexFlat": False}


def test_links_lead_to_the_folders(repository: Path) -> None:
    for name in ("retrieval", "indexers"):
        link = repository / "mmsearch" / name
        assert link.is_symlink()
        assert link.resolve() == repository / name
