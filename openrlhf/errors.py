"""The one error that speaks to the user, and the words of other libraries' errors in it."""


class UserError(ValueError):
    """A fault that the user can mend: it says what was found, where (file, row, column, flag) and what to do.

    Commands print it without a traceback and exit with code 2.
    """

    def __init__(self, *problems: str):
        """Args: problems: one sentence or paragraph each; all of them are shown together."""
        self.problems = list(problems)
        super().__init__("\n".join(problems))


def first_line_of(error: BaseException) -> str:
    """The first line of an error's text, its kind where it has none: as much as fits into a sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
