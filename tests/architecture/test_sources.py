"""Rules for the sources that import contracts cannot express."""

import ast
import re
from pathlib import Path

import nixery

PACKAGE = Path(nixery.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))


def test_there_are_sources() -> None:
    assert len(SOURCES) > 40


def test_only_the_command_line_reads_the_environment() -> None:
    readers = {
        path.relative_to(PACKAGE)
        for path in SOURCES
        if re.search(r"\bos\.(environb?|getenvb?)\b|\bimport environ\b", path.read_text())
    }
    assert readers
    assert not [reader for reader in readers if reader.parts[0] != "cli"]


def test_every_module_has_a_docstring() -> None:
    assert not [path for path in SOURCES if not path.read_text().startswith('"""')]


def test_every_process_is_started_with_an_environment() -> None:
    """A child that inherits the server's environment has its secrets; see ``nixery.nix.environments``."""
    starters = {"run", "Popen", "call", "check_call", "check_output", "create_subprocess_exec", "getoutput"}
    started = 0
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            # Processes are started only through the name of their module, which the checks below can see.
            if isinstance(node, ast.ImportFrom):
                assert node.module not in {"subprocess", "multiprocessing", "pty"}, path
                assert node.module != "os" or not {a.name for a in node.names} & {"system", "popen"}, path
            if isinstance(node, ast.Attribute):
                assert not re.match(r"system|popen|exec[lv]|spawn|posix_spawn|fork", node.attr) or not (
                    isinstance(node.value, ast.Name) and node.value.id == "os"
                ), path
                assert node.attr != "create_subprocess_shell", path
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            of, name = node.func.value, node.func.attr
            if isinstance(of, ast.Name) and of.id in {"subprocess", "asyncio"} and name in starters:
                if of.id == "asyncio" and name == "run":
                    continue
                started += 1
                keywords = {keyword.arg: keyword.value for keyword in node.keywords}
                assert "env" in keywords, f"{path}:{node.lineno}"
                environment = ast.unparse(keywords["env"])
                assert environment != "None", f"{path}:{node.lineno}"
                assert "os.environ" not in environment, f"{path}:{node.lineno}"
                assert "close_fds" not in keywords or ast.unparse(keywords["close_fds"]) == "True", path
    assert started > 5
