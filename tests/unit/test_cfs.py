"""Snapshots against pooled maps, the choice of blocks against loops and known networks, heads against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors

from outlie.detectors.base import Views
from outlie.detectors.cfs import CFS, candidates, separation
from outlie.errors import UserError

from .gaussian_denoiser import GaussianDenoiser, check_detector, fitted, images, score, set_up, tiny_unet

SIDES = {"down": [32, 32, 16, 16, 8, 8, 4, 4], "out": [4, 4, 4, 8, 8, 8, 16, 16, 16, 32, 32, 32]}
FIXED = {"encoder": "down_1", "decoder": "out_1"}  # 8 and 16 channels


class Blocks(GaussianDenoiser):
    """`clear` and `loud` know the image's mean; `loud` is larger, with more noise, `faint` has neither."""

    block_names = ("down_1", "out_1", "out_2", "out_3", "out_4")

    def maps(self, x, time, blocks):
        self.evaluated += len(x)
        image, noise = x.mean((2, 3), keepdim=True), x[..., :1, :1]
        half = torch.zeros(len(x), 1, 4, 4)
        all_maps = {
            "down_1": x,
            "out_1": 0.01 * (image + noise) + half,  # faint
            "out_2": 9 * image + 90 * noise + half,  # loud
            "out_3": image + half,  # clear
            "out_4": x,
        }
        return {name: all_maps[name] for name in blocks}


def flat(n: int = 30) -> torch.Tensor:
    """Images of one grey value each."""
    return images(n, (1, 1, 1)).expand(n, 1, 8, 8)


def features(network, x: torch.Tensor, blocks: list[str], log_snr: float = 5.0) -> np.ndarray:
    noise = torch.randn(1, *x.shape[1:], generator=torch.Generator().manual_seed(3))
    time = network.process.time_at(log_snr)
    maps = network.maps(network.process.noised(x, time, noise), time, blocks)
    return np.concatenate(
        [f for name in blocks for f in (maps[name].numpy().mean((2, 3)), maps[name].numpy().std((2, 3)))], 1
    ).astype(np.float64)


def standardised(network, train: torch.Tensor, x: torch.Tensor, **more) -> tuple[np.ndarray, np.ndarray]:
    rows, test = (features(network, part, list(FIXED.values()), **more) for part in (train, x))
    return (rows - rows.mean(0)) / rows.std(0), (test - rows.mean(0)) / rows.std(0)


def test_candidates_of_ddpms_unet():
    sizes = {f"{kind}_{i + 1}": side**2 for kind, sides in SIDES.items() for i, side in enumerate(sides)}
    sizes = {name: size for name, size in sizes.items() if "down" in name} | {"middle": 16} | sizes
    assert candidates(sizes) == {
        "encoder": ["down_6", "down_5", "down_4", "down_3"],
        "decoder": ["out_9", "out_8", "out_7", "out_6"],
    }


def test_candidates_of_a_transformer_and_of_one_level():
    assert candidates({f"layer_{i}": 64 for i in range(12)}) == {
        "encoder": ["layer_5", "layer_4", "layer_3", "layer_2"],
        "decoder": ["layer_11", "layer_10", "layer_9", "layer_8"],
    }
    assert candidates({"down_1": 9, "middle": 9, "out_1": 9, "out_2": 9}) == {
        "encoder": ["down_1"],
        "decoder": ["out_2", "out_1"],
    }
    assert candidates({"layer_0": 9}) == {"encoder": ["layer_0"], "decoder": ["layer_0"]}


def test_separation_is_the_variance_ratio_of_the_definition():
    draws = np.random.default_rng(0).normal(size=(6, 3, 4)) + np.arange(6)[:, None, None]
    between = sum(np.var([draws[i, :, s].mean() for i in range(6)]) for s in range(4))
    within = sum(np.mean([np.var(draws[i, :, s]) for i in range(6)]) for s in range(4))
    assert separation(torch.as_tensor(draws)) == pytest.approx(between / within)
    assert separation(torch.as_tensor(draws[:, :1])) == pytest.approx(draws[:, 0].var(0).sum())


