"""Mean IoU against scikit-learn, and the pictures and sentences about it."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, jaccard_score

from outlie.metrics import segmentation
from outlie.results import segmentation_plots
from outlie.results.segmentation_words import segmentation_in_words

NAMES = ("sky", "road", "tree", "car")


@pytest.fixture
def maps() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 4, (5, 8, 9), generator=generator)
    predicted = torch.where(torch.rand(5, 8, 9, generator=generator) < 0.6, truth, truth.roll(1, 0))
    truth[torch.rand(5, 8, 9, generator=generator) < 0.1] = 255
    return predicted, truth.byte()


def test_scikit_learn_agrees(maps):
    predicted, truth = maps
    counts = segmentation.confusion(predicted, truth, 4)
    kept = truth.numpy() != 255
    y, p = truth.numpy()[kept], predicted.numpy()[kept]
    assert np.array_equal(counts, confusion_matrix(y, p, labels=range(4)))
    found = segmentation.report(counts.numpy(), NAMES)
    assert list(found["iou"].values()) == pytest.approx(jaccard_score(y, p, average=None))
    assert found["miou"] == pytest.approx(jaccard_score(y, p, average="macro"))
    assert found["pixel_accuracy"] == pytest.approx(accuracy_score(y, p))
    assert found["class_accuracy"] == pytest.approx(balanced_accuracy_score(y, p))
    assert found["absent"] == [] and found["pixels"] == kept.sum()


def test_one_matrix_is_not_the_mean_of_images():
    # class 1 is one pixel of the first image and all of the second; pooled IoU is 4/5, the images' mean is 1/2
    truth = torch.tensor([[[0, 0, 0, 1]], [[1, 1, 1, 1]]])
    predicted = torch.tensor([[[0, 0, 0, 0]], [[1, 1, 1, 1]]])
    pooled = segmentation.confusion(predicted, truth, 2)
    assert segmentation.report(pooled.numpy(), ("a", "b"))["iou"]["b"] == pytest.approx(4 / 5)


def test_an_absent_class_is_left_out_but_not_what_was_taken_for_it():
    found = segmentation.report(np.array([[3, 0, 1], [0, 4, 0], [0, 0, 0]]), ("a", "b", "c"))
    assert found["absent"] == ["c"] and list(found["iou"]) == ["a", "b"]
    assert found["miou"] == pytest.approx((3 / 4 + 1) / 2)
    nothing = segmentation.report(np.zeros((2, 2)), ("a", "b"))
    assert nothing["miou"] is None and nothing["pixel_accuracy"] is None and nothing["absent"] == ["a", "b"]


def test_a_class_never_predicted_has_an_iou_of_zero():
    assert segmentation.report(np.array([[3, 0], [2, 0]]), ("a", "b"))["iou"] == {"a": 3 / 5, "b": 0.0}


def test_sentences():
    counts = np.array([[3, 0, 1], [0, 4, 0], [0, 0, 0]])
    part = segmentation.report(counts, ("a", "b", "c")) | {"images": 7}
    said = segmentation_in_words(part | {"subsets": {"night": part}, "validation": part})
    assert said[0] is not None and said[1] is not None and said[2] is not None
    assert said[0].startswith("Mean IoU 87.50 % over 2 classes, pixel accuracy 87.50 % (7 test images")
    assert "night alone 87.50 % (7 images); validation 87.50 %, for selection only" in said[0]
    assert said[1] == "IoU in %: a 75.0, b 100.0."
    assert said[2].endswith("is of it: c.")
    assert segmentation_in_words(None) == []


def test_pictures(tmp_path, maps):
    predicted, truth = maps
    images = np.random.RandomState(0).randint(0, 256, (5, 3, 8, 9)).astype(np.uint8)
    colours = segmentation_plots.palette([(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9)], 4)
    assert colours[:4].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]] and not colours[255].any()
    assert len(np.unique(segmentation_plots.palette((), 40)[:40], axis=0)) == 40
    path = tmp_path / "predictions.png"
    segmentation_plots.predictions(images, truth.numpy(), predicted.numpy(), NAMES, colours, path)
    drawn = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    assert (drawn == (255, 0, 0)).all(1).sum() > 1000  # the class's own colour, not interpolated
    counts = segmentation.confusion(predicted, truth, 4).numpy()
    assert segmentation_plots.confusion(counts, NAMES, tmp_path / "confusion.png").stat().st_size > 1000
