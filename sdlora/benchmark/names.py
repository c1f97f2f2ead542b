"""The names of what is measured, as settings, files and reports have them: conditions of a drawing, operations on an adapter."""

BASE, CONTROL = "base", "base again"
CONDITION_NAMES = (
    *(BASE, CONTROL, "idle", "fused", "stacked", "stacked 2", "stacked 4", "stacked 8", "own 8"),
    *("diffusers", "PEFT", "PEFT 4", "PEFT 8", "PEFT fused"),
)

OTHERS = 24  # adapters that are loaded already when the 25th comes
READY, LATE = "read, map and put on, stacked", f"the same with {OTHERS} others on the model"
THEIRS, THEIRS_LATE = "load_lora_weights and set_adapters (PEFT)", f"the same with {OTHERS} others loaded (PEFT)"
CHANGE, THEIR_CHANGE = "change the strength, stacked", "set_adapters (PEFT)"
OPERATIONS = (READY, LATE, THEIRS, THEIRS_LATE, CHANGE, THEIR_CHANGE)

OVER = " / "  # between the two of a pair
