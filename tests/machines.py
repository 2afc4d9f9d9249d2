"""The suite on other machines: other versions, locales, users, loads; the table is results/machines.json and .md.

    python tests/machines.py                    every row that the table lacks for the files as they are, or that failed
    python tests/machines.py torch-2.6 busy     these rows, again
    python tests/machines.py torch-2.6 --failed only the tests that failed there; the page then says which these were
    python tests/machines.py --list             the rows, and with which Python each would run

Stopped, it goes on where it was. An environment of its own takes a minute and up to 6 GB in runs/machines, a row as
long as the suite. `python3.X` is looked for on PATH; --python FILE names one that is elsewhere. A row for which there
is none, or that needs root, is written down as not run.
"""

import argparse
import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "results" / "machines.json"
LIMIT = 3 * 3600  # seconds a row may take
WHO = {"user": 54321, "group": 54321, "extra_groups": []}  # without name, home and rights
OTHERS = " that others may run"
TRAIN = ("requirements.txt", "requirements/extras.txt")
SUITE = ["-r", "requirements/test.txt"]
ABOUT = (
    "import json, platform, numpy, torch; "
    "print(json.dumps([platform.python_version(), str(torch.__version__), numpy.__version__]))"
)
LOOP = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    sum(range(10**6))"
ODD = {
    **{"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONOPTIMIZE": "1", "TZ": "Asia/Kathmandu"},
    **{"COLUMNS": "20", "NO_COLOR": "1", "TERM": "dumb", "OMP_NUM_THREADS": "3", "RANK": "1", "MPLBACKEND": "none"},
}
OLD = {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "ONEDNN_MAX_CPU_ISA": "SSE41"}


class NotRun(Exception):
    """Why a row cannot be had here."""


@dataclass(frozen=True)
class Row:
    """What is different there; python: "" for the one that runs this program; packages: what pip is given."""

    about: str
    python: str = ""
    packages: list[str] = field(default_factory=lambda: SUITE)
    tests: tuple[str, ...] = ()
    bare: bool = False  # nothing in the environment but PATH
    env: dict[str, str] = field(default_factory=dict)
    folder: str = "source"
    umask: int = -1
    closed: bool = False  # standard input
    busy: bool = False
    stranger: bool = False


def oldest() -> list[str]:
    """Every least version that the requirements of `make test` name."""
    lines = [(ROOT / name).read_text(encoding="utf-8") for name in (*TRAIN, "requirements/test.txt")]
    wanted = [line for line in "\n".join(lines).splitlines() if line and not line.startswith(("-", "#"))]
    return [re.sub(r">=(\d+)(\.\d+)?.*", lambda v: f"=={v[1]}{v[2] or '.0'}.*", line) for line in wanted]


FEW = ["torch==2.6.0", "numpy", "tiktoken", "pytest", "hypothesis"]
THREE = ("tests/test_rlsd.py", "tests/test_theory.py", "tests/test_model.py")
ROWS = {
    "default": Row("PyPI's default build of torch"),
    "python3.10": Row("the oldest Python", "3.10"),
    "python3.12": Row("Python 3.12", "3.12"),
    "python3.13": Row("Python 3.13", "3.13"),
    "python3.14": Row("the newest Python that torch 2.13 has wheels for", "3.14"),
    "torch-2.6": Row("the oldest torch that pyproject.toml promises for rlsd.py", "3.12", FEW, THREE),
    "oldest": Row("numpy 1.26 and the least version of everything that make test installs", "3.10", oldest()),
    "processor": Row("a processor of 2008, as far as torch can be told: " + " ".join(OLD), env=OLD),
    "busy": Row("each core but one busy with something else", busy=True),
    "bare": Row("no environment variable but PATH and LC_ALL=C: no HOME", bare=True, env={"LC_ALL": "C"}),
    "odd": Row(
        "ASCII locale, closed standard input, umask 077, spaces and letters in every path, " + " ".join(ODD),
        **{"env": ODD, "folder": "ein Ordner – 日本 'x'", "umask": 0o077, "closed": True},
    ),
    "stranger": Row(
        "a user without name and home, who may not write into the source", OTHERS, bare=True, stranger=True
    ),
}


# ---- what a row needs ------------------------------------------------------------------------------------------------


def runs_for_others(path: str) -> bool:
    """Whether somebody else may run it, which one below /root does not let them."""
    with contextlib.suppress(OSError):
        command = [path, "-c", ""]
        return os.geteuid() == 0 and not subprocess.run(command, capture_output=True, cwd="/", env={}, **WHO).returncode
    return False


def pythons(given: list[str]) -> dict[str, str]:
    """Version -> interpreter, of those given, on PATH, and this one; asked, as a name on PATH may be a mere shim."""
    ask = "import sys; print('%d.%d' % sys.version_info[:2], sys._base_executable)"
    found = {}
    for name in [sys.executable, *(f"python3.{n}" for n in range(10, 20)), *given]:
        with contextlib.suppress(OSError, subprocess.CalledProcessError, ValueError):
            told = subprocess.run([name, "-c", ask], check=True, capture_output=True, text=True).stdout
            version, path = told.strip().split(" ", 1)
            for key in (version, "", *[OTHERS] * runs_for_others(path)):
                found.setdefault(key, path)
    return found


