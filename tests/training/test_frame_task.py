import pytest
import torch
from torch.nn import functional as F

from kinescan.data.frame_labels import IGNORED
from kinescan.training.frame_task import FrameTask, balanced_accuracy, balanced_weights

LOGITS = torch.tensor([[[2.0, 0.0, 1.0], [0.0, 3.0, 0.0], [0.0, 0.0, 9.0]], [[1.0, 0.0, 0.0]] * 3])
LABELS = torch.tensor([[0, 2, IGNORED], [0, 1, 0]])


def test_the_loss_is_the_mean_over_clips_of_the_frames_that_count() -> None:
    loss, right = FrameTask()(LOGITS, LABELS)
    first = F.cross_entropy(LOGITS[0, :2], LABELS[0, :2])
    second = F.cross_entropy(LOGITS[1], LABELS[1])
    torch.testing.assert_close(loss, (first + second) / 2)
    torch.testing.assert_close(right, torch.tensor([0.5, 2 / 3]))


def test_parts_of_a_batch_give_what_the_whole_gives() -> None:
    task = FrameTask(event_weight=3.0, background_weight=0.5, label_smoothing=0.1)
    whole = task(LOGITS, LABELS)[0]
    parts = [task(LOGITS[k : k + 1], LABELS[k : k + 1])[0] for k in range(2)]
    torch.testing.assert_close(whole, sum(parts) / 2)


def test_weights_lift_frames_with_an_event() -> None:
    plain = F.cross_entropy(LOGITS[1], LABELS[1], reduction="none")
    loss, _ = FrameTask(event_weight=3.0, background_weight=0.5)(LOGITS[1:], LABELS[1:])
    torch.testing.assert_close(loss, (plain * torch.tensor([0.5, 3.0, 0.5])).mean())


def test_overlapping_labels_are_a_sigmoid_each() -> None:
    labels = torch.tensor([[[1.0, 1, 0], [0, 0, 0], [IGNORED] * 3]])
    task = FrameTask(overlapping=True, event_weight=2.0)
    loss, right = task(LOGITS[:1], labels)
    each = F.binary_cross_entropy_with_logits(LOGITS[0, :2], labels[0, :2], reduction="none").mean(1)
    torch.testing.assert_close(loss, (each * torch.tensor([2.0, 1.0])).mean())
    torch.testing.assert_close(right, torch.tensor([(1 / 3 + 2 / 3) / 2]))
    tally = task.tally(LOGITS[:1], labels)
    assert tally.tolist() == [[1, 0, 0, 1, 0, 1], [1, 1, 0, 1, 1, 2]]
    assert tally.shape[1] == task.num_tallied(3)


def test_accuracy_is_balanced_over_the_classes_that_occur() -> None:
    tally = FrameTask().tally(LOGITS, LABELS)
    assert tally.tolist() == [[3, 0, 0], [3, 1, 1]]
    assert balanced_accuracy(tally.flatten().tolist()) == pytest.approx(1 / 3)
    assert balanced_accuracy([0.0, 0.0]) == 0.0


def test_a_window_without_a_frame_that_counts_weighs_nothing() -> None:
    loss, right = FrameTask()(LOGITS[:1], torch.full((1, 3), IGNORED))
    assert (loss.item(), right.item()) == (0.0, 0.0)


def test_weights_are_bounded() -> None:
    assert balanced_weights(0.001, 0.5)[0] == 20.0
    assert balanced_weights(0.0, 0.5) == balanced_weights(1.0, 0.5) == (1.0, 1.0)
