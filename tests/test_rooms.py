"""Tests the project's rooms: what each may import, what its docstring says, and what loads without what.

A room is a folder with its modules. A loose module at the top of a package is a room of its own. The import graph is
read from the source and includes imports inside functions and under TYPE_CHECKING.
"""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PRODUCT = ("protos", "reward_server", "trainer")
APART = ("experiments", "benchmarks")
PACKAGES = (*PRODUCT, *APART)
MAY_IMPORT = {"protos": set(), "reward_server": {"protos"}, "trainer": {"protos"}}

# From the bottom up: a room may import only the rooms before it.
FLOORS = {
    "protos": """
        reward_pb2 reward_pb2_grpc addresses tracing error_codes explanation types spread codec json_codec
        results conversions reader submissions client __init__
    """,
    "reward_server": """
        errors settings log stats replacing motion weights_file
        faults decoding capture data networks discriminators estimators models profiles
        explain scorer pipeline training queue worker page doors serving report evaluation
        gate commands __init__ __main__
    """,
    "trainer": """
        errors seeds processes objective measures picking video policies config_tree data config zero checkpoint dose
        rewards rollout report board run scoring step train evaluate __init__ __main__
    """,
}
LOOSE_AT_MOST = 10  # modules at the top of reward_server, including `__init__` and `__main__`
PROJECT_WIDE = {"test_compose.py", "test_docs.py", "test_packaging.py", "test_readme.py", "test_rooms.py"}

Graph = Mapping[str, set[str]]


# --- the graph ----------------------------------------------------------------------------------


