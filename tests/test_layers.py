"""Imports point inward, and what is started often imports little."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path("dp4tl_ray")
RINGS = {
    "atomic": 0,
    "specs": 0,
    "algorithms": 1,
    "data": 2,
    "training": 2,
    "plan": 3,
    "lease": 3,
    "store": 3,
    "objects": 3,
    "scoring": 3,
    "stages": 4,
    "results": 4,
    "contents": 4,
    "search": 4,
    "report": 4,
    "requirements": 4,
    "samples": 4,
    "export": 5,
    "checkup": 4,
    "warm": 5,
    "triage": 5,
    "runners": 5,
    "tracking": 5,
    "sweep": 6,
    "arguments": 0,
    "plugins": 0,
    "cli": 7,
    "submit": 7,
    "__main__": 8,
    "__init__": 0,
}
FREE_OF_SPECS = {"algorithms"}
ONLY_IN = {
    "ray": {
        f"runners/{name}.py"
        for name in (
            "cluster",
            "desk",
            "fleet",
            "lane",
            "packing",
            "preflight",
            "raytrain",
            "session",
            "trials",
        )
    },
    "wandb": {
        f"tracking/{name}.py" for name in ("drawing", "mirror", "runs", "server", "workspace")
    },
    "obstore": {"objects/bucket.py"},
}


def imports(path: Path) -> set[str]:
    """Return the dotted names that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return names


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def files() -> list[Path]:
    found = sorted(PACKAGE.rglob("*.py"))
    assert len(found) > 30
    return found


def test_imports_point_inward() -> None:
    for path in files():
        for name in imports(path):
            if name.startswith("dp4tl_ray."):
                used = name.split(".")[1]
                assert RINGS[used] <= RINGS[part(path)], f"{path} imports {name}"


def test_algorithms_know_arrays_and_nothing_else() -> None:
    for path in files():
        if part(path) in FREE_OF_SPECS:
            ours = {n for n in imports(path) if n.startswith("dp4tl_ray")}
            assert all(n.startswith("dp4tl_ray.algorithms") for n in ours), path
            foreign = {n.split(".")[0] for n in imports(path) - ours} - set(sys.stdlib_module_names)
            assert foreign <= {"numpy", "torch"}, path


def test_ray_and_wandb_are_imported_in_one_place_each() -> None:
    for library, places in ONLY_IN.items():
        users = {
            path.relative_to(PACKAGE).as_posix()
            for path in files()
            if library in {name.split(".")[0] for name in imports(path)}
        }
        assert users == places, library


def printed(code: str) -> str:
    """Return what some code prints in a process of its own."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_specs_and_help_are_light() -> None:
    code = (
        "import sys, dp4tl_ray.cli, dp4tl_ray.specs.load, dp4tl_ray.plan\n"
        "print([m for m in ('torch', 'ray', 'wandb', 'matplotlib', 'sklearn') if m in sys.modules])"
    )
    assert printed(code) == "[]\n"


def test_a_plan_imports_what_reads_pictures_only_where_it_is_needed() -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from dp4tl_ray.specs.load import load_study\n"
        "from dp4tl_ray.sweep import plan_study\n"
        "plan = plan_study(load_study(Path('experiments/quickstart.yaml')))\n"
        "readers = ('torch', 'torchvision', 'datasets', 'pyarrow', 'webdataset')\n"
        "print(len(plan.steps) > 0, [m for m in readers if m in sys.modules])"
    )
    assert printed(code) == "True []\n"


def test_a_training_imports_nothing_on_its_own_time() -> None:
    code = (
        "import sys, torch, dp4tl_ray.training.fit\n"
        "before = {*sys.modules}\n"
        "torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)\n"
        "print([m for m in sys.modules if m not in before])"
    )
    assert printed(code) == "[]\n"
