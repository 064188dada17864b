"""Tests that the documents are true: examples run, commands, settings and files exist, generated tables are current."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from reward_server.__main__ import app as server_app
from reward_server.serving.local import local_server
from reward_server.settings import PREFIX, Settings
from tests import format_tables
from tests.documents import ROOT, Block, Document, documents, script_of_tables
from tests.media import texture, video
from trainer.__main__ import app as trainer_app
from trainer.config import MODELS, from_dict, load, to_dict
from trainer.config_tree import flat

DOCUMENTS = documents()
NARROW = [document for document in DOCUMENTS if document.name == "README.md" or document.name.startswith("docs/")]
OTHER_PROGRAMS = {".", "curl", "docker", "pre-commit", "torchrun", "accelerate"}
EXAMPLES = [
    pytest.param(block, id=f"{document.name}-{number}")
    for document in DOCUMENTS
    for number, block in enumerate(document.blocks("python"), 1)
    if not block.marked
]
EVERY = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)


# --- examples -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def addresses() -> Iterator[tuple[str, str]]:
    with local_server(Settings()) as server:
        yield server.http_url, server.grpc_url


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES)
def test_a_python_example_runs_as_printed(example: Block, addresses: tuple[str, str], tmp_path: Path) -> None:
    http, grpc = addresses
    (tmp_path / "clip.mp4").write_bytes(video(texture(24, 144, 256), fps=12))
    code = example.text.replace("grpc://127.0.0.1:50051", grpc).replace("http://127.0.0.1:8000", http)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{code}\n{done.stderr}"
    assert "client.score" not in code or done.stdout.startswith("ok "), done.stdout
    assert "await_outcomes" not in code or done.stdout == "ok True\n" * 2, done.stdout


# --- commands -----------------------------------------------------------------------------------


@EVERY
def test_commands_in_shell_blocks_exist_with_their_options(document: Document) -> None:
    for words in document.commands():
        program, *rest = [word for word in words if not re.match(r"[A-Z_]+=", word)] or ["."]
        match program.rpartition("/")[2], rest:
            case "motion-reward", _:
                check_options(server_app, rest)
            case "make", [target, *_]:
                assert target in make_targets(), words
            case "python", ["-m", "trainer", *arguments]:
                check_training(arguments)
            case "python", ["-m", module, *_]:
                assert module == "pytest" or importlib.util.find_spec(module), words
            case "accelerate" | "torchrun", _ if "trainer" in rest:
                check_training(rest[rest.index("trainer") + 1 :])
            case name, _:
                assert name in OTHER_PROGRAMS, f"{document.name} runs {words}, which no test knows"


@EVERY
def test_shell_blocks_have_no_bare_patterns(document: Document) -> None:
    """zsh, the shell of macOS, refuses a word such as data.train=[clips] without quotes if no file has such a name."""
    for block in document.blocks("sh"):
        bare = re.sub(r"""'[^']*'|"[^"]*"|#.*""", "", block.text)
        assert not re.search(r"[\[*?]", bare), f"{document.name}: quote the patterns in {block.text}"


def check_options(app: typer.Typer, words: list[str]) -> None:
    """Assert that the command line `words` names a command of `app` and uses only options that it has."""
    command: Any = typer.main.get_command(app)
    rest = list(words)
    while rest and hasattr(command, "commands"):
        name = rest.pop(0)
        assert name in command.commands, f"there is no command {words}"
        command = command.commands[name]
    options = {option for parameter in command.params for option in parameter.opts}
    given = {word.partition("=")[0] for word in rest if word.startswith("--")}
    assert given <= options, f"{words} has no option {sorted(given - options)}"


def check_training(words: list[str]) -> None:
    """Assert that `python -m trainer` has these options and that the configuration accepts these overrides."""
    check_options(trainer_app, words)
    source = words[words.index("--config") + 1]
    overrides = [word for word in words if re.match(r"[a-z_.]+=", word)]
    load(source if (ROOT / "trainer" / "presets" / f"{source}.yaml").exists() else None, overrides)


