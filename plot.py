"""Curves of one run or several: python plot.py RUN [RUN ...] [--out FILE.png]

Runs that differ in the seed alone are one line, their mean, in a band from the lowest to the highest of them.
"""

import sys
from pathlib import Path

from harness.curves import curves
from support.errors import UserError
from support.program import Parser, program


@program
def main(argv: list[str]) -> int:
    parser = Parser("plot.py", __doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, default=Path("curves.png"))
    args = parser.parse_args(argv)
    if args.out.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UserError(f"--out {args.out}: the name of a .png, .svg or .pdf file is needed")
    for run in args.runs:
        if not (run / "metrics.jsonl").is_file():
            raise UserError(f"{run} holds no metrics.jsonl: give the folder of a run")
    print(curves(args.runs, args.out))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
