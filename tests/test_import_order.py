"""Who may import whom: docs/architecture.md, held by reading the imports."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HARNESS = ROOT / "harness"

# A module may import what stands on a line above its own, and its own package.
ORDER = [
    ["harness.exceptions", "harness.lr_schedules", "harness.times"],
    ["harness.config_io", "harness.files", "harness.disk_usage"],
    ["harness.checkpoint_record", "harness.metric_keys"],
    ["harness.run_dir", "harness.model_info", "harness.plot"],
    [
        "harness.run_folders",
        "harness.run_tags",
        "harness.sweep_record",
        "harness.tokenizer_utils",
        "harness.hyperparam_utils",
        "harness.prices",
    ],
    ["harness.renderers", "harness.backends", "harness.tracking", "harness.eval"],
    ["harness.supervised.types", "harness.supervised.datum", "harness.supervised.jsonl"],
    ["harness.supervised.mapping", "harness.supervised.stream_parts"],
    ["harness.supervised.stream_seek", "harness.supervised.conversation_files", "harness.supervised.custom"],
    ["harness.supervised.streaming", "harness.supervised.mixing", "harness.eval.responses"],
    ["harness.supervised.plan", "harness.supervised.retention"],
    ["harness.supervised.config", "harness.supervised.data", "harness.supervised.batches"],
    ["harness.supervised.survey", "harness.supervised.copies"],
    ["harness.supervised.evaluators", "harness.supervised.provenance", "harness.supervised.counted"],
    ["harness.supervised.evaluations"],
    ["harness.supervised.interrupts", "harness.supervised.logs"],
    ["harness.supervised.progress", "harness.supervised.replay"],
    ["harness.supervised.usage", "harness.supervised.restoring"],
    ["harness.supervised.attempt", "harness.supervised.job"],
    ["harness.supervised.updates"],
    ["harness.supervised.train"],
    ["harness.blueprints"],
    ["harness.cli_text"],
    ["harness.cli"],
    [
        "harness.preview",
        "harness.estimate",
        "harness.starter",
        "harness.derive",
        "harness.verify",
        "harness.doctor",
        "harness.sweep_grid",
    ],
    ["harness.chat", "harness.evaluate", "harness.pruning", "harness.run_details"],
    ["harness.export_card"],
    ["harness.export_chat"],
    ["harness.export"],
    ["harness.compare"],
    ["harness.sweep", "harness.listing"],
    ["harness.sweep_jobs"],
    ["harness.commands"],
    ["harness.__main__"],
]
COMPARE_MAY = {
    "harness.metric_keys",
    "harness.run_dir",
    "harness.run_folders",
    "harness.run_tags",
    "harness.files",
    "harness.exceptions",
    "harness.times",
    "harness.config_io",
    "harness.plot",
    "harness.backends.base",
    "harness.renderers.messages",
    "harness.supervised.jsonl",
    "harness.supervised.mapping",
    "harness.supervised.conversation_files",
    "harness.tracking.mlflow_reader",
    "harness.compare",
}
HEAVY = {  # and the only places that may import it, at whatever depth
    "torch": "harness.backends.local",
    "peft": "harness.backends.local",
    "mlflow": "harness.tracking",
    "matplotlib": "harness.plot",
    "plotly": "harness.compare.page",
}
# Never at import:
AT_CALL = ("torch", "peft", "mlflow", "transformers", "datasets", "tinker", "matplotlib", "plotly", "pandas")
AT_IMPORT = {  # modules that are themselves only imported at call
    "harness.supervised.datum",
    "harness.supervised.stream_parts",
    "harness.supervised.batches",
    "harness.supervised.evaluations",
    "harness.supervised.evaluators",
    "harness.supervised.job",
    "harness.supervised.restoring",
    "harness.supervised.updates",
    "harness.backends.local",
    "harness.compare",
}


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(file): ast.parse(file.read_text()) for file in sorted(HARNESS.rglob("*.py"))}


def within(module: str, room: str) -> bool:
    return module == room or module.startswith(room + ".")


def imports(tree: ast.AST, *, for_types: bool = False) -> set[str]:
    """The modules imported anywhere in ``tree``, those for type checking aside."""
    if isinstance(tree, ast.If) and ast.unparse(tree.test) == "TYPE_CHECKING" and not for_types:
        return set()
    found: set[str] = set()
    if isinstance(tree, ast.Import):
        found = {alias.name for alias in tree.names}
    elif isinstance(tree, ast.ImportFrom) and tree.module:
        found = {f"{tree.module}.{alias.name}" for alias in tree.names} & MODULES.keys() or {tree.module}
    for child in ast.iter_child_nodes(tree):
        found |= imports(child)
    return found


def imports_on_import(tree: ast.Module) -> set[str]:
    """The modules that importing this one imports itself."""
    outside = [
        node for node in tree.body if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
    ]
    return set().union(*(imports(node) for node in outside))


def rank(module: str) -> int:
    ranks = [i for i, line in enumerate(ORDER) for room in line if within(module, room)]
    assert ranks, f"{module} has no place in the order: give it one here and in docs/architecture.md"
    return max(ranks)


def package(module: str) -> str:
    return module if module.startswith("harness.supervised.") else ".".join(module.split(".")[:2])


@pytest.mark.parametrize("module", [m for m in MODULES if m not in ("harness", "harness.supervised")])
def test_a_module_imports_only_what_stands_before_it(module):
    for imported in imports(MODULES[module]):
        if within(imported, "harness") and imported != "harness" and package(imported) != package(module):
            assert rank(imported) < rank(module), f"{module} imports {imported}"
            if within(module, "harness.compare"):
                assert imported in COMPARE_MAY, f"{module} imports {imported}"


@pytest.mark.parametrize("module", MODULES)
def test_heavy_libraries_stay_in_their_rooms(module):
    for imported in imports(MODULES[module]):
        library = imported.split(".")[0]
        if library in HEAVY:
            assert within(module, HEAVY[library]), f"{module} imports {imported}"


@pytest.mark.parametrize("module", [m for m in MODULES if not any(within(m, room) for room in AT_IMPORT)])
def test_heavy_libraries_load_when_they_are_used(module):
    for imported in imports_on_import(MODULES[module]):
        assert imported.split(".")[0] not in AT_CALL, f"importing {module} loads {imported}"
        assert not any(within(imported, room) for room in AT_IMPORT - {"harness.backends.local"}), (
            f"importing {module} loads {imported}"
        )
