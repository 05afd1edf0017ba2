"""The one error that speaks to the user, and what other libraries' errors mean."""

import errno
import re

_LOGIN = re.compile(r"(?<=://)[^/?#\s]*@")

_NO_MEMORY_IN_WORDS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "alloc_failed",
    "allocation_failed",
    "cublas_status_not_initialized when calling `cublascreate",  # a full GPU has no room for cuBLAS's own memory
    "failed to allocate",
    "std::bad_alloc",
    "can't start new thread",  # no room for its stack in the address space (`ulimit -v`), or too many (`ulimit -u`)
    "failed to launch worker thread",  # pyarrow's
)
_NO_THREAD_IN_CPP = "resource temporarily unavailable"  # all that is said; in a longer text it may be of a connection


class UserError(ValueError):
    """A fault that the user can mend: it says what was found, where (file, row, column, flag) and what to do.

    Commands print it without a traceback and exit with code 2. Logins in addresses stand in none of its sentences.
    """

    def __init__(self, *problems: str):
        """Args: problems: one sentence or paragraph each; all of them are shown together."""
        self.problems = [without_logins(problem) for problem in problems]
        super().__init__("\n".join(self.problems))


def without_logins(text: str) -> str:
    """What stands as `user:password@` in addresses is left away."""
    return _LOGIN.sub("", text)


def first_line_of(error: BaseException) -> str:
    """The first line of an error's text that says something, its kind where none does: what fits into a sentence.

    Logins in addresses are left away: libraries show the address that they were given.
    """
    lines = (without_logins(str(error)).strip() or type(error).__name__).splitlines()
    return " ".join(" ".join(lines[: 2 if lines[0].endswith(":") else 1]).split())[:300]


def how_to_install(extra: str) -> str:
    """For a message: from the folder of this library, as its name on the package index is another project's."""
    return f"pip install '.[{extra}]' in the folder of this library"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator has refused: torch's, of any device, Python's, the system's; also for a thread."""
    speaks = isinstance(error, RuntimeError) or type(error).__name__ == "ArrowException"  # pyarrow's "Unknown error"
    said = str(error).lower()
    in_words = speaks and (said.strip() == _NO_THREAD_IN_CPP or any(words in said for words in _NO_MEMORY_IN_WORDS))
    by_number = isinstance(error, OSError) and error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or in_words or by_number
