"""The classifier's schedule and optimiser against PyTorch's own, and options that cannot be."""

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, MultiStepLR, SequentialLR

from outlie.backbones.mlp import MLP
from outlie.backbones.training import ClassifierRecipe
from outlie.errors import UserError

STEPS = 60


def rates(make) -> list[float]:
    """Learning rates of a PyTorch scheduler over STEPS steps."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler, found = make(optimizer), []
    for _ in range(STEPS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def ours(**options) -> list[float]:
    recipe = ClassifierRecipe(**options)
    return [recipe.lr_at(step / STEPS) for step in range(STEPS)]


def test_schedules_are_pytorchs():
    assert ours() == pytest.approx(rates(lambda o: CosineAnnealingLR(o, STEPS)))
    assert ours(schedule="multistep") == pytest.approx(rates(lambda o: MultiStepLR(o, [20, 40])))
    assert ours(schedule="multistep", milestones=(0.5,)) == pytest.approx(rates(lambda o: MultiStepLR(o, [30])))
    assert ours(schedule="constant") == [0.1] * STEPS


def test_warm_up_then_cosine_is_pytorchs():
    expected = rates(
        lambda o: SequentialLR(o, [LinearLR(o, 1e-9, 1.0, 12), CosineAnnealingLR(o, STEPS - 12)], milestones=[12])
    )
    assert ours(warmup=0.2) == pytest.approx(expected, abs=1e-8)
    assert ours(warmup=0.2)[0] == 0
    assert max(ours(warmup=0.2, schedule="multistep")) == pytest.approx(0.1)


def test_the_end_of_a_training_is_defined():
    assert ClassifierRecipe().lr_at(1.0) == pytest.approx(0)
    assert ClassifierRecipe(schedule="multistep").lr_at(1.0) == pytest.approx(1e-3)


def test_epochs_or_steps():
    assert ClassifierRecipe(epochs=7).epochs_of(391) == 7
    assert ClassifierRecipe(epochs=7, steps=1000).epochs_of(98) == 11
    assert ClassifierRecipe(steps=1000).epochs_of(100) == 10


def test_a_step_of_sgd_is_its_definition():
    recipe = ClassifierRecipe(lr=0.5, momentum=0.8, weight_decay=0.1)
    module = torch.nn.Linear(1, 1, bias=False)
    module.weight.data.fill_(2.0)
    optimizer = recipe.optimizer(module)
    assert isinstance(optimizer, torch.optim.SGD)
    weight, velocity = 2.0, 0.0
    for gradient in (3.0, -1.0, 0.5):
        module.weight.grad = torch.tensor([[gradient]])
        optimizer.step()
        velocity = 0.8 * velocity + gradient + 0.1 * weight
        weight -= 0.5 * velocity
        assert float(module.weight.detach()) == pytest.approx(weight)


def test_adamw_and_frozen_weights():
    module = torch.nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    optimizer = ClassifierRecipe(method="adamw", lr=1e-3, weight_decay=0.05).optimizer(module)
    assert isinstance(optimizer, torch.optim.AdamW)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"], group["params"]) == (1e-3, 0.05, [module.weight])


def test_a_backbones_options_reach_its_recipe():
    options = {"epochs": 3, "steps": 9, "batch_size": 5, "lr": 0.2, "momentum": 0.7, "nesterov": True,
               "weight_decay": 0.3, "schedule": "multistep", "warmup": 0.1, "clip_norm": 2.0, "ema": 0.99}  # fmt: skip
    recipe = MLP(**options, milestones=[0.2, 0.4], optimizer="adamw").recipe
    assert {name: getattr(recipe, name) for name in options} == options
    assert recipe.milestones == (0.2, 0.4) and recipe.method == "adamw" and recipe.decay_lr
    default = MLP(epochs=200).recipe
    assert default.milestones == pytest.approx((1 / 3, 2 / 3), abs=1e-5)
    assert default == ClassifierRecipe(milestones=default.milestones)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 1.0}, r"momentum = 1\.0: allowed are 0 up to, but not, 1; set backbone\.momentum"),
        ({"warmup": 1.0}, r"warmup = 1\.0"),
        ({"ema": 1.5}, r"ema = 1\.5"),
        ({"nesterov": True, "momentum": 0.0}, "nesterov = true needs momentum"),
        ({"milestones": [0.5, 0.2]}, r"milestones = \[0\.5, 0\.2\]: must rise"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(UserError, match=message):
        MLP(**options)