def modules(root: Path, packages: Iterable[str]) -> dict[str, Path]:
    """Files by dotted name. A package's `__init__` has the name of the package."""
    files = (file for package in packages for file in sorted((root / package).rglob("*.py")))
    return {".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def imported_names(path: Path) -> Iterator[str]:
    """Every absolute name that a file imports, also inside functions and with importlib."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str))


def file_graph(root: Path, packages: Iterable[str]) -> dict[str, set[str]]:
    """Each module with the modules that it imports."""
    files = modules(root, packages)
    graph = {}
    for name, path in files.items():
        reached = {wanted if wanted in files else wanted.rpartition(".")[0] for wanted in imported_names(path)}
        graph[name] = {other for other in reached if other in files and other != name}
    return graph


def room_of(module: str) -> str:
    """The room of a module: `trainer.rewards.remote` is in `trainer.rewards`, `trainer.train` is its own room."""
    package, _, rest = module.partition(".")
    first = rest.partition(".")[0] or "__init__"
    return f"{package}.{first}"


def room_graph(root: Path, packages: Iterable[str]) -> dict[str, set[str]]:
    """Each room with the other rooms that its modules import."""
    graph: dict[str, set[str]] = {}
    for module, reached in file_graph(root, packages).items():
        room = room_of(module)
        graph.setdefault(room, set()).update(room_of(other) for other in reached)
        graph[room].discard(room)
    return graph


def circle(graph: Graph) -> list[str]:
    """The names of one circle, with the first repeated at the end. Empty if there is none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def upward(graph: Graph, floors: Mapping[str, str]) -> list[str]:
    """Imports that do not lead to a room further down, and rooms that are on no floor."""
    order = {f"{package}.{room}": at for package, rooms in floors.items() for at, room in enumerate(rooms.split())}
    inside = {room: reached for room, reached in graph.items() if room.partition(".")[0] in floors}
    wrong = [f"{room} is on no floor" for room in inside if room not in order]
    for room, reached in inside.items():
        same = {other for other in reached if other.partition(".")[0] == room.partition(".")[0]}
        wrong += [f"{room} -> {other}" for other in sorted(same) if order.get(other, 0) >= order.get(room, 0)]
    return wrong


def crossing(root: Path) -> list[str]:
    """Imports from another package that the importing package may not use."""
    return [
        f"{module} -> {name}"
        for module, path in modules(root, PRODUCT).items()
        for name in imported_names(path)
        if (package := module.partition(".")[0]) != (other := name.partition(".")[0])
        and other in set(PACKAGES) - MAY_IMPORT[package]
    ]


# --- the project --------------------------------------------------------------------------------


def test_no_file_and_no_room_is_in_a_circle() -> None:
    assert circle(file_graph(ROOT, PACKAGES)) == []
    assert circle(room_graph(ROOT, PACKAGES)) == []


def test_nothing_imports_a_room_above_it() -> None:
    assert upward(room_graph(ROOT, PRODUCT), FLOORS) == []


def test_the_floors_name_exactly_the_rooms_that_exist() -> None:
    named = {f"{package}.{room}" for package, rooms in FLOORS.items() for room in rooms.split()}
    assert named == room_graph(ROOT, PRODUCT).keys()


def test_no_package_imports_more_than_it_may() -> None:
    assert crossing(ROOT) == []


def test_few_modules_are_loose_at_the_top_of_the_server() -> None:
    assert len(loose(ROOT / "reward_server")) <= LOOSE_AT_MOST


def loose(package: Path) -> list[str]:
    return sorted(file.name for file in package.glob("*.py"))


def test_every_room_has_a_docstring_of_two_sentences() -> None:
    assert unsaid(ROOT, PACKAGES) == []


def unsaid(root: Path, packages: Iterable[str]) -> list[str]:
    """Folders of modules whose `__init__` has no docstring of two sentences or more."""
    folders = {file.parent for package in packages for file in (root / package).rglob("*.py")}
    return sorted(str(folder.relative_to(root)) for folder in folders if not explained(folder / "__init__.py"))


def explained(init: Path) -> bool:
    said = ast.get_docstring(ast.parse(init.read_text())) if init.exists() else None
    return said is not None and said.count(".\n") + said.endswith(".") >= 2


def test_every_test_is_in_the_folder_of_its_package() -> None:
    assert misplaced(ROOT / "tests") == []


def misplaced(tests: Path) -> list[str]:
    """Test files in a folder that is no package's, and loose test files that are not project-wide."""
    found = [file.relative_to(tests) for file in tests.rglob("test_*.py")]
    return sorted(
        str(file)
        for file in found
        if (file.parts[0] not in PACKAGES if len(file.parts) > 1 else file.name not in PROJECT_WIDE)
    )


# --- each check can fail ------------------------------------------------------------------------


def write(root: Path, files: Mapping[str, str]) -> Path:
    for name, source in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(source)
    return root


def test_every_way_to_import_is_seen(tmp_path: Path) -> None:
    source = """
import trainer.objective
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from trainer import run
def f():
    from trainer.data import Clip
    importlib.import_module("trainer.y")
"""
    names = imported_names(write(tmp_path, {"m.py": source}) / "m.py")
    seen = {name for name in names if name.startswith("trainer")}
    assert seen == {"trainer.objective", "trainer.run", "trainer.data.Clip", "trainer.y"}


def test_a_relative_import_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="imports relatively"):
        list(imported_names(write(tmp_path, {"m.py": "from .n import x\n"}) / "m.py"))


def test_a_circle_closed_inside_a_function_is_found(tmp_path: Path) -> None:
    files = {"trainer/a.py": "import trainer.b\n", "trainer/b.py": "def f():\n    from trainer.a import x\n"}
    graph = file_graph(write(tmp_path, files), ["trainer"])
    assert set(circle(graph)) == {"trainer.a", "trainer.b"}
    assert circle({"trainer.a": {"trainer.b"}, "trainer.b": set()}) == []


def test_a_circle_of_rooms_without_a_circle_of_files_is_found(tmp_path: Path) -> None:
    files = {
        "trainer/rewards/x.py": "from trainer.measures.x import a\n",
        "trainer/measures/x.py": "",
        "trainer/measures/y.py": "from trainer.rewards import z\n",
        "trainer/rewards/z.py": "",
    }
    write(tmp_path, files)
    assert circle(file_graph(tmp_path, ["trainer"])) == []
    assert set(circle(room_graph(tmp_path, ["trainer"]))) == {"trainer.rewards", "trainer.measures"}


