"""What a run leaves on disk, and how it ends cleanly: folder, log lines, checkpoints, curves, Ctrl-C."""

import contextlib
import json
import os
import pickle
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch


class UserError(Exception):
    """Something the user can mend: printed as one line, exit code 2."""


def one_line(error: BaseException) -> str:
    """What an exception says, without line breaks: a UserError's own words, else its kind as well."""
    text = " ".join(str(error).split()).encode(errors="backslashreplace").decode()
    if isinstance(error, UserError):
        return text
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return f"{type(error).__name__}: {text[:300]}"


@contextlib.contextmanager
def reading(what: str):
    """Whatever a torn, foreign or edited file of the user's makes its reader raise becomes one UserError."""
    try:
        yield
    except (UserError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # torch and tiktoken raise many kinds, a panic of Rust's among them
        raise UserError(f"{what}: {one_line(error)}") from error


class Interrupted(Exception):
    """Ctrl-C or SIGTERM, at a point where the run can end; args: the signal's number and what is left behind."""


def new_folder(name: str) -> str:
    """runs/NAME, or the first of runs/NAME.2, runs/NAME.3, ... that is not there yet."""
    n, folder = 1, f"runs/{name}"
    while Path(folder).exists():
        n += 1
        folder = f"runs/{name}.{n}"
    return folder


def open_folder(out: Path, config: dict, resume: bool) -> None:
    """Make the run's folder; one that already holds a run is refused, unless it is to be resumed."""
    if (out / "last.pt").exists() and not resume:
        raise UserError(f"--out {out} already holds a run: add --resume to go on with it, or choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    if not resume:
        for name in ("metrics.jsonl", "samples.jsonl"):  # of a run that was stopped before its first checkpoint
            (out / name).unlink(missing_ok=True)
    replace(out / "config.json", lambda path: path.write_text(json.dumps({**config, "resume": False}, indent=1) + "\n"))


def save(state: dict, path: Path) -> None:
    replace(path, lambda temporary: torch.save(state, temporary))


def load(path: Path, device: str):
    """What torch has saved, tensors and plain values alone: UserError for a torn file, or one with code in it."""
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:  # its own message tells how to run what is in the file
        raise UserError(f"{path} is refused: torn, no file of torch's, or with more in it than tensors") from error


def fill(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Give a model all of the weights that were read, or none: ValueError for another shape or one not finite."""
    shapes = {name: tuple(x.shape) for name, x in model.state_dict().items()}
    found = {name: tuple(x.shape) for name, x in weights.items()}
    for name in shapes | found:
        if shapes.get(name) != found.get(name):
            raise ValueError(f"the shape of {name} is {found.get(name)}; {shapes.get(name)} is needed")
    check_finite(weights)
    model.load_state_dict(weights)


def check_finite(weights: dict[str, torch.Tensor]) -> None:
    for name, x in weights.items():
        if not x.is_floating_point():
            raise ValueError(f"{name} is of {x.dtype}; numbers with a point are needed")
        if not torch.isfinite(x).all():
            raise ValueError(f"{int((~torch.isfinite(x)).sum())} values of {name} are not finite")


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write under a temporary name, then rename: a reader finds the old file or the new one, never half of one."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    write(temporary)
    os.replace(temporary, path)


def truncate(path: Path, last_step: int) -> None:
    """Drop the lines of steps after the checkpoint that the run goes on from, a half-written last one included.

    UserError for a line before it that is no line of a run: the file is left as it is.
    """
    kept, lines = [], path.read_bytes().splitlines() if path.exists() else []
    for i, line in enumerate(lines, start=1):
        try:
            if json.loads(line)["step"] > last_step:
                break
        except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
            if i == len(lines):
                break
            raise UserError(f"{path}:{i}: no line of a run; mend or remove it, and resume again") from error
        kept.append(line.decode() + "\n")
    replace(path, lambda temporary: temporary.write_text("".join(kept)))


def append(path: Path, row: dict) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


PRINTED = (
    "step",
    "reward",
    "length",
    "entropy",
    "no_spread",
    "grad_norm",
    "lambda",
    "weight",
    "clipped_low",
    "clipped_high",
    "tokens/s",
    "pass@1",
    "greedy",
    "leakage",
    "teacher pass@1",
    "peak GiB",
)


def log(out: Path, row: dict) -> None:
    """One line for people and grep, the whole row to metrics.jsonl."""
    append(out / "metrics.jsonl", row)
    shown = {name: row[name] for name in PRINTED if name in row}
    print(" ".join(f"{name.replace(' ', '_')}={value:.4g}" for name, value in shown.items()), flush=True)


def peak_memory(device: str) -> float:
    """Highest use so far, in GiB: allocated on the GPU, or resident in this process (nan where that is not told)."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def finish(out: Path) -> None:
    """Say what the run reached, and draw its curves where matplotlib is installed."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    evaluated = [row for row in rows if "pass@1" in row]
    if not evaluated:  # of a resumed run whose earlier lines somebody took away
        return
    first, last = evaluated[0], evaluated[-1]
    print(
        f"held-out pass@1 {first['pass@1']:.3f} -> {last['pass@1']:.3f}, greedy {first['greedy']:.3f} -> "
        f"{last['greedy']:.3f} in {last['step']} updates ({sum(row.get('seconds', 0) for row in rows):.0f} s)"
    )
    try:
        import plot
    except ImportError:
        print("curves.png left out: matplotlib is not installed")
        return
    print(f"curves: {plot.curves([out], out / 'curves.png')}")


class Interrupt:
    """Ctrl-C and SIGTERM ask for a clean end after the current step; a second Ctrl-C ends at once."""

    def __init__(self):
        self.signal = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.handle)

    def handle(self, number, frame):
        self.signal = number
        signal.signal(signal.SIGINT, signal.default_int_handler)


def progress(steps: range):
    """The steps, with a bar on standard error where that is a terminal and tqdm is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return steps
    return tqdm(steps, disable=not sys.stderr.isatty())
