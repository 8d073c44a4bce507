"""Tables of a launch's counters: what it did, and which source lines pay for bank conflicts."""


def table(rows, header=()):
    """Text columns, numbers to the right, everything else to the left."""
    rows = [tuple(header)] * bool(header) + [tuple(rows_) for rows_ in rows]
    shown = [[format_cell(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in shown) for i in range(len(shown[0]))] if shown else []
    numeric = [all(isinstance(row[i], (int, float)) for row in rows[bool(header) :]) for i in range(len(widths))]
    lines = ["  ".join(cell.rjust(w) if n else cell.ljust(w) for cell, w, n in zip(row, widths, numeric)).rstrip() for row in shown]
    if header:
        lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(lines)


def format_cell(cell):
    if isinstance(cell, float) and not cell.is_integer():
        return f"{cell:,.3f}"
    return f"{int(cell):,}" if isinstance(cell, (int, float)) else str(cell)


def summary(counters, **others):
    """One column a launch: summary(forward) or summary(forward, padded=other)."""
    columns = {"count": counters, **others} if others else {"count": counters}
    names = list(dict.fromkeys(name for column in columns.values() for name, value in column.items() if isinstance(value, (int, float))))
    return table([(name, *(column.get(name, 0) for column in columns.values())) for name in names], ("counter", *columns))


def conflicts(counters, smallest=1.0):
    """Source lines that access shared memory: (line, accesses, wavefronts, least possible, ratio), the worst excess first."""
    rows = []
    for source, line in counters["lines"].items():
        ideal = line["shared_wavefronts_ideal"]
        if ideal and line["shared_wavefronts"] / ideal >= smallest:
            rows.append((source, line["warp_instructions"], line["shared_wavefronts"], ideal, line["shared_wavefronts"] / ideal))
    return sorted(rows, key=lambda row: row[3] - row[2])


def bank_conflicts(counters, smallest=1.0):
    """The same as a table."""
    return table(conflicts(counters, smallest), ("source line", "accesses", "wavefronts", "ideal", "ratio"))


def hot_lines(counters, count=20):
    """The source lines that issue most warp instructions, with the fraction of lanes at work."""
    lines = sorted(counters["lines"].items(), key=lambda item: -item[1]["warp_instructions"])[:count]
    return table(
        [
            (
                source,
                line["warp_instructions"],
                line["thread_instructions"] / (32 * line["warp_instructions"]) if line["warp_instructions"] else 0.0,
                line["global_sectors"],
            )
            for source, line in lines
        ],
        ("source line", "instructions", "lanes at work", "sectors"),
    )
