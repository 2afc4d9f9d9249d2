"""Change one thing in the code, run its tests, and see whether they notice: python tests/mutants.py [--all] [--jobs 2].

Every comparison, operator, condition, constant, slice, call and return of a file is changed, one a mutant. Texts for
people (f-strings, strings of several words, help=, metavar=), docstrings, annotations and decorators are left alone. A
run that is stopped goes on where it was (runs/mutants.jsonl): what was killed stays killed while its file is the same,
survivors are tried again as soon as their tests have changed. Ends with exit code 1 where a survivor is not listed in
tests/mutation.md.
"""

import argparse
import ast
import collections
import functools
import hashlib
import json
import random
import re
import sys
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from planted import LOOP, ROOT, Copy, shared_out, warm_up

# file -> the tests that are to notice, by file, or one of a file that tests more
CORE = {
    "rlsd.py": ["test_rlsd.py"],
    "verifiers.py": ["test_verifiers.py"],
    "baselines/losses.py": ["test_baselines.py"],
    "model.py": ["test_model.py"],
}
# of these files not everything: the sampler, the cache it works on, and the scores
PARTS = {"model.py": "KVCache Samples sample _decode _prefill _draw row_noise token_logps completion_states".split()}
PARTS["model.py"] += ["_score", "_pad", "_check_prompts"]
REST = {  # of a folder's pattern, the files that are not named themselves
    "train.py": ["test_methods.py", "test_train.py", "test_guards.py"],
    "rollout.py": ["test_methods.py", "test_train.py", "test_depends.py", "test_second_device.py"],
    "tasks.py": ["test_tasks.py", "test_methods.py", "test_train.py", "bad_input/test_bad_options.py"],
    "config.py": ["bad_input/test_bad_options.py", "test_train.py"],
    "sample.py": ["test_sample.py", "test_serving.py"],
    "plot.py": ["test_plot.py"],
    "reproduce.py": ["test_study.py"],
    "bench.py": ["test_bench.py"],
    "support/child.py": ["test_worker.py", "test_judge.py"],
    "support/errors.py": ["bad_input/test_bad_checkpoints.py", "test_ends.py"],
    "support/files.py": ["bad_input/test_bad_checkpoints.py", "faults/test_faults.py", "test_train.py"],
    "support/judge.py": ["test_judge.py"],
    "support/micro_batches.py": ["test_methods.py", "test_train.py"],
    "support/numbers.py": ["test_guards.py", "test_train.py", "test_missing.py"],
    "support/workers.py": ["test_workers.py"],
    "support/p*.py": ["test_ends.py", "test_ranks.py"],
    "support/shards.py": ["test_ranks.py"],
    "sources/careless.py": ["test_tasks.py"],
    "sources/jsonl.py": ["test_tasks.py", "test_depends.py", "bad_input/test_bad_data.py"],
    "sources/verifier_process.py": ["test_judge.py", "test_worker.py"],
    "sources/*.py": ["test_reasoning.py", "test_worker.py"],
    "harness/checkpoint.py": "bad_input/test_bad_checkpoints.py test_train.py "
    "test_pretrained.py::test_bfloat16_weights_resume_and_are_exported_as_such".split(),
    "harness/console.py": ["test_missing.py", "test_train.py"],
    "harness/curves.py": ["test_plot.py"],
    "harness/evaluation.py": ["test_judge.py", "test_depends.py", "test_train.py"],
    "harness/memory.py": ["test_guards.py"],
    "harness/models.py": "bad_input/test_bad_models.py test_guards.py test_depends.py test_methods.py test_missing.py "
    "test_second_device.py test_train.py".split(),
    "harness/options.py": ["bad_input/test_bad_options.py", "test_train.py"],
    "harness/look.py": ["test_serving.py"],
    "harness/threads.py": ["test_workers.py"],
    "harness/problems.py": ["test_tasks.py", "bad_input/test_bad_data.py", "test_judge.py"],
    "harness/run.py": ["test_train.py", "test_guards.py", "test_missing.py", "bad_input/test_bad_options.py"],
    "harness/warm_start.py": "test_train.py test_depends.py test_missing.py bad_input/test_bad_checkpoints.py".split(),
    "harness/watch.py": ["test_guards.py"],
    "baselines/*.py": ["test_baselines.py", "test_methods.py", "test_train.py"],
    "published/rounded_adam.py": ["test_rounded_adam.py"],
    "published/chat*.py": ["test_serving.py", "test_pretrained.py"],
    "published/tokenizer.py": ["bad_input/test_bad_models.py", "test_pretrained.py", "test_serving.py"],
    "published/*.py": ["bad_input/test_bad_models.py", "test_pretrained.py"],
    "credit/*.py": ["test_sample.py"],
    "study/localise.py": ["test_localise.py"],
    "study/probe.py": ["test_study.py", "bad_input/test_bad_options.py", "bad_input/test_bad_checkpoints.py"],
    **{f"study/{name}.py": ["test_headroom.py"] for name in "split oracles variants headroom".split()},
    "study/headroom_report.py": ["test_headroom.py", "test_readme.py"],  # which makes the committed report again
    **{f"study/{name}.py": ["test_study.py", "test_readme.py"] for name in ("report", "first_page")},
    "study/*.py": ["test_study.py"],
    "speed/several.py": ["test_several.py"],
    "speed/*.py": ["test_bench.py"],
    "examples/support_rules/llm.py": ["test_serving.py"],
    "examples/support_rules/*.py": ["test_support_rules.py"],
    "examples/trl_rlsd.py": ["test_trl.py", "test_example_views.py"],
    "examples/dry_run.py": ["test_pretrained.py::test_the_dry_run_makes_a_whole_step"],
    "examples/smollm2/*.py": [
        "test_pretrained.py::test_the_smollm2_example_makes_of_a_gguf_file_the_folder_it_came_from"
    ],
    "docs/exercises.py": [
        "test_commands.py::test_the_exercises_can_be_made_and_are_measured_seed_by_seed",
        "test_lesson.py::test_its_exercises_are_lines_of_the_code_and_their_answers_those_measured",
    ],
}
RESULTS = ROOT / "results" / "mutants.json"

