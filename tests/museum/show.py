"""Make every mistake of the museum in a copy of the code, and say which test notices it.

python tests/museum/show.py           # the test alone that the piece names, as make test does: results/museum.json
python tests/museum/show.py --whole   # all test files of the changed module, to the first failure
python tests/museum/show.py --print   # the first, and nothing is written
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mutants import tests_of
from planted import ROOT, Copy, Verdict, warm_up

from museum.pieces import PIECES, Piece


def show(copy: Copy, piece: Piece, whole: bool) -> Verdict:
    text = (ROOT / piece.file).read_text()
    if text.count(piece.old) != 1:
        return Verdict("broken", f"{piece.file} has {text.count(piece.old)} places for mistake {piece.number}")
    tests = tests_of(piece.file) if whole else [piece.noticed_by]
    return copy.verdict(piece.file, text.replace(piece.old, piece.new), tests)


def main(options: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--whole", action="store_true", help="all test files of the changed module")
    parser.add_argument("--print", action="store_true", help="write nothing")
    given = parser.parse_args(options)
    warm_up()
    rows = []
    with Copy() as copy:
        for piece in PIECES:
            verdict = show(copy, piece, given.whole)
            rows.append({"number": piece.number, "mistake": piece.mistake, "file": piece.file, **vars(verdict)})
            print(json.dumps(rows[-1]), flush=True)
    caught = sum(row["outcome"] == "failed" for row in rows)
    if not given.print:
        result = {"command": "make museum", "caught": caught, "pieces": len(rows), "rows": rows}
        (ROOT / "results" / "museum.json").write_text(json.dumps(result, indent=1) + "\n")
    return int(caught < len(rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
