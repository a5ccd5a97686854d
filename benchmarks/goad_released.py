"""GOAD as released, on our splits: is the published column what its code gives?

    OUTLIE_DATA=../shared/data python benchmarks/goad_released.py

The training of vicliv/DTE baselines/goad.py, written again with the two habits that our `goad` has not: float32
throughout, and centres averaged over the batches of the last epoch while it still trains. AUROC in per cent beside the
published mean; ours are in dte_semi_cells.csv. The csv beside it is the result.
"""

import statistics

import numpy as np
import stored
import torch
import torch.nn.functional as F
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from transductive import published

from outlie.data.adbench import ADBench
from outlie.detectors.goad import centre_triplet
from outlie.metrics.ranking import auroc

DATASETS = ("yeast", "thyroid", "glass", "pima")
SEEDS = 2
MAPS, MAP_DIM, WIDTH, BATCH = 256, 32, 8, 64


def released(train_ND: Tensor, test_ND: Tensor, seed: int) -> np.ndarray:
    """(N,) scores of the released training and scoring, one epoch."""
    torch.manual_seed(seed)
    maps_MDK = torch.from_numpy(np.random.RandomState(seed).standard_normal((MAPS, train_ND.shape[1], MAP_DIM)))
    trunk, head = nn.Linear(MAP_DIM, WIDTH, bias=False), nn.Linear(WIDTH, MAPS)
    for layer in (trunk, head):
        nn.init.xavier_normal_(layer.weight, gain=2**0.5)
    adam = torch.optim.Adam([*trunk.parameters(), *head.parameters()], lr=1e-3, betas=(0.5, 0.999))

    def represent(x_BD: Tensor) -> Tensor:
        # their in-place LeakyReLU changes z, too
        return F.leaky_relu(trunk(torch.einsum("bd,mdk->bmk", x_BD, maps_MDK).float()), 0.2)

    batches = train_ND[torch.randperm(len(train_ND))].split(BATCH)
    centres_MK = torch.zeros(MAPS, WIDTH)
    for x_BD in batches:
        z_BMK = represent(x_BD)
        centres_MK += z_BMK.detach().mean(0) / len(batches)
        told = F.cross_entropy(head(z_BMK).flatten(0, 1), torch.arange(MAPS).repeat(len(x_BD)))
        adam.zero_grad()
        (told + 0.1 * centre_triplet(z_BMK, 1.0)).backward()
        adam.step()
    scores = []
    with torch.no_grad():
        for x_BD in test_ND.split(BATCH):
            squared_BMM = (represent(x_BD)[:, :, None] - centres_MK).square().sum(-1)
            scores.append(-torch.log_softmax(-squared_BMM, 2).diagonal(dim1=1, dim2=2).double().sum(1))
    return torch.cat(scores).numpy()


def main() -> None:
    """Measure, print, store."""
    known = published("dte_semi")
    rows = []
    for dataset in DATASETS:
        found = []
        for seed in range(SEEDS):
            split = ADBench(dataset, protocol="dte_semi").load(seed)
            test = split.tests["test"]
            assert test.label is not None
            scale = StandardScaler().fit(split.train.x.double().numpy())
            train_ND, test_ND = (torch.from_numpy(scale.transform(x.double().numpy())) for x in (split.train.x, test.x))
            found.append(100 * auroc(released(train_ND, test_ND, seed), test.label.numpy()))
        mean, std = known[dataset, "goad"]
        rows.append(
            {
                "dataset": dataset,
                "released_code": round(statistics.fmean(found), 2),
                "of_seeds": " ".join(f"{value:.2f}" for value in found),
                "published": mean,
                "published_std": std,
            }
        )
        print(rows[-1], flush=True)
    stored.table(__file__, rows)


if __name__ == "__main__":
    main()