COMPARISONS = {
    **{ast.Lt: [ast.LtE, ast.GtE], ast.LtE: [ast.Lt, ast.Gt], ast.Gt: [ast.GtE, ast.LtE], ast.GtE: [ast.Gt, ast.Lt]},
    **{ast.Eq: [ast.NotEq], ast.Is: [ast.IsNot], ast.In: [ast.NotIn]},
    **{ast.NotEq: [ast.Eq], ast.IsNot: [ast.Is], ast.NotIn: [ast.In]},
}
OPERATORS = {
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult},
    **{ast.FloorDiv: ast.Div, ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd},
}
PAIRS = "min max, amin amax, minimum maximum, argmin argmax, any all, sum mean, cos sin, lt gt, zeros ones"
OTHER = {a: b for pair in PAIRS.split(", ") for a, b in (pair.split(), pair.split()[::-1])}


@dataclass(frozen=True)
class Mutant:
    file: str
    line: int
    code: str  # that line, as it is
    old: str
    new: str
    text: str  # of the whole changed file
    words: bool = False  # changes a text for people alone

    def __str__(self):
        return f"{self.file}:{self.line}: {self.entry}"

    @property
    def entry(self) -> str:
        """As it stands in tests/mutation.md, where line numbers would soon be wrong."""
        return f"{self.code}  |  {self.old}  ->  {self.new}"

    @property
    def key(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


def tests_of(file: str) -> list[str]:
    """The tests of a file's own: of the first pattern that its name fits; none where it fits none."""
    return next((tests for pattern, tests in (CORE | REST).items() if fnmatch(file, pattern)), [])


def others_of(file: str) -> list[str]:
    """The other tests that name a file, as a module or by its path."""
    module = file.removesuffix(".py").replace("/", ".")
    folder, _, name = module.rpartition(".")
    named = rf"\b{re.escape(file)}|\b{re.escape(module)}\b|\bfrom {re.escape(folder) or '_'} import [^\n]*\b{name}\b"
    tests = sorted((ROOT / "tests").rglob("test_*.py"))
    found = [path.relative_to(ROOT / "tests").as_posix() for path in tests if re.search(named, path.read_text())]
    return [test for test in found if test not in tests_of(file)]


def files_of(patterns: dict[str, list[str]]) -> list[str]:
    found = [path for pattern in patterns for path in sorted(ROOT.glob(pattern)) if path.name != "__init__.py"]
    return [path.relative_to(ROOT).as_posix() for path in found]


# ---- what is changed -------------------------------------------------------------------------------------------------


def changes(node: ast.AST):
    """Replacements of one node, as nodes."""
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            for other in COMPARISONS[type(op)]:
                yield ast.Compare(node.left, [*node.ops[:i], other(), *node.ops[i + 1 :]], node.comparators)
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        yield ast.BinOp(node.left, OPERATORS[type(node.op)](), node.right)
        yield from (node.left, node.right)
    elif isinstance(node, ast.UnaryOp):
        yield node.operand
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
        yield from node.values
    elif isinstance(node, ast.IfExp):
        yield from (node.body, node.orelse)
    elif isinstance(node, ast.Constant):
        yield from map(ast.Constant, constants(node.value))
    elif isinstance(node, ast.Subscript):
        yield from (ast.Subscript(node.value, index, node.ctx) for index in indices(node.slice))
    elif isinstance(node, ast.Call):
        yield from calls(node)
    elif isinstance(node, ast.comprehension):
        for i in range(len(node.ifs)):
            yield ast.comprehension(node.target, node.iter, node.ifs[:i] + node.ifs[i + 1 :], node.is_async)
    elif isinstance(node, (ast.If, ast.While)):  # the test alone is replaced, see mutants()
        yield from (ast.Constant(True), ast.Constant(False))
    elif isinstance(node, ast.Return) and node.value is not None:
        yield ast.Return(ast.Constant(None))
    elif isinstance(node, (ast.Break, ast.Continue)) or isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield ast.Pass()
    elif isinstance(node, ast.AugAssign):
        yield ast.Pass()
        if type(node.op) in OPERATORS:
            yield ast.AugAssign(node.target, OPERATORS[type(node.op)](), node.value)


def constants(value):
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value - 1] if value else [1, -1]
    if isinstance(value, float):
        return [value * 2 + 1, -value] if value else [1.0]
    return [value + "X"] if isinstance(value, str) else []


