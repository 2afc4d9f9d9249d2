"""Make every mistake of the museum in a copy of the code, and say which test notices it.

python tests/museum/show.py             # the test alone that the piece names, as make test does: results/museum.json
python tests/museum/show.py --print     # the same, and nothing is written
python tests/museum/show.py --planted   # the mistakes of mistakes.py: every test that names the file, to the first
                                        # failure, known ones of the same code and tests left out: results/planted.json
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mutants import Mutant, others_of, state_of, tests_of, tried
from planted import ROOT, Copy, Verdict, shared_out, warm_up

from museum.mistakes import MISTAKES
from museum.pieces import PIECES


def changed(piece) -> str:
    """The text of the file with the mistake in it."""
    text = (ROOT / piece.file).read_text()
    if text.count(piece.old) != 1:
        raise ValueError(f"{piece.file} has {text.count(piece.old)} places for: {piece.mistake}")
    return text.replace(piece.old, piece.new)


def kept(name: str, result: dict) -> None:
    (ROOT / "results" / name).write_text(json.dumps(result, indent=1) + "\n")


def museum(write: bool) -> int:
    rows = []
    with Copy() as copy:
        for piece in PIECES:
            verdict = copy.verdict(piece.file, changed(piece), [piece.noticed_by])
            rows.append({"number": piece.number, "mistake": piece.mistake, "file": piece.file, **vars(verdict)})
            print(json.dumps(rows[-1]), flush=True)
    caught = sum(row["outcome"] == "failed" for row in rows)
    if write:
        kept("museum.json", {"command": "make museum", "caught": caught, "pieces": len(rows), "rows": rows})
    return int(caught < len(rows))


# ---- the mistakes of mistakes.py -------------------------------------------------------------------------------------


def asked(file: str) -> list[str]:
    return [*tests_of(file), *others_of(file)]


def noticed(copy: Copy, mistake, tests: list[str], sore: set[str]) -> Verdict:
    """The first test that fails with the mistake, file by file; sore ones, which fail without it, do not count."""
    text, seconds = (ROOT / mistake.file).read_text(), 0.0
    for test in tests:
        while (verdict := copy.verdict(mistake.file, changed(mistake), [test], sore=sore)).outcome == "failed":
            seconds += verdict.seconds
            if copy.verdict(mistake.file, text, [verdict.test]).outcome == "passed":
                return Verdict("failed", verdict.test, round(seconds, 2))
            print(f"{verdict.test} fails without any mistake")
            sore.add(verdict.test)
        seconds += verdict.seconds
    return Verdict("passed", "", round(seconds, 2))


def try_out(todo: list, journal: Path) -> None:
    sore: set[str] = set()
    with Copy() as copy:
        for mistake, key, state in todo:
            verdict = noticed(copy, mistake, asked(mistake.file), sore)
            row = {"key": key, "state": state, "file": mistake.file, "mistake": mistake.mistake, **vars(verdict)}
            print(json.dumps(row), flush=True)
            with journal.open("a") as file:
                file.write(json.dumps(row) + "\n")


def planted(jobs: int) -> int:
    """Tries what is not known yet; 1 where a mistake is not noticed."""
    journal = ROOT / "runs" / "planted.jsonl"
    journal.parent.mkdir(exist_ok=True)
    key = lambda mistake: Mutant(mistake.file, 0, "", "", "", changed(mistake)).key
    of = [(mistake, key(mistake), state_of(asked(mistake.file))) for mistake in MISTAKES]
    todo = [one for one in of if tried(journal, one[2]).get(one[1], {"outcome": "broken"})["outcome"] == "broken"]
    todo.sort(key=lambda one: len(asked(one[0].file)))  # those of the core, which most tests name, come last
    print(f"{len(of)} mistakes, {len(todo)} to try", flush=True)
    shared_out(todo, jobs, lambda part: try_out(part, journal))
    rows = [tried(journal, state)[key] for _, key, state in of]
    rows = [{name: row[name] for name in ("file", "mistake", "outcome", "test", "seconds")} for row in rows]
    missed = [row for row in rows if row["outcome"] != "failed"]
    seen = len(rows) - len(missed)
    kept("planted.json", {"command": "make planted", "seen": seen, "mistakes": len(rows), "rows": rows})
    for row in missed:
        print(f"missed: {row['file']}: {row['mistake']} ({row['outcome']})")
    print(f"{seen} of {len(rows)} seen")
    return int(seen < len(rows))


def main(options: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--print", action="store_true", help="write nothing")
    parser.add_argument("--planted", action="store_true", help="the mistakes of mistakes.py")
    parser.add_argument("--jobs", type=int, default=1, help="with --planted: processes at a time")
    given = parser.parse_args(options)
    warm_up()
    return planted(given.jobs) if given.planted else museum(write=not given.print)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
