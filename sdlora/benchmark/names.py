"""The names of what is measured, as settings, files and reports have them: conditions of a drawing, operations on an adapter."""

BASE, CONTROL = "base", "base again"
CONDITION_NAMES = (
    *(BASE, CONTROL, "idle", "fused", "stacked", "stacked 2", "stacked 4", "stacked 8", "own 8"),
    *("compiled", "fused compiled"),
    *("diffusers", "PEFT", "PEFT 4", "PEFT 8", "PEFT fused"),
)

OTHERS = 24  # adapters that are loaded already when the 25th comes
READY, LATE = "read, map and put on, stacked", f"the same with {OTHERS} others on the model"
THEIRS, THEIRS_LATE = "load_lora_weights and set_adapters (PEFT)", f"the same with {OTHERS} others loaded (PEFT)"
CHANGES = "change the strengths of 8, stacked"
HELP, FIRST = "sdlora --help", "sdlora generate, its first picture"  # whole commands, from the shell to their end
COMPILING = "torch.compile of the U-Net, in a first drawing"
CHANGE, THEIR_CHANGE = "change the strength, stacked", "set_adapters (PEFT)"

AGAINST = (  # conditions that are compared, beside each with the base
    ("base", "diffusers"),
    ("compiled", "diffusers"),
    ("stacked", "PEFT"),
    ("stacked 4", "PEFT 4"),
    ("stacked 8", "PEFT 8"),
    ("own 8", "stacked"),
    ("fused", "PEFT fused"),
    ("fused compiled", "PEFT fused"),
    ("PEFT", "diffusers"),
    ("PEFT 4", "diffusers"),
    ("PEFT 8", "diffusers"),
    ("PEFT fused", "diffusers"),
)
COMPARED = ((READY, THEIRS), (CHANGE, THEIR_CHANGE), (LATE, READY), (THEIRS_LATE, THEIRS), (LATE, THEIRS_LATE))  # and operations

ALONE = (READY, LATE, CHANGE, CHANGES, HELP, FIRST)  # operations that a limit in seconds can be set for

OVER = " / "  # between the two of a pair
STEP, PICTURE = ", a step", ", a picture"  # behind a ratio of drawings that took turns: of what it is
