"""What a message may hold: one line of at most 300 characters that a terminal shows and does not obey."""
import pytest

from nanopref.errors import UserError, one_line, shown


@pytest.mark.parametrize("text, expected", [
    ("a naïve 名字", "a naïve 名字"),
    ("a\nb\r\x1b[2J\x00", r"a\nb\r\x1b[2J\x00"), ("\x85\u2028\u202e", r"\x85\u2028\u202e"),
    ("\udcff", r"\udcff"),  # a byte of the command line that is no UTF-8
])
def test_a_message_is_one_line(text, expected):
    assert one_line(text) == str(UserError(text)) == expected


def test_a_message_keeps_its_start_and_its_end():
    """Which say where it is wrong, and what to do; also where escapes make it longer."""
    assert str(UserError("x" * 300)) == "x" * 300
    for middle in ("x" * 400, "x" * 10**6, "\x1b" * 290):
        message = str(UserError(f"line 1: {middle}. Correct the row"))
        assert len(message) <= 300 and message.startswith("line 1: ") and message.endswith(". Correct the row")
        assert " ... " in message and message.isprintable()


@pytest.mark.parametrize("value, expected", [
    ("a'b\n", r'''"a'b\n"'''), (1.5, "1.5"), (None, "None"), ("x" * 10**6, "'xx ... xx'"),
    ({"\x1b[2J": 1}, r"{'\x1b[2J': 1}"),
])
def test_a_value_is_shown_as_python_writes_it(value, expected):
    assert shown(value, 11 if "..." in expected else 60) == expected


def test_a_value_that_python_does_not_write_is_named():
    nested = []
    for _ in range(5000):
        nested = [nested]
    assert shown(nested) == "(list)" and shown(10**5000) == "(int)"
