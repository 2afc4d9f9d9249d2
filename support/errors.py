"""The one line that a user's mistake becomes, and the reading of a user's files, of whatever content they are."""

import contextlib
import os
import re
import stat
from pathlib import Path

LONGEST_LINE = 800  # characters; of a longer one the middle is left out
LARGEST_FILE = 2**30  # bytes of a user's file that is read whole
BLANK = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"  # they count as printable, and show nothing


class UserError(Exception):
    """Something the user can mend: printed as one line, exit code 2."""


def visible(text: str) -> str:
    """Text in characters that show: nothing in it moves a cursor, turns other text around or hides."""
    return "".join(c if c.isprintable() and c not in BLANK else c.encode("unicode_escape").decode() for c in text)


def one_line(error: BaseException) -> str:
    """What an exception says, visible and of bounded length: a UserError's own words, else its kind as well."""
    text = re.sub(r"[ \t\r\n]+", " ", str(error)).strip()
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    elif not isinstance(error, UserError):
        text = f"{type(error).__name__}: {text[:300]}"
    line = visible(text)
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 205]} ... {line[-200:]}"


@contextlib.contextmanager
def reading(what: str):
    """Whatever a torn, foreign or edited file of the user's makes its reader raise becomes one UserError."""
    try:
        yield
    except (UserError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # torch and tiktoken raise many kinds, a panic of Rust's among them
        raise UserError(f"{what}: {one_line(error)}") from error


def check_regular(path: str | Path) -> int:
    """The size of a file in bytes; UserError for a pipe or a device, of which nobody knows when it ends."""
    found = os.stat(path)
    if stat.S_IFMT(found.st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
        raise UserError(f"{path} is a pipe or a device: save what it gives to a file, and name that")
    return found.st_size


def read_file(path: str | Path) -> bytes:
    """All bytes of a user's file; UserError for one that is not there, too large, or none: a pipe may never end."""
    try:
        if (size := check_regular(path)) > LARGEST_FILE:
            raise UserError(f"{path} has {size:,} bytes; {LARGEST_FILE:,} are the most that is read")
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL in it
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', error)}") from error
