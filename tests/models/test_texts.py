import pytest

from vaegis.models.texts import printable, printable_lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("reconstruction error", "reconstruction error"),
        ("Maß in µm, 温度", "Maß in µm, 温度"),
        ("\x1b[2J\x1b]0;x\x07evil", "[2J]0;xevil"),
        ("\x9b31mred", "31mred"),
        ("a\nb\tc\r\nd", "a b c  d"),
        ("abc\u202edef\u2066g", "abcdefg"),
        ("one\u2028two", "one two"),
        ("\ud800half", "half"),
        ("", ""),
    ],
)
def test_control_characters_are_removed(text, shown):
    assert printable(text) == shown


def test_lines_stay_lines():
    assert printable_lines("a\x1b[1m\nb\x07") == "a[1m\nb"
