"""Who may import whom. Read from the syntax trees, so an import inside a function counts too."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "megatron_longpo"

LEVELS = {
    "utils": 0,
    "config": 1,
    "losses": 2,
    "evolution": 2,
    "parallel": 3,
    "pages": 1,
    "inference": 4,
    **dict.fromkeys(("models", "data", "reference", "conversion", "generation", "evaluation", "estimation"), 4),
    "training": 5,
}
"""A module imports from its own folder and from lower levels only."""

ALLOWED_SIBLINGS = {
    ("reference", "models"),
    ("reference", "data"),
    ("conversion", "models"),
    ("generation", "inference"),
    ("evaluation", "inference"),
}
ALLOWED_MODULES = {("estimation", f"megatron_longpo.models.{name}") for name in ("architecture", "flops", "lora_targets")}
"""Single modules of a sibling: what they import in turn is no more than a folder may."""

MEGATRON_CORE = ("parallel/", "models/", "training/", "data/indexed.py", "conversion/")
TORCH_DISTRIBUTED = ("parallel/", "training/checkpoint", "conversion/")
LAZY = {"torch", "transformers", "datasets", "numpy", "megatron", "transformer_engine", "flash_attn", "apex", "wandb"}
"""Slow to import: not while `config` or `utils` is imported, nor by a script before it has read its arguments."""

SOURCES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted(
    path
    for path in (ROOT / "pretrain_longpo.py", *ROOT.glob("tools/*.py"), *ROOT.glob("checkpoint_conversion/*.py"))
    if path.exists()
)


def imports(tree: ast.AST) -> Iterator[str]:
    """Names of the modules that a tree imports; ``from a import b`` gives ``a.b``, which may be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def top_level(tree: ast.Module) -> ast.Module:
    """What runs when the module is imported: without the bodies of functions, of TYPE_CHECKING and of __main__."""

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        def visit_If(self, node: ast.If) -> ast.AST | None:
            return None if "TYPE_CHECKING" in ast.unparse(node.test) or "__main__" in ast.unparse(node.test) else node

    return Strip().visit(tree)


def violations(relative: str, source: str) -> list[str]:
    """List what a module of the package, named by its path there, imports against the contract."""
    tree = ast.parse(source)
    folder = relative.split("/")[0] if "/" in relative else None
    found = []
    for name in imports(tree):
        parts = name.split(".")
        if parts[0] == "megatron_longpo" and len(parts) > 1 and parts[1] in LEVELS:
            target = parts[1]
            if folder is None or not (
                folder == target
                or LEVELS[target] < LEVELS[folder]
                or (folder, target) in ALLOWED_SIBLINGS
                or (folder, ".".join(parts[:3])) in ALLOWED_MODULES
            ):
                found.append(f"{relative} imports {name}")
        elif name.startswith("megatron.core") and not relative.startswith(MEGATRON_CORE):
            found.append(f"{relative} imports {name}")
    attributes = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    uses_distributed = any(name.startswith("torch.distributed") for name in [*imports(tree), *attributes])
    if uses_distributed and not relative.startswith(TORCH_DISTRIBUTED):
        found.append(f"{relative} uses torch.distributed")
    if folder in ("config", "utils", "estimation", None):
        found += [f"{relative} imports {name} at once" for name in imports(top_level(tree)) if name.split(".")[0] in LAZY]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_its_layer_may(path):
    assert violations(path.relative_to(PACKAGE).as_posix(), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_script_reads_its_arguments_before_it_imports_what_is_slow(path):
    slow = [name for name in imports(top_level(ast.parse(path.read_text(encoding="utf-8")))) if name.split(".")[0] in LAZY]
    assert slow == []


def test_no_file_edits_the_import_path():
    for path in [*SOURCES, *SCRIPTS]:
        assert "sys.path" not in path.read_text(encoding="utf-8"), path


def test_each_folder_of_the_package_has_a_layer():
    folders = {path.parent.relative_to(PACKAGE).parts[0] for path in SOURCES if path.parent != PACKAGE}
    assert folders == LEVELS.keys()


@pytest.mark.parametrize(
    ("relative", "source"),
    [
        ("losses/a.py", "from megatron_longpo.parallel import state"),
        ("losses/a.py", "def f():\n    from megatron_longpo.parallel.state import initialize"),
        ("data/a.py", "from megatron_longpo.models import gpt"),
        ("models/a.py", "import megatron_longpo.training.loop"),
        ("models/a.py", "from megatron_longpo import training"),
        ("data/sampler.py", "from megatron.core import parallel_state"),
        ("losses/a.py", "import torch.distributed as dist"),
        ("losses/a.py", "from torch import distributed"),
        ("losses/a.py", "import torch\ntorch.distributed.get_rank()"),
        ("config/a.py", "import torch"),
        ("estimation/a.py", "import torch"),
        ("estimation/a.py", "from megatron_longpo.models.gpt import build_model"),
        ("estimation/a.py", "from megatron_longpo.training.step import train_step"),
        ("__init__.py", "from megatron_longpo.config import cli"),
    ],
)
def test_the_contract_sees_each_kind_of_breach(relative, source):
    assert len(violations(relative, source)) == 1


@pytest.mark.parametrize(
    ("relative", "source"),
    [
        ("reference/a.py", "from megatron_longpo.models import gpt\nfrom megatron_longpo.data import pair"),
        ("training/a.py", "from megatron_longpo.losses import longpo\nfrom megatron.core import parallel_state"),
        ("utils/a.py", "def f():\n    import torch"),
        ("estimation/a.py", "from megatron_longpo.models.architecture import ModelArchitecture"),
        ("parallel/a.py", "import torch.distributed"),
    ],
)
def test_the_contract_takes_what_it_should(relative, source):
    assert violations(relative, source) == []
