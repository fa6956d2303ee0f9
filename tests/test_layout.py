"""The map of the house holds: imports run one way, packages are declared, files stay short and name no machine.

lalic_kernels -> lalic.nn -> lalic.entropy -> lalic.model -> lalic.zoo, .codec -> .demo, .training, .eval -> .cli
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import lalic

ROOT = Path(__file__).parents[1]
PACKAGES = ("lalic_kernels", "lalic")

# Each part of the house, and the parts it may import besides itself: only ones that stand above it in this table.
MAY_IMPORT: dict[str, set[str]] = {
    "lalic_kernels": set(),
    "lalic.errors": set(),
    "lalic.config": set(),
    "lalic.memory": set(),
    "lalic.files": {"lalic.errors"},
    "lalic.weights": {"lalic.errors"},
    "lalic.nn": {"lalic_kernels", "lalic.config", "lalic.errors", "lalic.files"},
    "lalic.entropy": {"lalic_kernels", "lalic.config", "lalic.errors", "lalic.nn"},
    "lalic.graphs": {"lalic_kernels", "lalic.errors", "lalic.nn"},
    "lalic.device_decode": {"lalic_kernels", "lalic.errors", "lalic.nn", "lalic.entropy", "lalic.graphs"},
    "lalic.device_encode": {
        "lalic_kernels", "lalic.errors", "lalic.nn", "lalic.entropy", "lalic.graphs", "lalic.device_decode",
    },
    "lalic.coding": {
        "lalic_kernels", "lalic.config", "lalic.errors", "lalic.nn", "lalic.entropy", "lalic.graphs",
        "lalic.device_decode", "lalic.device_encode",
    },
    "lalic.model": {
        "lalic_kernels", "lalic.config", "lalic.errors", "lalic.nn", "lalic.entropy", "lalic.graphs", "lalic.coding",
    },
    "lalic.zoo": {"lalic.config", "lalic.errors", "lalic.weights", "lalic.nn", "lalic.model"},
    "lalic.bitstream": {"lalic.errors"},
    "lalic.describe": {"lalic.bitstream"},
    "lalic.images": {"lalic.errors", "lalic.bitstream"},
    "lalic.codec": {"lalic.config", "lalic.errors", "lalic.bitstream", "lalic.images", "lalic.model", "lalic.zoo"},
    "lalic.folder": {"lalic.errors", "lalic.files", "lalic.images"},
    "lalic.demo": {"lalic.errors", "lalic.files", "lalic.bitstream", "lalic.images", "lalic.zoo", "lalic.codec"},
    "lalic.search": {"lalic.errors", "lalic.bitstream", "lalic.codec", "lalic.demo"},
    "lalic.training": {
        "lalic_kernels", "lalic.config", "lalic.errors", "lalic.files", "lalic.nn", "lalic.entropy", "lalic.model",
        "lalic.zoo", "lalic.images", "lalic.codec", "lalic.memory",
    },
    "lalic.eval": {
        "lalic.errors", "lalic.files", "lalic.memory", "lalic.nn", "lalic.images", "lalic.zoo", "lalic.codec",
        "lalic.demo",
    },
    "lalic.cli": {
        "lalic.config", "lalic.errors", "lalic.files", "lalic.memory", "lalic.bitstream", "lalic.describe",
        "lalic.images", "lalic.zoo", "lalic.codec", "lalic.demo", "lalic.search", "lalic.folder", "lalic.training",
        "lalic.eval", "lalic_kernels",
    },
    "lalic.__main__": {"lalic.cli"},
    # The package itself: names imported on first use, from anywhere but the command line.
    "lalic": {"lalic.codec", "lalic.errors", "lalic.model", "lalic.zoo"},
}  # fmt: skip

IMPORT_NAMES = {"pillow": "PIL"}  # distributions whose module is called otherwise


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    """The part of the house that a module of ours belongs to."""
    top, _, rest = module.partition(".")
    return top if top == "lalic_kernels" or not rest else f"{top}.{rest.partition('.')[0]}"


def imports(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """(line, full name) of every import, inside functions too; `lalic.slim` counts as an import of its home."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name != "lalic":
                    yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = module.split(".") if is_package else module.split(".")[:-1]
                base = ".".join([*up[: len(up) - node.level + 1], *filter(None, [base])])
            for alias in node.names:
                if base == "lalic":
                    yield node.lineno, f"lalic.{lalic._HOMES.get(alias.name, alias.name)}"
                else:
                    yield node.lineno, f"{base}.{alias.name}" if base in PACKAGES else base
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "lalic" and node.attr in lalic._HOMES:
            yield node.lineno, f"lalic.{lalic._HOMES[node.attr]}"


def all_imports() -> list[tuple[str, str, int, str]]:
    """(module, file, line, what it imports) over both packages."""
    found = []
    for path in sources(*PACKAGES):
        module, is_package = module_name(path), path.name == "__init__.py"
        for line, name in imports(ast.parse(path.read_text(encoding="utf-8")), module, is_package):
            found.append((module, str(path.relative_to(ROOT)), line, name))
    return found


def backward_arrows(found: list[tuple[str, str, int, str]]) -> list[str]:
    """Imports that the table does not allow, one sentence each."""
    wrong = []
    for module, file, line, name in found:
        if name.partition(".")[0] not in PACKAGES:
            continue
        here, there = part_of(module), part_of(name)
        if here != there and there not in MAY_IMPORT[here]:
            wrong.append(f"{file}:{line}: {here} may not import {there}")
    return wrong


def test_the_table_has_no_circle() -> None:
    seen: set[str] = set()
    for part, allowed in MAY_IMPORT.items():
        assert allowed <= seen, f"{part} may import {allowed - seen}, which the table names after it"
        seen.add(part)