def indices(index: ast.AST):
    """Slices with a bound moved by one or left out; places moved by one."""
    if isinstance(index, ast.Slice):
        for bound in ("lower", "upper"):
            parts = {"lower": index.lower, "upper": index.upper, "step": index.step}
            if parts[bound] is not None:
                yield ast.Slice(**{**parts, bound: None})
                yield ast.Slice(**{**parts, bound: ast.BinOp(parts[bound], ast.Add(), ast.Constant(1))})
    elif isinstance(index, ast.Tuple):
        for i, part in enumerate(index.elts):
            for other in indices(part):
                yield ast.Tuple([*index.elts[:i], other, *index.elts[i + 1 :]], ast.Load())
        if len(index.elts) == 2 and not any(isinstance(e, ast.Slice) for e in index.elts):
            yield ast.Tuple(index.elts[::-1], ast.Load())


def calls(node: ast.Call):
    """A call without one of its keywords, with two neighbouring arguments swapped, of its counterpart, or left out."""
    function, args, keywords = node.func, node.args, node.keywords
    for i in range(len(keywords)):
        yield ast.Call(function, args, keywords[:i] + keywords[i + 1 :])
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    for i in range(len(args) - 1 if name not in ("min", "max", "minimum", "maximum") else 0):
        yield ast.Call(function, [*args[:i], args[i + 1], args[i], *args[i + 2 :]], keywords)
    if name in OTHER and isinstance(function, ast.Attribute):
        yield ast.Call(ast.Attribute(function.value, OTHER[name], ast.Load()), args, keywords)
    elif name in OTHER:
        yield ast.Call(ast.Name(OTHER[name], ast.Load()), args, keywords)
    if isinstance(function, ast.Attribute) and not isinstance(function.value, ast.Attribute):
        yield function.value  # x.f().g() -> x.f()


def mutants(file: str, source: str, whole: bool = False) -> list[Mutant]:
    """All mutants of a file, or of its PARTS, that parse, each once, in the order of their lines."""
    found: dict[str, Mutant] = {ast.dump(ast.parse(source)): None}
    starts = [0]
    for line in source.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    raw = source.encode()
    tree = ast.parse(source)
    if file in PARTS and not whole:
        tree.body = [node for node in tree.body if getattr(node, "name", "") in PARTS[file]]
    for node in visited(tree):
        first = last = node.test if isinstance(node, (ast.If, ast.While)) else node
        if isinstance(node, ast.comprehension):
            first, last = node.target, (node.ifs or [node.iter])[-1]
        if not hasattr(first, "lineno"):
            continue
        begin = starts[first.lineno - 1] + first.col_offset
        end = starts[last.end_lineno - 1] + last.end_col_offset
        for other in changes(node):
            new = ast.unparse(ast.fix_missing_locations(other))
            if isinstance(other, ast.comprehension):  # "for x in xs", of which the target stands at `begin`
                new = new.strip().removeprefix("for ")
            elif isinstance(other, ast.expr):
                new = f"({new})"
            text = (raw[:begin] + new.encode() + raw[end:]).decode()
            try:
                same = ast.dump(ast.parse(text))
            except SyntaxError:
                continue
            old, new = (" ".join(code.split()) for code in (raw[begin:end].decode(), new))
            code = source.splitlines()[first.lineno - 1].strip()
            found.setdefault(same, Mutant(file, first.lineno, code, old, new, text, for_people(node, other)))
    return sorted((m for m in found.values() if m), key=lambda m: m.line)


