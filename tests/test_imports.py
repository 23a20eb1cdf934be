from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(file for package in ("vl_peft", "datamodules") for file in (ROOT / package).rglob("*.py"))


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(file: Path) -> Iterator[str]:
    """Everything that a file imports, wherever in it, as ``package.module.name``."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, *packages: str) -> bool:
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


# Whoever is named first, or lies in it, imports nothing of what is named second.
FORBIDDEN = {
    "datamodules": [
        f"vl_peft.{m}" for m in ("backbones", "tuning", "module", "callbacks", "cli", "tools", "parameters")
    ],
    "vl_peft.backbones": ["datamodules", "vl_peft.module", "vl_peft.callbacks", "vl_peft.cli", "vl_peft.tools"],
    "vl_peft.tuning": ["datamodules", "vl_peft.backbones", "vl_peft.module", "vl_peft.callbacks", "vl_peft.cli"],
    "vl_peft.module": ["datamodules", "vl_peft.callbacks", "vl_peft.cli", "vl_peft.tools"],
    "vl_peft.callbacks": ["datamodules", "vl_peft.cli", "vl_peft.tools"],
    "vl_peft.sampling": ["datamodules", "vl_peft.backbones", "vl_peft.module", "vl_peft.tuning", "lightning"],
    "vl_peft.metrics": ["datamodules", "vl_peft.backbones", "vl_peft.module", "vl_peft.tuning"],
    "vl_peft.features": ["datamodules", "vl_peft.backbones", "vl_peft.module", "vl_peft.tuning"],
    "vl_peft.batch": ["datamodules", "vl_peft"],
    "vl_peft.errors": ["datamodules", "vl_peft", "torch"],
}
# Only these may import what is named first.
ALLOWED = {
    "transformers": ["vl_peft.backbones", "vl_peft.tokenizer", "vl_peft.features.encoders.hub"],
    "datamodules": ["datamodules", "vl_peft.cli", "vl_peft.tools", "vl_peft.check_table"],
}


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_direction_of_imports(file: Path) -> None:
    module, names = module_of(file), list(imports(file))
    for importer, forbidden in FORBIDDEN.items():
        if within(module, importer):
            assert not [name for name in names if within(name, *forbidden)]
    for imported, importers in ALLOWED.items():
        if not within(module, *importers):
            assert not [name for name in names if within(name, imported)]


def test_every_rule_is_about_something() -> None:
    modules = {module_of(file) for file in FILES}
    for importer in FORBIDDEN:
        assert any(within(module, importer) for module in modules)
    everything = {name.split(".")[0] for file in FILES for name in imports(file)}
    assert ALLOWED.keys() <= everything