def test_every_module_has_its_place() -> None:
    homeless = {part_of(module_name(path)) for path in sources(*PACKAGES)} - set(MAY_IMPORT)
    assert not homeless, f"give {sorted(homeless)} a place in MAY_IMPORT, and in CONTRIBUTING.md"
    gone = set(MAY_IMPORT) - {part_of(module_name(path)) for path in sources(*PACKAGES)}
    assert not gone, f"MAY_IMPORT names {sorted(gone)}, which does not exist"


def test_no_import_runs_back() -> None:
    found = all_imports()
    assert len(found) > 100  # the walk saw the packages
    wrong = backward_arrows(found)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("lalic_kernels.biwkv.op", "from lalic.config import FULL"),
        ("lalic_kernels.biwkv.op", "def f():\n    import lalic.config"),
        ("lalic_kernels.biwkv.op", "def f():\n    import lalic\n    return lalic.slim()"),
        ("lalic.nn.blocks", "from ..entropy import tables"),
        ("lalic.nn.blocks", "from lalic import codec"),
        ("lalic.entropy.slices", "from lalic import LALIC"),
        ("lalic.model", "from lalic.zoo import slim"),
        ("lalic.codec", "import lalic.cli"),
        ("lalic.training.loop", "if True:\n    from lalic.cli import main"),
    ],
)
def test_the_walk_sees_an_arrow_that_runs_back(module: str, source: str) -> None:
    found = [(module, "file.py", line, name) for line, name in imports(ast.parse(source), module, False)]
    assert len(backward_arrows(found)) == 1


def test_what_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [line for name in ("train", "plot", "eval") for line in project["optional-dependencies"].get(name, [])]
    names = (re.match(r"[A-Za-z0-9_.-]+", line)[0] for line in [*project["dependencies"], *extras])
    declared = {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in names}
    allowed = declared | set(sys.stdlib_module_names) | set(PACKAGES)
    wrong = [f"{file}:{line}: {name}" for _, file, line, name in all_imports() if name.partition(".")[0] not in allowed]
    assert not wrong, "imported, but not a dependency in pyproject.toml:\n" + "\n".join(wrong)


def test_triton_is_imported_by_kernels_only() -> None:
    """The CPU path works without it; files of kernels are imported when they are launched."""
    allowed = {"lalic_kernels/_core/triton_helpers.py"}
    wrong = [
        f"{file}:{line}"
        for _, file, line, name in all_imports()
        if name.partition(".")[0] == "triton" and not re.search(r"/kernels\w*\.py$", file) and file not in allowed
    ]
    assert not wrong, f"triton is imported outside files of kernels: {wrong}"


def test_exact_arithmetic_stands_alone() -> None:
    """No float op serves in it, or what decides a stream could change with one."""
    allowed = ("lalic_kernels.exact", "lalic_kernels._core")
    found = [(file, line, name) for module, file, line, name in all_imports() if module.startswith(allowed[0])]
    assert len(found) > 20
    wrong = [f"{file}:{line}: {name}" for file, line, name in found if name.startswith(PACKAGES)
             and not name.startswith(allowed)]  # fmt: skip
    assert not wrong, f"exact arithmetic imports more than itself and _core: {wrong}"


# What files say


def tracked_files() -> list[Path]:
    """Files under version control; in an unpacked archive, all but hidden folders and what building leaves behind."""
    if (ROOT / ".git").exists():
        words = ["git", "ls-files", "-z"]
        names = subprocess.run(words, cwd=ROOT, check=True, capture_output=True).stdout.decode().split("\0")
        paths = [ROOT / name for name in names if name]
    else:
        paths = [
            path
            for path in ROOT.rglob("*")
            if not any(
                part.startswith(".") or part in ("build", "dist", "__pycache__")
                for part in path.parts[len(ROOT.parts) :]
            )
        ]
    return [path for path in paths if path.is_file()]


# The words are torn in two, so that this file does not contain what it looks for.
_FOLDERS = ("ro ot", "wo rk", "ho me", "o pt", "mn t", "Us ers", "tm p")
_HOSTS = ("py pi.org", "files.python hosted.org", "download.py torch.org", "ana conda.org", "index-url ht" + "tp")


def _any_of(words: tuple[str, ...]) -> str:
    return "|".join(re.escape(word.replace(" ", "")) for word in words)


FORBIDDEN = {
    "a path of somebody's machine": rf"(?<![\w.~/-])(?:[A-Z]:)?[/\\](?:{_any_of(_FOLDERS)})[/\\]",
    "a host of packages": _any_of(_HOSTS),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_names(what: str) -> None:
    pattern = re.compile(FORBIDDEN[what].encode())
    files = tracked_files()
    assert Path(__file__).resolve() in [path.resolve() for path in files]
    found = []
    for path in files:
        data = path.read_bytes()
        if b"\0" in data:
            continue  # pictures, weights, tables: chance would find three letters between slashes in them
        found += [f"{path.relative_to(ROOT)}: {hit[0].decode()}" for hit in pattern.finditer(data)]
    assert not found, f"these files name {what}:\n" + "\n".join(found)


def test_the_patterns_find_what_they_look_for() -> None:
    home = "/" + "ho" + "me/somebody/x"
    for text, what, hit in (
        (f"open('{home}')", "a path of somebody's machine", True),
        ("cd /" + "wo" + "rk/tree", "a path of somebody's machine", True),
        ("https://example.org/" + "ho" + "me/x", "a path of somebody's machine", False),
        ("frame" + "wo" + "rk/x, /usr/bin/env", "a path of somebody's machine", False),
        ("see py" + "pi.org", "a host of packages", True),
        ("pytorch.org names it", "a host of packages", False),
    ):
        assert bool(re.search(FORBIDDEN[what], text)) is hit, text