def for_people(node: ast.AST, other: ast.AST) -> bool:
    """Does `other` change a text of several words that is no list of options, or lack help= or metavar=?"""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return " " in node.value.strip() and not node.value.startswith("-")
    if isinstance(node, ast.Call) and isinstance(other, ast.Call) and len(other.keywords) < len(node.keywords):
        return {k.arg for k in node.keywords} - {k.arg for k in other.keywords} <= {"help", "metavar"}
    return False


def visited(node: ast.AST):
    """Every node of code: no annotations, decorators, docstrings, f-strings, nor what is done if run as a program."""
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_comment", "bases"):
            continue
        for child in value if isinstance(value, list) else [value]:
            docstring = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
            imports = isinstance(child, (ast.Import, ast.ImportFrom))
            program = isinstance(child, ast.If) and "__main__" in ast.unparse(child.test)
            typing = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            if isinstance(child, ast.AST) and not (docstring or imports or program or typing):
                if not isinstance(child, ast.JoinedStr):
                    yield from visited(child)


# ---- trying them out -------------------------------------------------------------------------------------------------


def work(todo: list[tuple[Mutant, list[str], str]], journal: Path) -> None:
    """Try mutants one after the other; the tests that kill most of a file's in a second go first."""
    kills = collections.Counter((row["mutant"].partition(":")[0], row["test"]) for row in rows_of(journal))
    with Copy() as copy:
        for i, (mutant, tests, state) in enumerate(todo):
            found = collections.ChainMap(*(durations(copy, test) for test in tests))
            seconds = {name: took for name, took in found.items() if {file_of(name), name.partition("[")[0]} & {*tests}}
            sore = {test for test in seconds if seconds[test] is None}
            worth = lambda test: (kills[mutant.file, test] + 0.001) / (seconds[test] + 0.01)
            rank = {test: -worth(test) for test in seconds if test not in sore}
            most = 30 + LOOP * sum(seconds[test] for test in rank)
            verdict = copy.verdict(mutant.file, mutant.text, tests, rank, sore, seconds, most)
            kills[mutant.file, verdict.test] += 1
            row = {"key": mutant.key, "state": state, "mutant": str(mutant), **vars(verdict)}
            with journal.open("a") as file:
                file.write(json.dumps(row) + "\n")
            if verdict.outcome == "passed" or i % 50 == 0:
                print(f"{i + 1}/{len(todo)} {verdict.outcome:6} {mutant}", flush=True)


def timed(tests: list[str]) -> None:
    with Copy() as copy:
        for test in tests:
            sore = [name for name, seconds in durations(copy, test).items() if seconds is None]
            print(
                f"{test} has its times", *(f"{name} fails without any change, left out" for name in sore), sep="\n    "
            )


@functools.cache
def durations(copy: Copy, test: str) -> dict[str, float | None]:
    """Seconds of each test of a file as Copy.durations has them; kept as long as code and tests are."""
    test = file_of(test)
    sources = [path for path in sorted(copy.folder.rglob("*.py")) if "tests" not in path.parts]
    state = hashlib.sha256(b"".join(path.read_bytes() for path in [*sources, ROOT / "tests" / test])).hexdigest()[:16]
    path = ROOT / "runs" / f"durations-{state}.json"
    if not path.exists():
        path.write_text(json.dumps(copy.durations(test)))
    return json.loads(path.read_text())


def tried(journal: Path, state: str = "") -> dict[str, dict]:
    """What is known of mutants by key: kills of tests that are still there, survivors of the tests as they are.

    Without a state also survivors of earlier tests: none is then counted as killed that was not.
    """
    still = lambda row: row["outcome"] != "passed" and (not row["test"] or is_there(row["test"]))
    alive = lambda row: row["outcome"] == "passed" and state in ("", row["state"])
    return {row["key"]: row for row in rows_of(journal) if still(row) or alive(row)}


@functools.cache
def is_there(test: str) -> bool:
    file, _, name = test.partition("::")
    path = ROOT / "tests" / file
    return path.exists() and (not name or f"def {name.partition('[')[0]}(" in path.read_text())


