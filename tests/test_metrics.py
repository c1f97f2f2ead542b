"""metrics.jsonl is JSON to the letter, whatever a step was like."""

import json
import math

import pytest

from sdlora.training import metrics
from sdlora.training.loop import Step


def strictly(line: str) -> dict:
    return json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


@pytest.mark.parametrize("norm", [math.inf, math.nan])
def test_a_step_that_overflowed_is_null_and_called_skipped(tmp_path, norm):
    path = tmp_path / "metrics.jsonl"
    metrics.append(path, Step(1, 0.5, 0.25, 1e-4, 0.1))
    metrics.append(path, Step(2, 0.5, norm, 1e-4, 0.1))
    plain, skipped = map(strictly, path.read_text().splitlines())
    assert plain == {"number": 1, "loss": 0.5, "grad_norm": 0.25, "learning_rate": 1e-4, "seconds": 0.1}
    assert skipped == plain | {"number": 2, "grad_norm": None, "skipped": True}
    metrics.rewind(path, 2)
    assert metrics.read(path) == [plain, skipped] and [strictly(line) for line in path.read_text().splitlines()] == [plain, skipped]
    metrics.rewind(path, 1)
    assert metrics.read(path) == [plain]
