"""Gram against loops over rows, layers, powers and channels; in parts, and by two processes."""

import logging
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from outlie.detectors import gram
from outlie.detectors.base import Spec, Views
from outlie.detectors.gram import Gram, gram_powers
from outlie.errors import UserError

from .small_network import CLASSES, Network


def views(n: int, seed: int, scale: float = 1.0) -> Views:
    generator = torch.Generator().manual_seed(seed)
    x = scale * torch.randn(n, 3, 9, 9, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        return Network().views(x)


def made(**options) -> Gram:
    detector = Gram(**options)
    detector.setup(Spec({}, classes=CLASSES, network=Network()))
    return detector


def fitted(train: Views, **options) -> Gram:
    detector = made(**options)
    with torch.no_grad():
        detector.fit(train)
    return detector


def scores(detector: Gram, test: Views) -> Tensor:
    with torch.no_grad():
        return detector.score(test)


def entries(x: Tensor, powers: int) -> list[np.ndarray]:
    """For each layer (powers, channels): signed p-th roots of the row sums of F^p (F^p)^T of one sample."""
    result = []
    for maps in Network().stages(x[None]):
        f = maps[0].detach().flatten(1).numpy()
        rows = [(f**p @ (f**p).T).sum(1) for p in range(1, powers + 1)]
        result.append(np.array([np.sign(r) * np.abs(r) ** (1 / (p + 1)) for p, r in enumerate(rows)]))
    return result


def deviations(sample: list[np.ndarray], others: list[list[np.ndarray]]) -> np.ndarray:
    """(L,): how far a sample's entries are outside of the others' range."""
    result = np.zeros(len(sample))
    for layer, values in enumerate(sample):
        for at in np.ndindex(values.shape):
            low, high = (f(other[layer][at] for other in others) for f in (min, max))
            if values[at] < low:
                result[layer] += (low - values[at]) / max(abs(low), 1e-6)
            if values[at] > high:
                result[layer] += (values[at] - high) / max(abs(high), 1e-6)
    return result


@pytest.mark.parametrize("powers", [1, 3])
def test_it_is_the_definition(powers):
    train, test = views(60, 0), views(20, 1, scale=1.5)
    seen = [entries(x, powers) for x in train.x]
    predicted, of_test = train.logits.argmax(1).tolist(), test.logits.argmax(1).tolist()
    of_class = {c: [n for n in range(60) if predicted[n] == c] for c in set(predicted)}
    assert len(of_class) > 1 and min(map(len, of_class.values())) > 1
    left_out = [deviations(seen[n], [seen[m] for m in of_class[predicted[n]] if m != n]) for n in range(60)]
    mean = np.mean(left_out, 0)
    everything = list(range(60))
    expected = [
        (deviations(entries(x, powers), [seen[n] for n in of_class.get(c, everything)]) / mean).sum()
        for x, c in zip(test.x, of_test)
    ]
    assert max(expected) > 1
    np.testing.assert_allclose(scores(fitted(train, powers=powers), test), expected, rtol=1e-4, atol=1e-5)


def test_the_tenth_power_of_large_and_small_values():
    maps = torch.tensor([1e-3, 1.0, 1e6]).view(3, 1, 1, 1).expand(3, 2, 4, 4).float()
    # of constant maps F = a the Gram entry is 16 a^(2p), two of them a row
    expected = [[(32 * a ** (2 * p)) ** (1 / p) for p in range(1, 11)] for a in (1e-3, 1.0, 1e6)]
    result = gram_powers(maps, 10)
    np.testing.assert_allclose(result, np.repeat(np.array(expected)[:, :, None], 2, 2), rtol=1e-5)


def test_negative_maps_have_negative_entries():
    maps = torch.tensor([[[[1.0]], [[-2.0]]]])
    np.testing.assert_allclose(gram_powers(maps, 2)[0], [[-1, 2], [5**0.5, 20**0.5]], rtol=1e-6)


def test_training_rows_deviate_by_nothing_and_others_by_about_their_number_of_layers():
    train, test = views(400, 0), views(400, 1)
    detector = fitted(train)
    assert scores(detector, train).max() < 1e-4
    ordinary, far = scores(detector, test).mean(), scores(detector, views(400, 1, scale=3.0)).mean()
    assert 1 < ordinary < 4  # two layers, each about as far as a training row that is left out
    assert far > 5 * ordinary


def test_in_parts_as_at_once(monkeypatch):
    train, test = views(60, 0), views(20, 1)
    at_once = fitted(train)
    expected = scores(at_once, test)
    detector = made()
    for rows in torch.randperm(60, generator=torch.Generator().manual_seed(0)).split(17):
        with torch.no_grad():
            detector.update(train[rows])
    detector.finish()
    torch.testing.assert_close(scores(detector, test), expected, rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(gram, "ROWS", 7)
    with torch.no_grad():
        at_once.fit(train)  # a second fit starts again
    torch.testing.assert_close(scores(at_once, test), expected, rtol=1e-5, atol=1e-6)


def test_saved_and_loaded_it_scores_the_same():
    train, test = views(60, 0), views(20, 1)
    detector, again = fitted(train), made()
    state = detector.state_dict()
    assert set(state) == {"lowest", "mean_deviation", "widths"}  # neither the network nor what fitting needed
    again.load_state_dict(state)
    assert torch.equal(scores(again, test), scores(detector, test))


def test_a_class_that_is_never_predicted_has_the_range_of_all(caplog):
    train, test = views(60, 0), views(20, 1)
    predicted = train.logits.argmax(1)
    train.logits[:, 3], test.logits[:, 3] = -99, 99
    with caplog.at_level(logging.INFO, "outlie"):
        detector = fitted(train)
    assert "Gram: no training row is predicted as class" in caplog.text and " 3" in caplog.text
    result = scores(detector, test)
    assert torch.isfinite(result).all() and len(predicted) == 60
    train.logits[:, 0] = 99  # all rows one class: the same range
    range_of_all = fitted(train).lowest[0]
    torch.testing.assert_close(detector.lowest[3], range_of_all)


def test_a_class_of_one_row_and_equal_rows_are_finite():
    train, test = views(60, 0), views(20, 1)
    train.logits[:, 4] = -99
    train.logits[7, 4] = 99
    assert torch.isfinite(scores(fitted(train), test)).all()
    train.x[:] = train.x[0].clone()
    assert torch.isfinite(scores(fitted(train), test)).all()


def test_too_few_rows_are_a_mistake():
    with pytest.raises(UserError, match="no class is predicted for two training rows"):
        fitted(views(1, 0))
    with pytest.raises(UserError, match="Gram was given no training rows"):
        made().finish()
    with pytest.raises(UserError, match="Gram needs the maps after a network's stages, Linear has none"):
        Gram().setup(Spec({}, classes=2, network=torch.nn.Linear(2, 2)))


TWO = """
import importlib, pathlib, sys, torch
import torch.distributed as dist
sys.path.insert(0, str(pathlib.Path(sys.argv[1]).parents[1]))
here = importlib.import_module("unit.test_gram")
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=int(sys.argv[3]), world_size=2)
train = here.views(61, 0)
train.x[40] = train.x[3]  # equal rows on two ranks: both hold a bound
train.logits[40] = train.logits[3]
with torch.no_grad():
    at_once = here.made()
    at_once.fit(train)
    in_parts = here.made()
    for rows in torch.arange(61)[dist.get_rank()::2].split(9):
        in_parts.update(train[rows])
    in_parts.finish()
torch.save([at_once.state_dict(), in_parts.state_dict()], f"{sys.argv[2]}.{sys.argv[3]}")
dist.destroy_process_group()
"""


def test_two_processes_fit_as_one(tmp_path):
    train = views(61, 0)
    train.x[40], train.logits[40] = train.x[3], train.logits[3]
    expected = fitted(train).state_dict()
    command = [sys.executable, "-c", TWO, __file__, str(tmp_path / "meet")]
    ranks = [subprocess.Popen([*command, str(rank)], env=os.environ | {"OMP_NUM_THREADS": "1"}) for rank in (0, 1)]
    assert [rank.wait(120) for rank in ranks] == [0, 0]
    for rank in (0, 1):
        for state in torch.load(tmp_path / f"meet.{rank}", weights_only=True):
            torch.testing.assert_close(dict(state), dict(expected), rtol=1e-6, atol=1e-6)
