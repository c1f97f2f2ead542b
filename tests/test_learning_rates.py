"""The learning rate's schedules: golden values, and those of transformers after the warm-up."""

import math
from pathlib import Path

import pytest
import torch
from transformers import optimization

from sdlora.training import TrainConfig, schedule

WARMUP, STEPS = 10, 110


def factors(name, **changes):
    config = TrainConfig(images=Path("i"), output=Path("o"), steps=STEPS, warmup=WARMUP, schedule=name, **changes)
    return [schedule.factor(step, config) for step in range(STEPS)]


@pytest.mark.parametrize(
    ("name", "changes", "golden"),  # at 0, a quarter, half and three quarters of the way after the warm-up
    [
        ("constant", {}, [1, 1, 1, 1]),
        ("cosine", {}, [1, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4]),
        ("cosine", {"schedule_floor": 0.2}, [1, 0.2 + 0.2 * (2 + 2**0.5), 0.6, 0.2 + 0.2 * (2 - 2**0.5)]),
        ("cosine_restarts", {"schedule_cycles": 2}, [1, 0.5, 1, 0.5]),
        ("linear", {}, [1, 0.75, 0.5, 0.25]),
        ("polynomial", {}, [1, 0.5625, 0.25, 0.0625]),
        ("polynomial", {"schedule_power": 3.0}, [1, 0.421875, 0.125, 0.015625]),
        ("wsd", {"schedule_decay": 0.5}, [1, 1, 1, 0.5]),
        ("rex", {}, [1, 0.75 / 0.875, 0.5 / 0.75, 0.25 / 0.625]),
        ("inverse_sqrt", {}, [1, math.sqrt(11 / 36), math.sqrt(11 / 61), math.sqrt(11 / 86)]),
    ],
)
def test_the_schedules_have_their_golden_values(name, changes, golden):
    found = factors(name, **changes)
    assert [found[WARMUP + i] for i in (0, 25, 50, 75)] == pytest.approx(golden)
    assert found[:WARMUP] == pytest.approx([(i + 1) / 11 for i in range(WARMUP)]), "every warm-up is the same"
    assert all(0 < f <= 1 for f in found), "no step learns nothing"


@pytest.mark.parametrize(
    ("name", "changes", "theirs"),
    [
        ("cosine", {}, lambda o: optimization.get_cosine_schedule_with_warmup(o, WARMUP, STEPS)),
        ("linear", {}, lambda o: optimization.get_linear_schedule_with_warmup(o, WARMUP, STEPS)),
        (
            "cosine_restarts",
            {"schedule_cycles": 4},
            lambda o: optimization.get_cosine_with_hard_restarts_schedule_with_warmup(o, WARMUP, STEPS, num_cycles=4),
        ),
        (
            "polynomial",
            {"schedule_power": 1.5},
            lambda o: optimization.get_polynomial_decay_schedule_with_warmup(o, WARMUP, STEPS, lr_end=0.0, power=1.5),
        ),
        (
            "wsd",
            {"schedule_decay": 0.3},
            lambda o: optimization.get_wsd_schedule(o, WARMUP, 30, num_training_steps=STEPS, decay_type="linear"),
        ),
    ],
)
def test_after_the_warm_up_they_are_those_of_transformers(name, changes, theirs):
    (rate,) = theirs(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)).lr_lambdas
    assert factors(name, **changes)[WARMUP:] == pytest.approx([rate(step) for step in range(WARMUP, STEPS)], abs=1e-12)


def test_inverse_sqrt_is_that_of_transformers_whose_steps_count_from_one():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    (rate,) = optimization.get_inverse_sqrt_schedule(optimizer, WARMUP + 1).lr_lambdas
    assert factors("inverse_sqrt") == pytest.approx([rate(step + 1) for step in range(STEPS)])
