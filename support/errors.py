"""The one line that a user's mistake becomes; where mistakes come from: command lines, and files of any content."""

import argparse
import contextlib
import functools
import io
import os
import re
import stat
import sys
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


class Parser(argparse.ArgumentParser):
    """The options of a program, by their whole names; what is wrong with them is one line and exit code 2."""

    def __init__(self, prog: str, description: str | None, **more):
        more = {"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter, **more}
        super().__init__(prog, description=description, **more)

    def parse_known_args(self, args=None, namespace=None):
        self.given = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(args, namespace)

    def parse_known_intermixed_args(self, args=None, namespace=None):  # which from Python 3.13 on does not call that
        self.given = sys.argv[1:] if args is None else list(args)
        return super().parse_known_intermixed_args(args, namespace)

    def _print_message(self, message, file=None):
        (file or sys.stderr).write(message)  # argparse passes over what cannot be written, as if it had been

    def error(self, message):
        self.exit(2, f"{self.prog}: {one_line(UserError(self.advised(message)))}\n")

    def advised(self, message: str) -> str:
        """What argparse says, and how a value that begins with a minus is given: it took it for an option."""
        option = message.removeprefix("argument ").partition(":")[0] if "expected one argument" in message else ""
        value = dict(zip(self.given, self.given[1:])).get(option, "")
        if option and value.startswith("-") and value.partition("=")[0] not in self._option_string_actions:
            message += f"; a value that begins with a minus is given as {option}={value}"
        if re.match("unrecognized arguments: -[^-a-zA-Z]", message):
            message += "; what begins with a minus and is no option stands behind --"
        return f"{message[:400]} (python {self.prog} --help lists the options)"


def program(main):
    """A program's main whose every end is an exit code: one line for what the user can mend, none for a closed pipe."""

    @functools.wraps(main)
    def run(argv):
        code, failure = 2, None
        try:
            for name, mode in {"stdin": "r", "stdout": "w", "stderr": "w"}.items():
                if getattr(sys, name) is None:  # closed: the next file opened would get its number
                    way = os.O_RDONLY if name == "stdout" else os.O_RDWR  # what is printed must not get lost
                    setattr(sys, name, open(os.open(os.devnull, way), mode))
                if isinstance(getattr(sys, name), io.TextIOWrapper):
                    getattr(sys, name).reconfigure(errors="backslashreplace")  # whatever the terminal's alphabet
            code = main(argv)
        except SystemExit as done:  # argparse has said what there is to say
            code = done.code
        except KeyboardInterrupt:
            code = 130
        except (UserError, OSError) as error:
            failure = error
        for stream in (sys.stderr, sys.stdout):
            try:
                stream.flush()
            except OSError as error:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # at exit Python would try, and tell, again
                error.filename = "standard output"
                failure = error if failure or not code else None  # else main has told
        if failure and not isinstance(failure, BrokenPipeError):  # of `| head`: nobody reads on
            with contextlib.suppress(OSError):
                print(f"{os.path.basename(main.__code__.co_filename)}: {one_line(failure)}", file=sys.stderr)
        return 2 if failure else code

    return run
