"""The CPU backend; importing it registers its kernels with torch."""

def isa() -> str:
    """The instruction set that this process uses, by DIFFATTN_CPU_ISA or the machine's best."""

def instruction_sets() -> dict[str, bool]:
    """What was compiled in, best first, and whether this machine runs it."""
