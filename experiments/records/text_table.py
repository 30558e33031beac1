"""Tables as aligned text or Markdown, and the texts of their cells."""


def format_table(lines: list[list[str]], form: str) -> str:
    """The lines of cells, the header first, as a table in `form` "text" or "markdown"."""
    if form == "markdown":
        lines = [[cell.replace("|", "\\|") for cell in line] for line in lines]
        rows = ["| " + " | ".join(line) + " |" for line in lines]
        return "\n".join([rows[0], "|" + " --- |" * len(lines[0]), *rows[1:]])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([rows[0], "-" * len(rows[0]), *rows[1:]])


def number(value: float | None, form: str) -> str:
    """The number in a format spec, or a dash for None."""
    return "-" if value is None else format(value, form)


def clock(seconds: float) -> str:
    """ "90 s", "12.3 min" from 2 minutes on, "2h05m" from 2 hours on."""
    if seconds < 7_200:
        return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
    minutes = round(seconds / 60)
    return f"{minutes // 60}h{minutes % 60:02d}m"