def rows_of(journal: Path) -> list[dict]:
    return [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []


def state_of(tests: list[str]) -> str:
    return hashlib.sha256(b"".join((ROOT / "tests" / file_of(test)).read_bytes() for test in tests)).hexdigest()[:16]


def file_of(test: str) -> str:
    return test.partition("::")[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="default: the core, " + ", ".join(CORE))
    parser.add_argument("--all", action="store_true", help="the rest too, " + ", ".join(REST))
    parser.add_argument("--sample", type=int, default=0, help="so many of each file, at random")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--list", action="store_true", help="count the mutants, and run nothing")
    args = parser.parse_args()
    known = list(dict.fromkeys(files_of(CORE | REST)))
    if strange := set(args.files) - set(known):
        parser.error(f"no tests are known for {', '.join(sorted(strange))}; the files are {', '.join(known)}")
    files = args.files or (known if args.all else files_of(CORE))
    journal = ROOT / "runs" / "mutants.jsonl"
    made = {file: mutants(file, (ROOT / file).read_text(), whole=args.sample > 0) for file in files}
    if args.sample:  # twice as many, as texts for people are passed over
        made = {f: random.Random(f).sample(found, min(2 * args.sample, len(found))) for f, found in made.items()}
    made = {file: [m for m in found if not m.words][: args.sample or None] for file, found in made.items()}
    states = {file: state_of(tests_of(file)) for file in files}
    todo = []
    for file in files:
        before = tried(journal, states[file])
        todo += [(i, m, tests_of(file), states[file]) for i, m in enumerate(made[file]) if m.key not in before]
    todo = [row[1:] for row in (sorted(todo, key=lambda row: row[0]) if args.sample else todo)]  # a few of each first
    print(f"{sum(map(len, made.values()))} mutants, {len(todo)} to try", flush=True)
    if args.list:
        return 0
    journal.parent.mkdir(exist_ok=True)
    warm_up()
    shared_out(sorted({file_of(test) for _, tests, _ in todo for test in tests}), args.jobs, timed)
    shared_out(todo, args.jobs, lambda part: work(part, journal))
    if args.sample:
        return report_sample(files, made, tried(journal))
    return report(files, made, {file: tried(journal, states[file]) for file in files})


def report(files: list[str], made: dict[str, list[Mutant]], known: dict[str, dict]) -> int:
    """Counts and survivors to the screen and to results/mutants.json; 1 where tests/mutation.md lacks one."""
    listed = (ROOT / "tests" / "mutation.md").read_text().split("\n## ")
    result = json.loads(RESULTS.read_text())
    result["files"] = {file: of for file, of in result["files"].items() if (ROOT / file).exists()}
    unexplained = 0
    for file in files:
        (killed, survivors), all_of_it = counted(made[file], known[file]), len(made[file])
        figures = {"mutants": all_of_it, "killed": killed, "share": round(killed / all_of_it, 4)}
        result["files"][file] = {**figures, "survivors": [str(m) for m in survivors]}
        reasons = [line.strip() for part in listed if part.startswith(file) for line in part.splitlines()]
        unexplained += sum(m.entry not in reasons for m in survivors)
        print(f"{file}: {killed} of {all_of_it} killed, {killed / all_of_it:.1%}")
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{unexplained} survivors without a reason in tests/mutation.md")
    return int(unexplained > 0)


def report_sample(files: list[str], drawn: dict[str, list[Mutant]], known: dict[str, dict]) -> int:
    """Of each file's sample, as far as it was tried: killed ones and survivors, to results/mutants.json as well."""
    result = json.loads(RESULTS.read_text())
    sampled = result["sampled"] = {f: of for f, of in result.get("sampled", {}).items() if (ROOT / f).exists()}
    for file in files:
        killed, survivors = counted(drawn[file], known)
        if tries := killed + len(survivors):
            figures = {"drawn": len(drawn[file]), "tried": tries, "killed": killed}
            sampled[file] = {**figures, "survivors": [str(m) for m in survivors]}
            print(f"{file}: {killed} of {tries} killed", *map(str, survivors), sep="\n    ")
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    tries, killed = (sum(of[what] for of in sampled.values()) for what in ("tried", "killed"))
    print(f"{killed} of {tries} killed, {len(sampled)} files")
    return 0


def counted(mutants: list[Mutant], known: dict[str, dict]) -> tuple[int, list[Mutant]]:
    """Of the mutants that were tried: how many were killed, and those that were not."""
    rows = [(m, known[m.key]["outcome"]) for m in mutants if m.key in known]
    survivors = [m for m, outcome in rows if outcome == "passed"]
    return len(rows) - len(survivors), survivors


if __name__ == "__main__":
    sys.exit(main())
