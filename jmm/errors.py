"""The one exception whose message is meant for the person at the keyboard."""


class UserError(Exception):
    """Bad input: one sentence that names what is wrong and what would be right.

    The `jmm` command prints it on standard error and exits with `code`.
    """

    def __init__(self, message: str, code: int = 1):
        super().__init__(message)
        self.code = code
