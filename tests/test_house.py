"""The house: one training step followed to the bottom, and who may know of whom, read from the files themselves."""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest
from ours import ROOT, ours

READING = ["rlsd.py", "model.py", "verifiers.py", "tasks.py", "rollout.py", "train.py"]
# Who stands on whom: a room imports from the rows above its own, and from nowhere else. A room is a file of the top
# level, without its ending, or a folder.
FLOORS = [
    "rlsd model config verifiers",
    "tasks",
    "support",
    "baselines published sources",
    "rollout",
    "credit",
    "harness",
    "train",
    "study speed",
    "sample plot reproduce bench",
    "docs examples",
    "tests",
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}
CORE = {"rlsd": [], "model": [], "config": [], "verifiers": [], "tasks": ["verifiers"]}  # and what it may import
PACKAGES = {"torch", "numpy", "tiktoken"}  # beside the standard library
BEHIND = ["show", "log", "steps"]  # methods of harness/run.py's Run: samples, evaluation and log, checkpoint
NOT_IN_THE_LOOP = re.compile(
    r"rank|process|torchrun|fsdp|gloo|nccl|barrier|signal|sigint|sigterm|interrupt|memory|gib\b|checkpoint|"
    r"\.pt\b|\block|unlink|fsync|open\(|mkdir",
    re.IGNORECASE,
)
EVERYWHERE = "*.py", "*/*.py", "*/*/*.py"


@cache
def sources() -> list[Path]:
    return ours(*EVERYWHERE)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def none_of(wrong: Iterable[str]) -> None:
    assert not (found := list(wrong)), "\n" + "\n".join(found)


# ---- one step, followed to the bottom --------------------------------------------------------------------------------


class Steps:
    """Files of ours whose functions are entered between the first `rollout` and the last `sync` of a run.

    What is entered beneath the methods in `BEHIND`, between two steps or within one, is not looked at.
    """

    def __init__(self):
        self.entered, self.found = set(), set()  # since the first rollout; of these, up to the last sync so far
        self.met, self.behind, self.begun = set(), None, False

    def __call__(self, frame, event: str, _) -> None:
        if event not in ("call", "return") or not (file := file_of(frame.f_code.co_filename)):
            return
        function = file, frame.f_code.co_name
        if self.behind:
            if event == "return" and frame is self.behind:
                self.behind = None
        elif event == "return":
            self.found |= self.entered if function == ("train.py", "sync") else set()
        elif function[1] == "<module>":  # an import inside a function: its file counts if a function of it is entered
            self.behind = frame
        elif self.begun and file == "harness/run.py" and function[1] in BEHIND:
            self.behind = frame
            self.met.add(function[1])
        else:
            self.begun |= function == ("rollout.py", "rollout")
            self.entered |= {file} if self.begun else set()


@cache
def file_of(code: str) -> str:
    """The name of a program's file; nothing for what is not ours, or a test's."""
    path = Path(code).resolve()
    return name(path) if path.is_relative_to(ROOT) and room(path) in FLOOR.keys() - {"tests"} else ""


def test_one_step_goes_through_few_files(tmp_path, monkeypatch, own_signals):
    """What lies beneath rollout, update and sync is at most 7 files of 1,400 lines; what is `BEHIND` is not counted.

    Ten updates of default training, the teacher's sync among them, of a small model that chance rewards.
    """
    import train
    import verifiers

    number = verifiers.BUILT_IN["number"]
    lucky = lambda completion, answer: max(number(completion, answer), len(completion) % 2)
    monkeypatch.setitem(verifiers.BUILT_IN, "number", lucky)
    small = "--hidden_size 32 --num_layers 1 --prompts_per_step 2 --group_size 4 --max_new_tokens 70 --eval_problems 2"
    folders = ["--out", str(tmp_path / "run"), "--warm_dir", str(tmp_path / "warm")]
    steps, before = Steps(), sys.getprofile()
    sys.setprofile(steps)
    try:
        done = train.main([*small.split(), *"--steps 10 --warm_steps 1 --warm_batch 2 --chain 1".split(), *folders])
    finally:
        sys.setprofile(before)
    assert done == 0
    assert steps.met == set(BEHIND), f"not met between the first rollout and the last sync: {set(BEHIND) - steps.met}"
    sizes = {file: lines(ROOT / file) for file in sorted(steps.found)}
    page = "\n".join(f"{count:6}  {file}" for file, count in sizes.items())
    assert {"rlsd.py", "model.py", "train.py"} <= sizes.keys(), page  # a step that moves nothing would show nothing
    assert len(sizes) <= 7 and sum(sizes.values()) <= 1400, f"{len(sizes)} files, {sum(sizes.values())} lines:\n{page}"


