"""The one exception that means "you can fix this": bad data, a bad flag, a bad file. And how foreign text is shown."""


class UserError(Exception):
    """Carries one line: which file, line or field, what was expected, what to do.

    The scripts print it without a traceback and exit with code 2; nothing has been overwritten by then. What it says of
    a file, and in the file's own words, reaches a terminal: see one_line.
    """

    def __init__(self, message):
        super().__init__(one_line(message))


def one_line(text, limit=300) -> str:
    """`text` without what a terminal might obey or cannot show (line ends, control characters, half of a surrogate
    pair), each escaped as in "\\n", and without the middle of what is longer than `limit` characters."""
    text = str(text)
    if len(text) > 2 * limit:  # escapes may make it longer, never shorter
        text = text[:limit] + text[-limit:]
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    half = (limit - 5) // 2
    return text if len(text) <= limit else f"{text[:half]} ... {text[-half:]}"


def shown(value, limit=60) -> str:
    """`value`, which a file or a user gave, as Python writes it, in one line of at most `limit` characters."""
    try:
        return one_line(repr(value), limit)
    except (RecursionError, ValueError):  # nested a thousand deep; an integer of more than 4,300 digits
        return f"({type(value).__name__})"