def environment(row: Row, found: dict[str, str], folder: Path) -> Path:
    """The Python of a virtual environment with the row's packages; made once."""
    if row.python not in found:
        raise NotRun(f"no python{row.python} on PATH; --python names one elsewhere")
    packages = [(ROOT / p).read_text(encoding="utf-8") if p.endswith(".txt") else p for p in row.packages]
    packages += [(ROOT / name).read_text(encoding="utf-8") for name in TRAIN]
    made = folder / hashlib.sha256(json.dumps([found[row.python], packages]).encode()).hexdigest()[:12]
    python = made / "bin" / "python"
    if not (made / "made").exists():
        shutil.rmtree(made, ignore_errors=True)
        print(f"  {found[row.python]} and {' '.join(row.packages)} -> {made}", flush=True)
        subprocess.run([found[row.python], "-m", "venv", str(made)], check=True)
        # isolated: what a user has set for pip, such as a folder of other builds, is not what a newcomer has
        pip = [str(python), "-m", "pip", "--isolated", "--disable-pip-version-check", "install", "-q"]
        subprocess.run([*pip, *row.packages], check=True, cwd=ROOT)
        (made / "made").touch()
    return python


def files() -> list[str]:
    """Of the working tree: what a clone of it would hold, but for the table that is being made."""
    git = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(git, check=True, capture_output=True).stdout.decode("utf-8", "surrogateescape").split("\0")
    return [name for name in sorted(set(listed)) if (ROOT / name).is_file() and name != "results/machines.json"]


def tree() -> str:
    """What the files hold, in twelve letters."""
    digest = hashlib.sha256()
    for name in [name for name in files() if name != "results/machines.md"]:
        digest.update(name.encode("utf-8", "surrogateescape") + b"\0" + (ROOT / name).read_bytes() + b"\0")
    return digest.hexdigest()[:12]


