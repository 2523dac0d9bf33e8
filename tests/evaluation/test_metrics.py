import pytest
import torch
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
)

from kinescan.errors import ShapeError
from kinescan.evaluation.metrics import (
    calibration_error,
    class_accuracies,
    compute_metrics,
    confusion_matrix,
    most_confused,
    pair_accuracy,
    reliability,
    top_accuracy,
)

NUM_CLASSES = 7


@pytest.fixture
def scores() -> torch.Tensor:
    return torch.randn(211, NUM_CLASSES).mul(2).softmax(1)


@pytest.fixture
def targets(scores) -> torch.Tensor:
    random = torch.randint(0, NUM_CLASSES, (len(scores),))
    return torch.where(torch.rand(len(scores)) < 0.5, scores.argmax(1), random)


@pytest.mark.parametrize("top", [1, 3, 5])
def test_top_accuracy_matches_torchmetrics(scores, targets, top):
    expected = multiclass_accuracy(scores, targets, num_classes=NUM_CLASSES, top_k=top, average="micro")
    assert top_accuracy(scores, targets, top=top) == pytest.approx(expected.item(), abs=1e-6)


def test_top_accuracy_of_more_places_than_classes_is_one(scores, targets):
    assert top_accuracy(scores[:, :3].softmax(1), targets.clamp(max=2), top=5) == 1.0


def test_top_accuracy_ranks_equal_scores_by_class():
    scores = torch.full((3, 3), 1 / 3)
    assert top_accuracy(scores, torch.tensor([0, 1, 2])) == pytest.approx(1 / 3)


def test_confusion_matrix_and_class_accuracies_match_torchmetrics(scores, targets):
    predictions = scores.argmax(1)
    matrix = confusion_matrix(predictions, targets, num_classes=NUM_CLASSES)
    assert torch.equal(matrix, multiclass_confusion_matrix(predictions, targets, num_classes=NUM_CLASSES))
    expected = multiclass_accuracy(predictions, targets, num_classes=NUM_CLASSES, average="none")
    torch.testing.assert_close(class_accuracies(matrix).float(), expected)


@pytest.mark.parametrize("bins", [5, 15])
def test_calibration_error_matches_torchmetrics(scores, targets, bins):
    expected = multiclass_calibration_error(scores, targets, num_classes=NUM_CLASSES, n_bins=bins)
    assert calibration_error(scores, targets, bins=bins) == pytest.approx(expected.item(), abs=1e-6)


def test_calibration_error_of_sure_and_wrong_scores_is_one():
    scores = torch.tensor([[1.0, 0.0]]).expand(4, 2)
    assert calibration_error(scores, torch.ones(4, dtype=torch.long)) == 1.0
    assert calibration_error(scores, torch.zeros(4, dtype=torch.long)) == 0.0


def test_most_confused_lists_the_commonest_first_and_no_zeros():
    matrix = torch.tensor([[5, 0, 1], [3, 3, 0], [0, 2, 0]])
    listed = [(c.label, c.taken_for, c.num_videos, c.ratio) for c in most_confused(matrix, "abc")]
    assert listed == [("b", "a", 3, 0.5), ("c", "b", 2, 1.0), ("a", "c", 1, 1 / 6)]


def test_pair_accuracy_asks_only_within_the_pair():
    scores = torch.tensor([[0.1, 0.2, 0.7], [0.3, 0.4, 0.3], [0.2, 0.2, 0.6], [0.0, 0.0, 1.0]])
    targets = torch.tensor([1, 0, 1, 2])
    # right, wrong, tie; the last video belongs to no pair
    assert pair_accuracy(scores, targets, [(0, 1)]) == pytest.approx(0.5)


def test_compute_metrics_of_a_class_without_videos():
    metrics = compute_metrics(torch.eye(3)[[0, 1]], torch.tensor([0, 0]), ["a", "b", "c"])
    assert [c.accuracy for c in metrics.classes] == [0.5, None, None]
    assert metrics.mean_class_accuracy == 0.5
    assert (metrics.top1, metrics.top5, metrics.top5_classes, metrics.num_videos) == (0.5, 1.0, 3, 2)


@pytest.mark.parametrize(
    ("scores", "targets", "message"),
    [
        (torch.rand(3), torch.zeros(3, dtype=torch.long), r"scores.*\[n, K\].*\[n\].*\[3\]"),
        (torch.rand(3, 2), torch.zeros(2, dtype=torch.long), "scores"),
        (torch.rand(0, 2), torch.zeros(0, dtype=torch.long), "video"),
    ],
)
def test_top_accuracy_says_what_does_not_fit(scores, targets, message):
    with pytest.raises(ShapeError, match=message):
        top_accuracy(scores, targets)


def test_compute_metrics_wants_a_label_for_every_class(scores, targets):
    with pytest.raises(ShapeError, match=r"2.*7 classes"):
        compute_metrics(scores, targets, ["a", "b"])


@pytest.mark.parametrize("pairs", [[(0, 1), (1, 2)], [(0, 0)], [(0, 7)]])
def test_pair_accuracy_refuses_pairs_that_overlap_or_do_not_exist(scores, targets, pairs):
    with pytest.raises(ShapeError, match=r"pairs.*7"):
        pair_accuracy(scores, targets, pairs)


def test_pair_accuracy_says_that_no_video_belongs_to_a_pair(scores, targets):
    with pytest.raises(ShapeError, match="211"):
        pair_accuracy(scores, torch.full_like(targets, 5), [(0, 1)])


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_reliability_bins_hold_every_video_once_and_give_the_calibration_error(scores, targets, bins):
    found = reliability(scores, targets, bins=bins)
    assert [entry.low for entry in found] == pytest.approx([k / bins for k in range(bins)])
    assert sum(entry.num_videos for entry in found) == len(targets)
    confidence, best = scores.double().max(1)
    for entry in found:
        last = entry.high == found[-1].high
        inside = (confidence >= entry.low) & ((confidence < entry.high) | last)
        assert entry.num_videos == int(inside.sum())
        if entry.num_videos:
            assert entry.confidence == pytest.approx(float(confidence[inside].mean()))
            assert entry.accuracy == pytest.approx(float((best == targets)[inside].double().mean()))
        else:
            assert (entry.confidence, entry.accuracy) == (None, None)