# ---- who knows of whom -----------------------------------------------------------------------------------------------


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of all that a file imports, anywhere in it, also by a text; `from a import b` is a.b."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module or ''}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call):
            imported = getattr(node.func, "attr", getattr(node.func, "id", "")) in ("import_module", "__import__")
            yield from ((node.lineno, text) for text in texts(node) if imported or "." in text and module(path, text))


def texts(call: ast.Call) -> list[str]:
    return [arg.value for arg in call.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]


def module(path: Path, dotted: str) -> Path | None:
    """The file of ours that a file means by a module's name: in the root or, for a test or an example, beside it."""
    beside = [path.parent, ROOT / "tests"] if room(path) in ("tests", "examples", "docs") else []
    files = [folder.joinpath(*dotted.split(".")).with_suffix(".py") for folder in (ROOT, *beside) if dotted]
    return next(filter(Path.is_file, files), None)


def ours_of(path: Path, dotted: str) -> Path | None:
    """The same for what may be a name in a module, too."""
    return module(path, dotted) or module(path, dotted.rpartition(".")[0])


@cache
def edges() -> list[tuple[Path, int, Path]]:
    """File, line and file that it imports there."""
    found = {(path, line, ours_of(path, dotted)) for path in sources() for line, dotted in imports(path)}
    return sorted((path, line, other) for path, line, other in found if other is not None and other != path)


def test_every_room_has_its_place():
    assert sorted({room(path) for path in sources()} - FLOOR.keys()) == []


def test_no_import_points_upwards():
    """Nor sideways, so no two rooms import each other."""
    up = lambda path, other: room(path) != room(other) and FLOOR[room(path)] <= FLOOR[room(other)]
    none_of(f"{name(path)}:{line} imports {name(other)}" for path, line, other in edges() if up(path, other))


def test_no_circle_of_files():
    """What imports none, or none imports, is taken away as long as there is any; what is left goes round."""
    left = {(path, other) for path, _, other in edges()}
    while ends := {a for a, _ in left} ^ {b for _, b in left}:
        left = {(a, b) for a, b in left if a not in ends and b not in ends}
    none_of(sorted(f"{name(a)} imports {name(b)}" for a, b in left))


@pytest.mark.parametrize("file", CORE)
def test_the_core_knows_the_core_alone(file):
    """Neither by an import nor in a word: no path of a room is in its text, and no package but those it is made of."""
    path = ROOT / f"{file}.py"
    for line, dotted in imports(path):
        other, package = ours_of(path, dotted), dotted.split(".")[0]
        if other is None:
            assert package in PACKAGES | set(sys.stdlib_module_names), f"{path.name}:{line} imports {package}"
        else:
            assert room(other) in CORE[file], f"{path.name}:{line} imports {name(other)}"
    rooms = {room(path) for path in sources() if path.parent != ROOT} - {"docs", "examples", "tests"}
    named = re.findall(rf"\b(?:{'|'.join(rooms)})[./]\w+", path.read_text())
    assert [said for said in named if (ROOT / f"{re.sub('[.]', '/', said)}.py").is_file()] == []


# ---- how much there is to read ---------------------------------------------------------------------------------------


