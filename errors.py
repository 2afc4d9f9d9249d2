"""The one line that a user's mistake becomes."""

import contextlib


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
