"""What the documents say is so: their Python compiles, their commands parse, their paths exist, the README's tables are
those of the newest records, and the examples in docstrings run.
"""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import lalic_kernels
from benchmarks import records, shipped
from lalic import cli

ROOT = Path(__file__).parents[1]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
PYTHON = ("python", "py")
SHELL = ("console", "sh", "shell", "bash")
FENCE = re.compile(r"^(```+|~~~+)[ \t]*([\w-]*)[^\n]*\n(.*?)^\1[ \t]*$", re.MULTILINE | re.DOTALL)


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document: str, languages: tuple[str, ...]) -> list[tuple[int, str]]:
    """(line of the fence, content) of the fenced blocks in one of the languages."""
    text = text_of(document)
    return [
        (text.count("\n", 0, match.start()) + 1, match[3]) for match in FENCE.finditer(text) if match[2] in languages
    ]


def commands(block: str) -> Iterator[list[str]]:
    """Words of each command of a shell block: prompts and comments taken off, continued lines joined.

    Where a block has prompts, lines without one are output.
    """
    lines = block.replace("\\\n", " ").splitlines()
    if any(line.startswith("$ ") for line in lines):
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    for line in lines:
        words = shlex.split(line, comments=True)
        if words:
            yield words


def problem(words: list[str]) -> str | None:
    """What is wrong with a command of ours, None if nothing is or it is somebody else's. Nothing is run."""
    program, *rest = words
    if program == "lalic":
        try:
            cli.build_parser().parse_args(rest)
        except SystemExit as stop:
            if stop.code:
                return "not what the command line takes"
    elif program == "make":
        for word in rest:
            name, is_variable, _ = word.partition("=")
            if not re.search(rf"^{name}{' [?]=' if is_variable else ':'}", text_of("Makefile"), re.MULTILINE):
                return f"not in the Makefile: {name}"
    elif program in ("python", "python3") and rest[0].endswith(".py"):
        if not (ROOT / rest[0]).is_file():
            return "no such file"
    elif program in ("python", "python3") and rest[0] == "-m":
        path = ROOT.joinpath(*rest[1].split("."))
        ours = (ROOT / rest[1].partition(".")[0]).is_dir()
        if ours and not path.with_suffix(".py").is_file() and not (path / "__main__.py").is_file():
            return "no such module"
    return None


@pytest.mark.parametrize("document", DOCUMENTS)
def test_fences_are_closed(document: str) -> None:
    fences = re.findall(r"^(?:```|~~~)", text_of(document), re.MULTILINE)
    assert len(fences) == 2 * len(FENCE.findall(text_of(document)))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_blocks_compile(document: str) -> None:
    for line, block in blocks(document, PYTHON):
        compile("\n" * line + block, document, "exec")  # the line in a SyntaxError is the document's


def test_names_in_the_readme_exist() -> None:
    """`lalic.x` and `lalic_kernels.x` in its Python blocks are there, so a renamed function does not stay in it."""
    seen = set()
    for _, block in blocks("README.md", PYTHON):
        for package, name in re.findall(r"(?<![\w.\"'])(lalic(?:_kernels)?)\.(\w+)", block):
            seen.add(f"{package}.{name}")
            assert hasattr(importlib.import_module(package), name), f"README.md uses {package}.{name}"
    assert seen, "README.md shows no Python at all"


