"""How many mutants of each kernel the suite kills: docs/mutants.csv and the table of its page."""

from __future__ import annotations

import csv
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path

from page import rewrite, table

HEADER = ["kernel", "shape", "dtype", "mutants", "run", "killed", "date"]


@dataclass(frozen=True)
class Score:
    kernel: str
    shape: str
    dtype: str
    mutants: int  # of all kinds
    run: int
    killed: int
    date: str

    @property
    def share(self) -> float:
        return self.killed / self.run

    def is_of(self, other: Score) -> bool:
        """Of the same kernel."""
        return astuple(self)[:3] == astuple(other)[:3]


def read(path: Path) -> list[Score]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [
            Score(
                row["kernel"], row["shape"], row["dtype"],
                int(row["mutants"]), int(row["run"]), int(row["killed"]), row["date"],
            )
            for row in csv.DictReader(file)
        ]  # fmt: skip


def record(path: Path, score: Score) -> None:
    """Replaces the kernel's last score, or adds one at the end."""
    scores = read(path)
    places = [i for i, old in enumerate(scores) if old.is_of(score)] or [len(scores)]
    scores[places[0] : places[0] + 1] = [score]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Score)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(x) for x in scores)


def line(score: Score) -> list[str]:
    run = "all" if score.run == score.mutants else f"{score.run:,}, drawn"
    killed = f"{score.killed:,} ({100 * score.share:.1f} %)"
    return [score.kernel, score.shape, score.dtype, f"{score.mutants:,}", run, killed, score.date]


def show(page: Path, scores: list[Score]) -> None:
    rewrite(page, "mutants", table(HEADER, [line(x) for x in scores]))
