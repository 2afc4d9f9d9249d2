"""What a run leaves on disk: its folder, checkpoints, lines of metrics. Nothing here writes through a link."""

import contextlib
import itertools
import json
import math
import os
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from support import shards
from support.errors import UserError, check_regular, read_file

FIRST = r"config\.json|metrics\.jsonl|verifier_error(-\d+)?\.txt"  # what may be there before the first checkpoint
HALF = re.compile(rf"({FIRST}|samples\.jsonl|(last|best|skipped-.*)\.pt|curves\.png)\.\d+\.tmp")


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Make the folder, and keep other runs out of it until this one ends, however it ends: the lock dies with it."""
    out.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows has no such lock
        yield
        return
    folder = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            cure = "wait for its end, or choose another folder"
            raise UserError(f"--out {out}: another run is writing there; {cure}") from None
        except OSError as error:  # some network file systems
            print(f"warning: {out} cannot be locked ({error.strerror}): start no second run in it", flush=True)
        yield
    finally:
        os.close(folder)


def claim(stack: contextlib.ExitStack, config: dict, name: str) -> str:
    """--out, or the first of runs/NAME, runs/NAME.2, ... that is new or this command's own; `stack` keeps it locked."""
    n, passed_over = 1, () if config["out"] else (UserError, FileExistsError)
    if not config["out"]:
        Path("runs").mkdir(exist_ok=True)  # a fault of its own is no taken name
    while True:
        out = config["out"] or f"runs/{name}{f'.{n}' * (n > 1)}"
        with contextlib.suppress(*passed_over), contextlib.ExitStack() as attempt:
            Path(out).mkdir(parents=True, exist_ok=os.name != "nt" or config["out"] != "")
            attempt.enter_context(locked(Path(out)))
            check_begun(Path(out), config)
            stack.enter_context(attempt.pop_all())
            return out
        n += 1


def check_begun(out: Path, config: dict) -> None:
    """UserError unless a folder holds at most what a run of ours leaves before its first checkpoint."""
    if (out / "last.pt").exists():
        raise UserError(f"--out {out} already holds a run: add --resume to go on with it, or choose another folder")
    with contextlib.suppress(UserError, ValueError, AttributeError, RecursionError):
        whole = [path for path in out.iterdir() if not HALF.fullmatch(path.name)]
        saved = json.loads(read_file(out / "config.json")) if whole else {**config, "out": str(out)}
        ours = {"method", "fingerprint"} <= saved.keys() <= config.keys()
        ours &= all(re.fullmatch(FIRST, path.name) for path in whole)
        ours &= all(path.is_file() and not path.is_symlink() for path in out.iterdir())
        ours &= config["out"] != "" or saved == {**config, "out": str(out)}
        if ours and not any(row["step"] for row in metrics_of(out)):
            return
    raise UserError(f"--out {out} holds more than a run leaves before its first checkpoint: choose another folder")


def open_folder(out: Path, config: dict, resume: bool) -> None:
    """Clear the run's folder of what a killed run left half-written, or before its first checkpoint."""
    for path in out.iterdir():
        if HALF.fullmatch(path.name) or (re.fullmatch(FIRST, path.name) and not resume):
            path.unlink()
    replace(out / "config.json", lambda path: path.write_text(json.dumps({**config, "resume": False}, indent=1) + "\n"))


def check_apart(writes: dict[str, str], reads: dict[str, str]) -> None:
    """UserError where a folder to write to is, or lies in, what is read or another run's, by whatever names."""
    for (written, path), (read, folder) in itertools.product(writes.items(), reads.items()):
        real = Path(os.path.realpath(path))
        if written != read and path and folder and Path(os.path.realpath(folder)) in (real, *real.parents):
            raise UserError(f"--{written} {path} lies in --{read} {folder}: choose a folder apart from it")


def save(state: dict, path: Path) -> None:
    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:  # handed a name, torch would not say what went wrong
            torch.save(state, file)

    replace(path, write)


def load(path: Path, device: str):
    """What torch has saved, tensors and plain values alone: UserError for a torn file, or one with code in it."""
    check_regular(path)
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:  # its own message tells how to run what is in the file
        raise UserError(f"{path} is refused: torn, no file of torch's, or with more in it than tensors") from error