def test_an_upward_import_and_a_room_without_a_floor_are_found(tmp_path: Path) -> None:
    files = {"trainer/data/x.py": "import trainer.train\n", "trainer/train.py": "", "trainer/attic.py": ""}
    found = upward(room_graph(write(tmp_path, files), ["trainer"]), {"trainer": "data train"})
    assert found == ["trainer.attic is on no floor", "trainer.data -> trainer.train"]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("trainer/a.py", "from reward_server.errors import BadRequest\n"),
        ("reward_server/a.py", "def f():\n    import trainer.data\n"),
        ("protos/a.py", "from trainer import data\n"),
        ("trainer/a.py", "from experiments.proof import arms\n"),
        ("reward_server/a.py", "import benchmarks.tracker\n"),
    ],
)
def test_an_import_across_packages_is_found(tmp_path: Path, file: str, source: str) -> None:
    assert len(crossing(write(tmp_path, {file: source, "trainer/ok.py": "import protos.types\n"}))) == 1


def test_a_room_without_a_docstring_is_found(tmp_path: Path) -> None:
    files = {
        "trainer/__init__.py": '"""What trains. The server stands elsewhere."""',
        "trainer/silent/__init__.py": "",
        "trainer/short/__init__.py": '"""Things."""',
        "trainer/without/module.py": "",
        "trainer/said/__init__.py": '"""What is here.\n\nThat stands elsewhere.\n"""',
    }
    found = unsaid(write(tmp_path, files), ["trainer"])
    assert found == ["trainer", "trainer/short", "trainer/silent", "trainer/without"]


def test_a_test_outside_the_packages_folders_is_found(tmp_path: Path) -> None:
    files = {"test_doors.py": "", "test_readme.py": "", "trainer/test_step.py": "", "doors/test_http.py": ""}
    assert misplaced(write(tmp_path, files)) == ["doors/test_http.py", "test_doors.py"]


def test_loose_modules_are_counted(tmp_path: Path) -> None:
    files = {"__init__.py": "", "__main__.py": "", "settings.py": "", "doors/service.py": "", "notes.md": ""}
    assert loose(write(tmp_path, files)) == ["__init__.py", "__main__.py", "settings.py"]


# --- what loads without what --------------------------------------------------------------------


def run_without(blocked: Iterable[str], code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process in which the blocked modules cannot be imported."""
    prelude = f"import sys\nfor name in {tuple(blocked)}: sys.modules[name] = None\n"
    return subprocess.run([sys.executable, "-c", prelude + code], capture_output=True, text=True, cwd=ROOT, check=False)


SERVING = ("redis", "grpc", "fastapi", "starlette", "uvicorn", "httpx", "prometheus_client")
SCORE = """
import numpy as np
from reward_server import OutcomeKind, Pipeline, Settings, submission
frames = np.random.default_rng(0).integers(0, 256, (16, 3, 32, 48), dtype=np.uint8)
[outcome] = Pipeline.load(Settings(num_tracks=16, threads=1)).score_submissions([submission(frames, fps=12.0)])
assert outcome.kind is OutcomeKind.OK, outcome
"""


def test_scoring_in_process_needs_no_queue_and_no_door() -> None:
    ran = run_without(SERVING, SCORE)
    assert ran.returncode == 0, ran.stderr


def test_the_client_needs_no_torch_and_no_opencv() -> None:
    ran = run_without(("torch", "cv2", "av", "redis", "fastapi", "pydantic"), "import protos.client")
    assert ran.returncode == 0, ran.stderr


def test_a_blocked_module_really_cannot_be_imported() -> None:
    ran = run_without(["redis"], "import reward_server.queue.redis_link")
    assert ran.returncode == 1
    assert "ModuleNotFoundError: No module named 'redis" in ran.stderr


def test_the_doors_load_neither_torch_nor_opencv() -> None:
    ran = run_without(("torch", "cv2", "timm", "av"), "import reward_server.serving.serve")
    assert ran.returncode == 0, ran.stderr
