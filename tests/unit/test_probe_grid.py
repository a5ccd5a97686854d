"""The grid's features against one call of the network for each block and level; what is refused."""

import pytest
import torch
from torch import nn

from outlie.backbones.unet import UNet
from outlie.errors import UserError
from outlie.probe import grid as module
from outlie.probe.grid import Grid

LEVELS = [6.0, 9.0, 0.5]


def network(process: str = "ddpm", pool: str = "mean") -> UNet:
    """A tiny U-Net with random weights: blocks out_1 to out_4 of 16, 16, 8 and 8 channels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = UNet(base=8, multipliers=(1, 2), depth=1, attention=(1,), process=process, pool=pool)
        backbone.build((1, 8, 8), None)
    return backbone.eval()


@pytest.fixture
def images():
    return torch.randint(256, (11, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture
def noise():
    return torch.randn(11, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def seeded():
    return torch.Generator().manual_seed(5)


@pytest.mark.parametrize("process", ["ddpm", "edm"])
@pytest.mark.parametrize("pool", ["mean", "mean_std"])
@torch.no_grad()
def test_every_cell_is_a_call_of_its_own(process, pool, images, noise):
    backbone = network(process, pool)
    grid = Grid(backbone, [], LEVELS)
    assert grid.blocks == ("out_1", "out_2", "out_3", "out_4")
    assert grid.widths == [16 * (1 + (pool != "mean"))] * 2 + [8 * (1 + (pool != "mean"))] * 2
    features = grid.features(images, noise)
    assert features.shape == (12, 11, max(grid.widths))
    assert len(grid) == 12
    for g, (block, level) in enumerate(grid.cells):
        time = backbone.process.time_at(level)
        a, b = backbone.process.coefficients(time)
        noisy = a * (images.float() / 127.5 - 1) + b * noise
        one = backbone.maps(noisy, time, [block])[block]
        expected = one.mean((2, 3)) if pool == "mean" else torch.cat([one.mean((2, 3)), one.std((2, 3), False)], 1)
        width = grid.cell_widths[g]
        torch.testing.assert_close(features[g, :, :width], expected, atol=1e-5, rtol=1e-4)
        assert not features[g, :, width:].any()


def test_one_pass_ends_after_the_last_block(images, noise):
    backbone = network()
    grid = Grid(backbone, ["out_2", "out_1"], LEVELS)  # in any order
    assert grid.blocks == ("out_1", "out_2")
    before, ran = backbone.evaluated, []
    for name in backbone.block_names:
        for kind in ("down", "up"):
            if name in getattr(backbone.net, kind):
                getattr(backbone.net, kind)[name].register_forward_hook(lambda *_, name=name: ran.append(name))
    grid.features(images, noise)
    assert backbone.evaluated - before == len(images) * len(LEVELS)
    assert ran == ["down_1", "down_2", "out_1", "out_2"]


def test_a_bank_does_not_depend_on_the_batch_of_the_network(images, monkeypatch):
    grid, told = Grid(network(), [], LEVELS), []
    rows = torch.tensor([7, 1, 3, 10, 0])
    monkeypatch.setattr(module, "IMAGES", 3)
    whole = grid.bank(images, rows, seeded(), told.append)
    monkeypatch.setattr(module, "rows_at_once", lambda shape: 1)
    torch.testing.assert_close(grid.bank(images, rows, seeded(), told.append), whole, atol=1e-5, rtol=1e-4)
    assert told == [3, 2, 3, 2]
    draws = seeded()
    noise = torch.cat([torch.randn(n, 1, 8, 8, generator=draws) for n in (3, 2)])
    torch.testing.assert_close(whole, grid.features(images[rows], noise), atol=1e-5, rtol=1e-4)
    assert not torch.equal(noise[0], noise[3])  # each image has a noise of its own
    mirrored = grid.bank(images, rows, seeded(), told.append, mirrored=True)
    torch.testing.assert_close(mirrored, grid.features(images[rows].flip(3), noise), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("mirror", [False, True])
def test_augmented_batches_are_images_with_their_labels(images, mirror, monkeypatch):
    monkeypatch.setattr(module, "PADDING", 0)
    monkeypatch.setattr(module, "BATCH", 4)
    grid, told = Grid(network("edm"), [], [14.0]), []  # hardly any noise
    rows, y = torch.tensor([9, 2, 4, 0, 6]), torch.arange(5)
    epochs = [list(grid.augmented(images, rows, y, 0, mirror, told.append)(epoch)) for epoch in (0, 1)]
    assert told == [4, 1] * 2
    clean, flipped = (grid.features(x, torch.zeros(5, 1, 8, 8)) for x in (images[rows], images[rows].flip(3)))
    turned = 0
    for batches in epochs:
        features, labels = (torch.cat([one[i] for one in batches], 1 - i) for i in (0, 1))
        assert labels.sort().values.tolist() == y.tolist()
        plain, other = ((features - kept[:, labels]).abs().amax((0, 2)) for kept in (clean, flipped))
        assert (torch.minimum(plain, other) < 0.02).all()
        turned += int((other < plain).sum())
    assert 0 < turned < 10 if mirror else turned == 0
    same = [torch.cat([one[0] for one in batches], 1) for batches in epochs]
    assert not torch.equal(same[0], same[1])


def test_cropping_moves_the_image(images):
    grid = Grid(network("edm"), ["out_4"], [14.0])
    ((features, y),) = grid.augmented(images, torch.arange(11), torch.arange(11), 0, False, lambda n: None)(0)
    clean = grid.features(images, torch.zeros(11, 1, 8, 8))
    assert ((features - clean[:, y]).abs().amax((0, 2)) > 0.02).sum() >= 9


def test_all_blocks_of_a_network_without_a_way_out(images, noise):
    class Chain(nn.Module):
        block_names, multiple = ("layer_0", "layer_1"), 1

        def forward(self, x, told, label=None, blocks=(), stop=False):
            return None, {name: x.expand(-1, 2 + i, -1, -1) for i, name in enumerate(self.block_names)}

    backbone = network()
    backbone.net = Chain()
    grid = Grid(backbone, [], [6.0])
    assert (grid.blocks, grid.widths) == (("layer_0", "layer_1"), [2, 3])
    assert grid.features(images, noise).shape == (2, 11, 3)


@pytest.mark.parametrize(
    ("blocks", "levels", "said"),
    [
        (["out_5"], [6.0], "unknown block 'out_5' .did you mean 'out_"),
        (["halve_1"], [6.0], "allowed: down_1, down_2, middle, out_1"),
        ([], [12.0], "log_snr = 12.0: t = 1 to 1000 reach from 9.21"),
        ([], [6.1, 6.12], "log_snr 6.1 and 6.12 are the same t = 11"),
        ([], [], "give a noise level"),
    ],
)
def test_refused(blocks, levels, said):
    with pytest.raises(UserError, match=said):
        Grid(network(), blocks, levels)


def test_lines_where_there_is_no_bar(monkeypatch, caplog):
    monkeypatch.setattr(module, "QUIET_SECONDS", -1.0)
    with caplog.at_level("INFO", "outlie"), module.progress("", "features", 30) as advance:
        advance(10)
        advance(15)
    assert [record.getMessage() for record in caplog.records] == [
        "features  10 of 30 images",
        "features  25 of 30 images",
    ]