@pytest.mark.parametrize(("repeats", "block"), [(6, "out_3"), (1, "out_2")])
def test_the_block_that_knows_the_image_is_taken_unless_one_draw_hides_the_noise(repeats, block):
    detector = fitted(CFS(repeats=repeats, log_snr=0.0), Blocks(), flat())
    assert detector.chosen == ["down_1", block]
    detector = fitted(CFS(repeats=repeats, log_snr=0.0, hooks="decoder"), Blocks(), flat())
    assert detector.chosen == [block]


def test_features_are_mean_and_deviation_of_the_maps_and_the_default_head_averages_over_blocks():
    network, train, x = tiny_unet(), images(20), images(5, s=1.0, seed=4)
    detector = fitted(CFS(**FIXED), network, train)
    assert detector.chosen == ["down_1", "out_1"] and detector.widths.tolist() == [16, 32]
    np.testing.assert_allclose(detector.statistics(x), features(network, x, ["down_1", "out_1"]), rtol=1e-4, atol=1e-5)
    _, z = standardised(network, train, x)
    expected = ((z[:, :16] ** 2).mean(1) + (z[:, 16:] ** 2).mean(1)) / 2
    np.testing.assert_allclose(score(detector, x), expected, rtol=1e-3)


def test_neighbours_are_scikit_learns_at_less_noise():
    network, train, x = tiny_unet("edm"), images(20), images(5, s=1.0, seed=4)
    z_train, z = standardised(network, train, x, log_snr=7.0)
    expected = NearestNeighbors(n_neighbors=10).fit(z_train).kneighbors(z)[0].mean(1)
    np.testing.assert_allclose(score(fitted(CFS("knn", **FIXED), network, train), x), expected, rtol=1e-4)


def test_mahalanobis_and_mixture_are_scikit_learns():
    network, train, x = tiny_unet(), images(30), images(5, s=1.0, seed=4)
    z_train, z = standardised(network, train, x)
    expected = LedoitWolf().fit(z_train).mahalanobis(z)
    np.testing.assert_allclose(score(fitted(CFS("mahalanobis", **FIXED), network, train), x), expected, rtol=1e-3)
    mixture = GaussianMixture(2, covariance_type="diag", max_iter=200, random_state=3).fit(z_train)
    ours = score(fitted(CFS("gmm", components=2, **FIXED), network, train), x)
    np.testing.assert_allclose(ours, -mixture.score_samples(z), rtol=1e-3)


@pytest.mark.parametrize("head", ["gaussian", "knn", "mahalanobis", "gmm"])
def test_one_evaluation_and_the_chosen_blocks_are_saved(head):
    check_detector(CFS(head), CFS(head), tiny_unet(), 1)


def test_only_what_is_needed_is_computed():
    network, ran = tiny_unet(), []
    for name, module in network.net.up.items():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    detector = fitted(CFS(), network, images(10))
    assert detector.chosen[0] == "down_1" and detector.chosen[1] in ("out_1", "out_2")
    ran.clear()
    score(detector, images(2))
    assert ran == ["out_1", "out_2"][: int(detector.chosen[1][-1])]


def test_images_batch_by_batch_are_the_same_fit():
    network, train, x = tiny_unet(), images(90), images(3, seed=4)
    whole, parts = fitted(CFS(), network, train), set_up(CFS(), network)
    for part in train.split(25):
        parts.update(Views(x=part))
    parts.finish()
    torch.testing.assert_close(score(parts, x), score(whole, x), rtol=1e-5, atol=1e-6)


def test_bad_input():
    with pytest.raises(
        UserError, match=r"detector\.encoder: unknown block 'down_9' .* allowed: down_1, down_2, middle"
    ):
        set_up(CFS(encoder="down_9"), tiny_unet())
    with pytest.raises(UserError, match=r"hooks=decoder takes none"):
        CFS(hooks="decoder", encoder="down_1")
    with pytest.raises(UserError, match="k = 10 neighbours, but only 6"):
        fitted(CFS("knn"), tiny_unet(), images(6))
    with pytest.raises(UserError, match="4 components, but only 3 rows"):
        fitted(CFS("gmm"), tiny_unet(), images(3))
    with pytest.raises(UserError, match=r"log_snr = 15\.0"):
        set_up(CFS(log_snr=15.0), tiny_unet())
