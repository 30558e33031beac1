"""Checks of how a program ended."""


def one_line(ended, *parts):
    """Checks that a program ended with one line of these words."""
    assert ended.status == 2, ended.err
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1, ended.err
    for part in parts:
        assert str(part) in ended.err
