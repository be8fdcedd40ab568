"""The one exception that means "you can fix this": bad data, a bad flag, a bad file."""


class UserError(Exception):
    """Carries one line: which file, line or field, what was expected, what to do.

    The scripts print it without a traceback and exit with code 2; nothing has been overwritten by then.
    """