@contextlib.contextmanager
def others_at_work(n: int) -> Iterator[None]:
    """n processes that never rest; they end by themselves where this one is killed."""
    started = [subprocess.Popen([sys.executable, "-c", LOOP]) for _ in range(n)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


# ---- one row ---------------------------------------------------------------------------------------------------------


def counted(output: str) -> dict:
    """What pytest's last line says; no such line is a failure of its own."""
    last = next((line for line in reversed(output.splitlines()) if re.search(r"\d+ (passed|failed|error)", line)), "")
    number = lambda word: sum(map(int, re.findall(rf"(\d+) {word}", last)))
    failures = re.findall(r"^(?:FAILED|ERROR) (\S.*?)(?: - |$)", output, re.MULTILINE)
    failed = number("failed") + number("error")
    if not last:
        failed, failures = 1, ["it ended before its last line"]
    found = {"passed": number("passed"), "skipped": number("skipped"), "failed": failed}
    return {**found, "failures": failures} if failed else found


def suite(name: str, row: Row, python: Path, log: Path) -> str:
    """What the row's tests say, run in a copy of the source; lines of progress are printed as they come."""
    with tempfile.TemporaryDirectory(prefix="machines-") as scratch:
        os.chmod(scratch, 0o755)
        source, temporary = Path(scratch, row.folder), Path(scratch, f"{row.folder} tmp")
        for file in files():
            (source / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / file, source / file)
        temporary.mkdir()
        temporary.chmod(0o777)
        kept = {"PATH": os.environ.get("PATH", os.defpath)} if row.bare else dict(os.environ)
        env = {**kept, **row.env, "TMPDIR": str(temporary)}
        who = WHO if row.stranger else {}
        if who and not runs_for_others(str(python)):
            raise NotRun(f"{python} is not for others to run: --environments names a folder that is")
        command = [str(python), "-u", "-m", "pytest", "-q", "-rfE", "--tb=short", "-p", "no:cacheprovider", *row.tests]
        if row.closed:
            command = ["sh", "-c", 'exec "$@" <&-', "sh", *command]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                **{"cwd": source, "env": env, "umask": row.umask, "start_new_session": True, **who},
                **{"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT},
            )
        end, shown, ended = time.monotonic() + LIMIT, 0, False
        try:
            while not ended and time.monotonic() < end:
                time.sleep(1)
                ended = process.poll() is not None  # its output may go on: of what a test has left behind
                lines = log.read_bytes().decode(errors="replace").split("\n")[:-1]
                for line in lines[shown:]:
                    if "%]" in line or line.startswith(("FAILED", "ERROR")):
                        print(f"  {name}: {line}", flush=True)
                shown = len(lines)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return log.read_text(encoding="utf-8", errors="replace")


def again(row: dict, name: str, found: dict[str, str], folder: Path) -> dict:
    """The row, its failures tried once more by themselves; what passes now is counted, and named as `again`."""
    new = run(name, found, folder, tuple(row["failures"]))
    mended = [test for test in row["failures"] if test not in new.get("failures", ())]
    failed = {"failed": new["failed"], "failures": new.get("failures", []), "tree again": new["tree"]}
    return {**row, **failed, "passed": row["passed"] + new["passed"], "again": [*row.get("again", ()), *mended]}


def run(name: str, found: dict[str, str], folder: Path, tests: tuple[str, ...] = ()) -> dict:
    """A row of the table."""
    row, done = ROWS[name], {"name": name, "about": ROWS[name].about, "tree": tree()}
    row = replace(row, tests=tests or row.tests)
    try:
        if row.stranger and os.geteuid() != 0:
            raise NotRun("only root can run it as somebody else")
        python = environment(row, found, folder)
        told = subprocess.run([str(python), "-c", ABOUT], check=True, capture_output=True, text=True, cwd="/").stdout
        loops = max(1, (os.cpu_count() or 2) - 1) if row.busy else 0
        began = time.monotonic()
        with others_at_work(loops):
            output = suite(name, row, python, folder / f"{name}.txt")
            load = os.getloadavg()[0]
    except (NotRun, subprocess.CalledProcessError) as reason:
        return {**done, "not run": str(reason)}
    versions = dict(zip(("python", "torch", "numpy"), json.loads(told)))
    took = {"seconds": round(time.monotonic() - began), "load": round(load, 1)}
    return {**done, **versions, "tests": " ".join(row.tests) or "all", **counted(output), **took}


# ---- the table -------------------------------------------------------------------------------------------------------


def sound(row: dict) -> bool:
    return "not run" not in row and row["failed"] == 0 and row["passed"] > 0


def page(table: dict) -> str:
    """The table as Markdown."""
    columns = ("python", "torch", "numpy", "tests", "passed", "skipped", "failed", "seconds", "load")
    lines = [
        "# The suite on other machines",
        f"`{table['command']}`; {table['machine']}. Each row is the suite of `make test` in a fresh copy of the source "
        "and, where versions differ, in an environment of its own. What is skipped needs a package that `make test` "
        "does not install, or a GPU. Load: processes at work at the end, the suite's own one included.",
        f"| row | what is different | {' | '.join(columns)} |\n|{'---|' * (2 + len(columns))}",
    ]
    for row in table["rows"]:
        cells = [str(row[c]) for c in columns] if "not run" not in row else [f"not run: {row['not run']}"]
        lines[-1] += f"\n| {' | '.join([row['name'], row['about'], *cells, *[''] * (len(columns) - len(cells))])} |"
    mended = "failed at first, was mended, and passed by itself"
    lines += [f"{row['name']}: {failure}" for row in table["rows"] for failure in row.get("failures", ())]
    lines += [f"{row['name']}: {test} {mended}" for row in table["rows"] for test in row.get("again", ())]
    return "\n\n".join(lines) + "\n"


def written() -> dict[str, dict]:
    return {row["name"]: row for row in json.loads(TABLE.read_text("utf-8"))["rows"]} if TABLE.exists() else {}


def write(row: dict) -> None:
    """The rows in the program's order, this one new: a stopped run loses one row at most."""
    rows = {**written(), row["name"]: row}
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    ordered = [rows.get(name, {"name": name, "about": ROWS[name].about, "not run": "not yet"}) for name in ROWS]
    table = {"command": "make machines", "machine": machine, "rows": ordered}
    TABLE.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    TABLE.with_suffix(".md").write_text(page(table), encoding="utf-8")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser("machines.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--failed", action="store_true", help="of each row only what failed")
    parser.add_argument("--list", action="store_true", help="say what would be run")
    parser.add_argument("--python", action="append", default=[], metavar="FILE", help="an interpreter not on PATH")
    parser.add_argument("--environments", type=Path, default=ROOT / "runs" / "machines", help="where they are made")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.rows if name not in ROWS]:
        parser.error(f"{', '.join(unknown)}: no such row; there are {', '.join(ROWS)}")
    rows, found, now = written(), pythons(args.python), tree()
    wanted = args.rows or [n for n in ROWS if n not in rows or rows[n].get("tree") != now or not sound(rows[n])]
    for name in wanted:
        print(f"{name}: {ROWS[name].about}; {found.get(ROWS[name].python, 'no such Python')}", flush=True)
        if not args.list:
            args.environments.mkdir(parents=True, exist_ok=True)
            how = name, found, args.environments.resolve()
            rows[name] = again(rows[name], *how) if args.failed and rows.get(name, {}).get("failures") else run(*how)
            write(rows[name])
            print(f"  {name}: {json.dumps(rows[name])}", flush=True)
    return 0 if args.list or all("failed" not in rows[n] or sound(rows[n]) for n in wanted) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