@EVERY
def test_commands_in_the_prose_exist(document: Document) -> None:
    for words in re.findall(r"`motion-reward ((?:(?:models|keys) )?[a-z-]+)", document.current):
        check_options(server_app, words.split())
    assert set(re.findall(r"`make ([a-z-]+)", document.current)) <= make_targets()
    for module in re.findall(r"`python -m ([a-z_.]+)", document.current):
        assert importlib.util.find_spec(module.rstrip(".")), module


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))


def test_make_help_lists_every_target_with_a_sentence() -> None:
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = dict(re.findall(r"^  make ([a-z-]+) +([A-Z].+)$", done.stdout, flags=re.M))
    assert listed.keys() == make_targets()


# --- names --------------------------------------------------------------------------------------


@EVERY
def test_links_lead_somewhere(document: Document) -> None:
    by_path = {other.path: other for other in DOCUMENTS}
    for link in document.links():
        file, _, anchor = link.partition("#")
        target = (document.path.parent / file).resolve() if file else document.path
        assert target.exists(), f"{document.name} links to {link}"
        assert not anchor or anchor in by_path[target].anchors(), f"{document.name} links to {link}"


@EVERY
def test_settings_that_are_named_exist(document: Document) -> None:
    named = set(re.findall(rf"{PREFIX}([A-Z_]*[A-Z])", document.current)) - {"NAME"}
    assert {name.lower() for name in named} <= Settings.model_fields.keys()


@EVERY
def test_modules_that_are_named_exist(document: Document) -> None:
    inner = ("reward_server", "trainer", "trainer/policies", "tests/protos", "tests/reward_server", "tests/trainer")
    roots = (ROOT, *(ROOT / name for name in inner))
    for name in re.findall(r"`((?:\w+/)*\w+\.py)`", document.prose):
        assert Path(name).name == "NAME.py" or any((root / name).exists() for root in roots), name


@pytest.mark.parametrize("document", NARROW, ids=lambda document: document.name)
def test_lines_are_short(document: Document) -> None:
    long = [line for line in document.prose.splitlines() if len(line) >= 120 and not line.startswith("|")]
    assert long == []


# --- tables -------------------------------------------------------------------------------------


def test_the_generated_tables_are_current() -> None:
    page = (ROOT / "docs" / "serving.md").read_text()
    assert page == script_of_tables().generated(page), "run `make docs`"
    operations = (ROOT / "docs" / "operations.md").read_text()
    assert operations == script_of_tables().generated_operations(operations), "run `make docs`"
    formats = format_tables.PAGE.read_text()
    assert formats == format_tables.generated(formats), "run `make docs`"


def test_every_error_is_explained_and_every_setting_listed() -> None:
    made = script_of_tables()
    assert {str(error.code) for error in made.errors()} == made.MEANINGS.keys()
    listed = set(re.findall(rf"^\| `{PREFIX}(\w+)`", made.settings_table(), flags=re.M))
    left_out = {name for name, field in Settings.model_fields.items() if made.is_undocumented(field)}
    assert left_out == {"compile"}
    assert listed == {name.upper() for name in Settings.model_fields.keys() - left_out}
    assert made.FIRST_OF_SECTION.keys() | made.COMPUTED.keys() <= Settings.model_fields.keys()


def test_every_training_key_is_explained_with_its_default() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| (.*?) \|", (ROOT / "docs" / "training.md").read_text(), flags=re.M)
    by_model = {model: flat(to_dict(from_dict({"policy": {"model": model}}))) for model in MODELS}
    keys = dict.fromkeys(key for values in by_model.values() for key in values)
    shown = {key: default for key, default in rows if key in keys}
    assert keys.keys() == shown.keys()
    for key in keys.keys() - {"policy.model", "policy.negative_prompt"}:  # negative_prompt is too long for the table
        values = {model: printed(values[key]) for model, values in by_model.items() if key in values}
        same = len(set(values.values())) == 1 and len(values) == len(MODELS)
        expected = values["svd"] if same else ", ".join(f"{model} {value}" for model, value in values.items())
        assert shown[key] == expected, key


def printed(value: Any) -> str:
    """A default value as the tables print it."""
    if value is None:
        return "none"
    if value == "":
        return "empty"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"
