"""Imports point the way that setup.cfg says, also where import-linter is not installed."""

import ast
import configparser
from pathlib import Path

import pytest
from thinned import ONE_IN

ROOT = Path(__file__).resolve().parent.parent


def contract(name: str) -> configparser.SectionProxy:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser[f"importlinter:contract:{name}"]


def layers() -> list[list[str]]:
    lines = contract("layers")["layers"].split("\n")
    return [[name.strip() for name in line.split("|")] for line in lines if line.strip()]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found.add(node.module or "")
    return found


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


MODULES = {module_name(path): imports(path) for path in (ROOT / "project").rglob("*.py")}


def test_every_module_has_a_layer() -> None:
    named = [name for layer in layers() for name in layer]
    strays = [m for m in MODULES if m not in ("project", "project.__main__") and not any(inside(m, n) for n in named)]
    assert not strays


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_downward(module: str) -> None:
    if module in ("project", "project.__main__"):
        return  # the package's front and its command sit above all layers
    order = layers()
    level = next(i for i, layer in enumerate(order) if any(inside(module, name) for name in layer))
    own = next(name for name in order[level] if inside(module, name))
    for imported in MODULES[module]:
        for other, layer in enumerate(order):
            for name in layer:
                if inside(imported, name) and name != own:
                    assert other > level, f"{module} imports {imported}, which is not below it"


def test_numerics_do_not_know_lightning() -> None:
    packages = contract("pure")["source_modules"].split()
    offenders = [
        module
        for module, imported in MODULES.items()
        if any(inside(module, package) for package in packages) and any(inside(name, "lightning") for name in imported)
    ]
    assert not offenders


def test_tests_that_are_thinned_are_there() -> None:
    tests = Path(__file__).parent
    for name in ONE_IN:
        path, _, test = name.partition("::")
        assert f"def {test}(" in (tests / path).read_text(), name
