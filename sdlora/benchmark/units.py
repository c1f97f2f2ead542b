"""Times in words."""

UNITS = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))


def duration(seconds: float) -> str:
    """In three digits, in the unit in which it reads best."""
    rounded = {unit: float(f"{seconds / size:.3g}") for unit, size in UNITS}  # 999.6 ms are 1 s
    unit = next((unit for unit, number in rounded.items() if number >= 1), "µs")
    return f"{rounded[unit]:g} {unit}"


def span(seconds: float) -> str:
    """m:ss.d, as the published table has it."""
    tenths = round(10 * seconds)
    return f"{tenths // 600}:{tenths % 600 // 10:02d}.{tenths % 10}"