def test_commands_are_real() -> None:
    found = [
        (f"{document}:{line}: {shlex.join(words)}", words)
        for document in DOCUMENTS
        for line, block in blocks(document, SHELL)
        for words in commands(block)
    ]
    assert {"lalic", "make", "python"} <= {words[0] for _, words in found}
    wrong = [f"{where}: {sentence}" for where, words in found if (sentence := problem(words))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "line",
    [
        "lalic compres photo.png",
        "lalic compress",
        "lalic compress photo.png --sharpness 3",
        "lalic train",
        "make everything",
        "make demo TORCHES=torch",
        "python -m lalic_kernels.information",
        "python -m benchmarks.race",
        "python scripts/ship.py run",
    ],
)
def test_a_wrong_command_is_seen(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    (words,) = commands(f"$ {line}   # a comment\noutput of it\n")
    assert words == line.split()
    assert problem(words)


def test_a_block_without_prompts_is_all_commands() -> None:
    assert list(commands("# first\nmake demo\nlalic info \\\n  a.lalic\n")) == [
        ["make", "demo"],
        ["lalic", "info", "a.lalic"],
    ]


# Paths

TREES = ("benchmarks", "docs", "lalic", "lalic_kernels", "scripts", "tests")
PATH = re.compile(rf"(?<![\w./-])(?:{'|'.join(TREES)})/[\w./-]*\w")
LINK = re.compile(r"\]\(([^)#:]+)\)")


def missing(text: str, pattern: re.Pattern[str] = PATH, home: Path = ROOT) -> list[str]:
    """Paths in a text that are no file, folder or beginning of one in the repository."""
    return [path for path in pattern.findall(text) if not any((home / path).parent.glob(f"{Path(path).name}*"))]


def texts() -> list[Path]:
    return [*ROOT.glob("*.md"), *(path for tree in TREES for path in (ROOT / tree).rglob("*.md"))]


def test_paths_and_links_in_documents_exist() -> None:
    wrong = {
        str(path.relative_to(ROOT)): found
        for path in texts()
        if (found := missing(text := path.read_text(encoding="utf-8")) + missing(text, LINK, path.parent))
    }
    assert not wrong


def test_documents_that_code_names_exist() -> None:
    pattern = re.compile(r"(?<![\w./-])docs/[\w-]+\.md")
    found = {
        str(path.relative_to(ROOT)): missing(path.read_text(encoding="utf-8"), pattern)
        for tree in TREES
        for path in (ROOT / tree).rglob("*.py")
        if path != Path(__file__)
    }
    assert not {path: names for path, names in found.items() if names}


def test_a_wrong_path_is_seen() -> None:
    assert missing("see `docs/nothing.md`, `lalic/cli.py` and tests/none.py") == ["docs/nothing.md", "tests/none.py"]
    assert missing("[a](docs/format.md) [b](docs/nothing.md) [c](https://x.org/)", LINK) == ["docs/nothing.md"]


# The README's tables under "Results"


def newest(which: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    return max(filter(which, records.load()), key=lambda record: record["date"])


def test_rates_are_those_of_the_newest_records() -> None:
    readme = text_of("README.md")
    assert shipped.with_rates(readme) == readme
    with pytest.raises(ValueError, match=r"has 0 rows of 'WebP' with rates, expected 1"):
        shipped.with_rates(readme.replace("| WebP |", "| webp |"))


def test_times_are_those_of_the_newest_record_beside_both_peers() -> None:
    def by_name(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
        return {name: row for name in names for row in record["complexity"] if row["model"].endswith(name)}

    names = ("LALIC slim", "LALIC full", "mbt2018-mean q6", "ELIC")
    rows = by_name(newest(lambda r: "complexity" in r and len(by_name(r)) == len(names)))
    for ours, name in (("LALIC slim", "`lalic.slim()`"), ("LALIC full", "`lalic.LALIC()`, random weights")):
        ratios = [
            rows[ours][way]["seconds"] / rows[peer][way]["seconds"]
            for peer in ("mbt2018-mean q6", "ELIC")
            for way in ("encode", "decode")
        ]
        assert f"| {name} | {' | '.join(f'{ratio:.2g}' if ratio >= 1 else f'{ratio:.2f}' for ratio in ratios)} |" in (
            text_of("README.md")
        )


# Docstrings

NEEDS_EXAMPLE = ("biwkv", "token_shift", "entropy_params")


@pytest.mark.parametrize("name", [*lalic_kernels.__all__, "rans"])
def test_examples_of_public_functions_run(name: str) -> None:
    subject = getattr(lalic_kernels, name) if name != "rans" else importlib.import_module("lalic_kernels.rans")
    assert subject.__doc__, f"lalic_kernels.{name} has no docstring"
    space = {"torch": torch} | {public: getattr(lalic_kernels, public) for public in lalic_kernels.__all__}
    test = doctest.DocTestParser().get_doctest(subject.__doc__, space, f"lalic_kernels.{name}", None, None)
    assert test.examples or name not in NEEDS_EXAMPLE, f"lalic_kernels.{name} shows no example"
    heard: list[str] = []
    result = doctest.DocTestRunner(verbose=False).run(test, out=heard.append)
    assert not result.failed, "".join(heard)
