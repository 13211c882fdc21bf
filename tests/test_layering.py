"""Data flow goes one way: a layer imports only layers before it in the list."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "llmdpd_jax"
LAYERS = [
    "errors",
    "types",
    "draws",
    "parallel",
    "tasks",
    "data",
    "prompts",
    "models",
    "diffusion",
    "agents",
    "config",
    "training",
    "policy",
    "evaluation",
    "export",
    "bench",
    "cli",
]


def layer_of(path: Path) -> str | None:
    """The layer a source file belongs to; None for the package's own `__init__` and `__main__`."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return None if first.startswith("__") else first


def imported_layers(tree: ast.AST) -> set[str]:
    """The package's layers a module imports, at its top or inside functions."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute, so that this test can read them"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == PACKAGE.name and len(parts) > 1 and not parts[1].startswith("__"):
                found.add(parts[1])
    return found & {path.name.removesuffix(".py") for path in PACKAGE.iterdir()}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_only_lower_layers(path):
    layer = layer_of(path)
    if layer is None:
        return
    assert layer in LAYERS, f"{layer} is not a known layer: add it to LAYERS at its place in the data flow"
    allowed = set(LAYERS[: LAYERS.index(layer) + 1])
    higher = imported_layers(ast.parse(path.read_text())) - allowed
    assert not higher, f"{path.name} (layer {layer}) imports the higher layers {sorted(higher)}"


def test_a_forbidden_import_is_seen():
    tree = ast.parse("def f():\n    from llmdpd_jax import cli\n    import llmdpd_jax.agents.llmdpd")
    assert imported_layers(tree) == {"cli", "agents"}
