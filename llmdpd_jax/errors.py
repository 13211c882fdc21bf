"""The one exception that means "the user can mend this"."""


class UserError(ValueError):
    """Bad input: the message names the file, field or value at fault and says what would be right.

    The command line prints the message alone, without a traceback, and exits with status 2.
    """
