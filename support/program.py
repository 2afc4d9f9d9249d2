"""A program's two ends: its command line, and an exit code with at most one line, whatever happens in between."""

import argparse
import contextlib
import functools
import io
import os
import re
import sys

from support.errors import UserError, one_line


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
        raise UserError(self.advised(message))

    def advised(self, message: str) -> str:
        """What argparse says, and how a value that begins with a minus is given: it took it for an option."""
        option = message.removeprefix("argument ").partition(":")[0] if "expected one argument" in message else ""
        value = dict(zip(self.given, self.given[1:])).get(option, "")
        if option and value.startswith("-") and value.partition("=")[0] not in self._option_string_actions:
            message += f"; a value that begins with a minus is given as {option}={value}"
        if re.match("unrecognized arguments: -[^-a-zA-Z]", message):
            message += "; what begins with a minus and is no option stands behind --"
        return f"{message[:400]} (python {self.prog} --help lists the options)"


def program(main=None, *, left: str = ""):
    """A program's main whose every end is an exit code: one line for what the user can mend, none for a closed pipe.

    left: what a program of hours leaves behind where it is broken off; it says so, and tells of a closed pipe as well.
    Under torchrun process 0 alone tells, until the processes have begun their work.
    """
    if main is None:
        return functools.partial(program, left=left)
    name = os.path.basename(main.__code__.co_filename)

    @functools.wraps(main)
    def run(argv):
        code, failure = 2, None
        try:
            open_streams()
            code = main(argv)
        except SystemExit as done:  # argparse has said what there is to say
            code = done.code
        except KeyboardInterrupt:
            code, failure = 130, UserError(f"interrupted at once; {left}") if left and is_first() else None
        except (UserError, OSError) as error:
            failure = error
        except RuntimeError as error:
            if not (failure := end_of_another(error)):
                raise
        for stream in (sys.stderr, sys.stdout):
            try:
                stream.flush()
            except OSError as error:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # at exit Python would try, and tell, again
                error.filename = "standard output"
                if not code or isinstance(failure, OSError) and failure.filename is None:  # which was this one
                    code, failure = 2, error
        nobody_reads_on = isinstance(failure, BrokenPipeError) and not left  # `| head`
        if failure and not nobody_reads_on and speaks():
            with contextlib.suppress(OSError):  # at one go: other processes may write theirs at the same moment
                sys.stderr.write(f"{name}: {one_line(failure)}\n")
        return code

    return run


def open_streams() -> None:
    """Streams that are there, whatever the shell has closed, and that take any letter in any terminal."""
    for name, mode in {"stdin": "r", "stdout": "w", "stderr": "w"}.items():
        if getattr(sys, name) is None:  # closed: the next file opened would get its number
            way = os.O_RDONLY if name == "stdout" else os.O_RDWR  # what is printed must not get lost
            setattr(sys, name, open(os.open(os.devnull, way), mode))
        if isinstance(getattr(sys, name), io.TextIOWrapper):
            getattr(sys, name).reconfigure(errors="backslashreplace")


# ---- several processes: torch, which takes a second, is imported where there are any --------------------------------


def is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"


def speaks() -> bool:
    if is_first():
        return True
    from support import processes

    return processes.speaks()


def end_of_another(error: RuntimeError) -> UserError | None:
    """What a process says that has lost its connection to one that ended; None for another error."""
    from support import processes

    if processes.has_lost_another(error):
        return UserError(f"process {processes.rank()} ends, as another one has ended")
    return None
