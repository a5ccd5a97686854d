"""What made the published DIF column: PyOD's DIF as it is, and on standardised columns as the released code has it.

    OUTLIE_DATA=../shared/data python benchmarks/dif_transductive.py

Both standardise the representation over the rows that are scored together; our `dif` takes the training rows' mean and
scale. AUROC in per cent of seed 0's one-class split, DIF's own seed 42; ours are in dte_semi_cells.csv. The released
code's one network with 50 weightings is not rebuilt here. The csv beside this file is the result.
"""

import warnings
from unittest import mock

import stored
from pyod.models.dif import DIF
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from transductive import published

from outlie.data.adbench import ADBench
from outlie.metrics.ranking import auroc

DATASETS = ("breastw", "cardio", "letter", "spambase", "thyroid")


def main() -> None:
    """Measure, print, store."""
    warnings.filterwarnings("ignore", "'pin_memory' argument")
    known = published("dte_semi")
    rows = []
    for dataset in DATASETS:
        split = ADBench(dataset, protocol="dte_semi").load(0)
        test = split.tests["test"]
        assert test.label is not None
        scale = StandardScaler().fit(split.train.x.double().numpy())
        train_ND, test_ND = (scale.transform(x.double().numpy()) for x in (split.train.x, test.x))
        found = {"pyod": DIF(random_state=42).fit(train_ND)}
        with mock.patch("pyod.models.dif.MinMaxScaler", FunctionTransformer):  # the identity
            found["standardised"] = DIF(random_state=42).fit(train_ND)
        scores = {name: auroc(model.decision_function(test_ND), test.label.numpy()) for name, model in found.items()}
        mean, std = known[dataset, "dif"]
        row = {"dataset": dataset, **{name: round(100 * value, 2) for name, value in scores.items()}}
        rows.append(row | {"published": mean, "published_std": std})
        print(rows[-1], flush=True)
    stored.table(__file__, rows)


if __name__ == "__main__":
    main()
