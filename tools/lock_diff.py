"""What is installed in another version than constraints.txt pins: what `make test-latest` tried."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement

LOCK = Path(__file__).resolve().parent.parent / "constraints.txt"


def pins(text: str) -> list[Requirement]:
    """The lock's lines that hold on this machine and this Python."""
    lines = (line.split(" #")[0].strip() for line in text.splitlines())
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return [pin for pin in found if pin.marker is None or pin.marker.evaluate()]


def differences(text: str) -> list[str]:
    lines = []
    for pin in pins(text):
        try:
            installed = version(pin.name)
        except PackageNotFoundError:
            continue
        if not pin.specifier.contains(installed, prereleases=True):
            lines.append(f"{pin.name} {installed}, locked {pin.specifier}")
    return lines


if __name__ == "__main__":
    print("\n".join(differences(LOCK.read_text())) or "nothing differs from constraints.txt")