def fill(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Give a model all of the weights that were read, or none: ValueError for another shape or one not finite."""
    mine = model.state_dict()
    for name in {**mine, **weights}:
        found, needed = (tuple(has[name].shape) if name in has else None for has in (weights, mine))
        if found != needed:
            raise ValueError(f"the shape of {name} is {found}; {needed} is needed")
    check_finite({name: x.to(mine[name].dtype) if x.is_floating_point() else x for name, x in weights.items()})
    model.load_state_dict({name: shards.share_of(x, mine[name]) for name, x in weights.items()})


def check_finite(weights: dict[str, torch.Tensor]) -> None:
    for name, x in weights.items():
        if not x.is_floating_point():
            raise ValueError(f"{name} is of {x.dtype}; numbers with a point are needed")
        if not torch.isfinite(x).all():
            raise ValueError(f"{int((~torch.isfinite(x)).sum())} values of {name} are not finite")


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write under a new name, then rename: a reader finds the old file or the new, never half; no link is followed."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            temporary.unlink(missing_ok=True)
            open(temporary, "x").close()
            write(temporary)
            to_disk(temporary)  # before the name is: power may fail in between
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def to_disk(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """A full disk and its like become one line that names the file."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # behind torch's complaint about it
        if not isinstance(cause, OSError):
            raise
        rest = "files written before are whole, and --resume goes on from the last checkpoint, if there is one"
        rest = f"; {rest}" if (path.parent / "config.json").exists() else ""  # a run's
        raise UserError(f"{path} cannot be written: {cause.strerror}{rest}") from error


def lines_until(path: Path, last_step: float = math.inf) -> list[dict]:
    """The lines of steps up to `last_step`, a dict each, without what a kill left of one; UserError for other files."""
    if path.is_symlink():
        raise UserError(f"{path} is a link: put the file itself there")
    rows: list[dict] = []
    lines = read_file(path).split(b"\n") if path.exists() else [b""]
    for i, line in enumerate(lines, start=1):
        try:
            row = json.loads(line.decode(), parse_constant=lambda name: None)
            if type(row["step"]) is not int or row["step"] < (rows[-1]["step"] if rows else 0):
                raise TypeError
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            torn = isinstance(error, json.JSONDecodeError) and (line[:1] or b"{") in b"{\0"
            if i == len(lines) and torn:  # after a loss of power also bytes of 0
                break
            raise UserError(
                f"{path}:{i}: no line of a run; mend or remove it (JSON in UTF-8, without a byte order mark)"
            ) from error
        if row["step"] > last_step:
            break
        rows.append(row)
    return rows


def truncate(out: Path, last_step: int, note: str = "") -> None:
    """Drop the lines of steps after the checkpoint that the run goes on from; a note is added to the last figures."""
    metrics_of(out, last_step)
    logs = {name: lines_until(out / name, last_step) for name in ("metrics.jsonl", "samples.jsonl")}
    if note and logs["metrics.jsonl"]:
        last = logs["metrics.jsonl"][-1]
        last["notes"] = [*last.get("notes", []), note]
    for name, rows in logs.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        replace(out / name, lambda path: path.write_text(text))


def append(path: Path, row: dict) -> None:
    """A line of JSON that every reader knows: a number that is not finite is null. Not through a link or a pipe."""
    flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    plain = json.loads(json.dumps(row), parse_constant=lambda name: None)
    with writing(path), open(path, "a", opener=lambda name, how: os.open(name, how | flags, 0o666)) as file:
        file.write(json.dumps(plain) + "\n")


def metrics_of(out: Path, last_step: float = math.inf) -> list[dict]:
    """The lines of metrics.jsonl, a dict each, without what is null; UserError for a figure that is none."""
    path = out / "metrics.jsonl"
    rows = [{name: x for name, x in row.items() if x is not None} for row in lines_until(path, last_step)]
    for i, row in enumerate(rows, start=1):
        for name, x in row.items():
            if name == "notes" and not (isinstance(x, list) and all(isinstance(note, str) for note in x)):
                raise UserError(f"{path}:{i}: 'notes' is no list of texts; mend or remove the line")
            if name != "notes" and (type(x) not in (int, float) or not abs(x) < 1e300):
                raise UserError(f"{path}:{i}: {name!r} is no number; mend or remove the line")
    return rows