def test_the_top_level_is_small():
    assert len(ours("*.py")) <= 11, [path.name for path in ours("*.py")]
    sizes = {file: lines(ROOT / file) for file in READING}
    assert sum(sizes.values()) <= 1200, f"{sum(sizes.values())} lines: {sizes}"


def words(path: Path) -> tuple[dict[int, str], set[int]]:
    """A file's lines, without comments, docstrings and imports; the numbers of those with a comment or docstring."""
    code, remarks = dict(enumerate(path.read_text().splitlines(), 1)), set()
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type == tokenize.COMMENT:
            code[token.start[0]] = code[token.start[0]][: token.start[1]]
            remarks.add(token.start[0])
    for node in ast.walk(tree(path)):
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if docstring or isinstance(node, ast.Import | ast.ImportFrom):
            of_node = range(node.lineno, node.end_lineno + 1)
            code.update(dict.fromkeys(of_node, ""))
            remarks.update(of_node if docstring else ())
    return code, remarks


def test_the_loop_is_about_learning_alone():
    """Processes, signals, memory and files are behind the run, or one word of another room's."""
    code, _ = words(ROOT / "train.py")
    none_of(f"train.py:{line}: {text.strip()}" for line, text in code.items() if NOT_IN_THE_LOOP.search(text))


@pytest.mark.parametrize("file", ["train.py", "rollout.py"])
def test_a_fifth_of_what_one_reads_first_is_said_in_words(file):
    _, remarks = words(ROOT / file)
    assert len(remarks) >= 0.2 * lines(ROOT / file), f"{len(remarks)} of {lines(ROOT / file)} lines of {file}"


def test_no_function_is_longer_than_sixty_lines():
    nodes = ((path, node) for path in sources() for node in ast.walk(tree(path)))
    functions = ((path, node) for path, node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    none_of(f"{name(path)}:{f.lineno} {f.name}" for path, f in functions if f.end_lineno - f.lineno >= 60)


# ---- what nobody uses ------------------------------------------------------------------------------------------------


def uses(path: Path) -> Iterator[tuple[Path, str]]:
    """File and name of all of ours that a file mentions: its own names, imported ones, and attributes of modules."""
    modules: dict[str, Path] = {}
    for node in ast.walk(tree(path)):
        for alias in node.names if isinstance(node, ast.Import | ast.ImportFrom) else []:
            start = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            if whole := module(path, start + alias.name):
                modules[alias.asname or alias.name] = whole
            elif start and (whole := module(path, start[:-1])):
                yield whole, alias.name
    for definition in tree(path).body:
        for node in ast.walk(definition):
            if isinstance(node, ast.Name) and node.id != getattr(definition, "name", ""):
                yield path, node.id
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in modules:
                yield modules[ast.unparse(node.value)], node.attr
            if isinstance(node, ast.Call):  # a function that another process is to find by its name
                whole = next(filter(None, (module(path, text) for text in texts(node) if "." in text)), path)
                yield from ((whole, text) for text in texts(node))


def test_what_tests_alone_use_is_not_kept():
    """Every function and class of a module is used by a program: in its own file outside itself, or in another one."""
    by_parts_of_its_name = ["math_verify_scorer", "reasoning_gym_scorer"]  # f"{package}_scorer" in sources/scorers.py
    programs = [path for path in sources() if room(path) not in ("tests", "examples")]  # these hold a user's own rule
    users = [path for pattern in EVERYWHERE for path in ROOT.glob(pattern) if room(path) in FLOOR.keys() - {"tests"}]
    used = {use for path in users for use in uses(path)}
    nodes = ((path, node) for path in programs for node in tree(path).body)
    defined = ((path, node) for path, node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef))
    unused = ((path, node) for path, node in defined if (path, node.name) not in used)
    none_of(f"{name(p)}:{node.lineno} {node.name}" for p, node in unused if node.name not in by_parts_of_its_name)
