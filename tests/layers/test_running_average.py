import torch

from kinescan.layers.running_average import running_average


def test_mean_and_exponential() -> None:
    frames = torch.tensor([[[2.0], [4.0], [9.0]]])
    means = running_average(frames, None, 0, kind="mean", rate=0.5)
    assert means.flatten().tolist() == [2.0, 3.0, 5.0]
    newer = running_average(frames, None, 0, kind="exponential", rate=0.5)
    assert newer.flatten().tolist() == [2.0, 3.0, 6.0]


def test_in_pieces_as_in_one_and_wide_for_half_types() -> None:
    frames = torch.randn(2, 9, 4, dtype=torch.bfloat16)
    whole = running_average(frames, None, 0, kind="mean", rate=0.1)
    first = running_average(frames[:, :5], None, 0, kind="mean", rate=0.1)
    second = running_average(frames[:, 5:], first[:, -1], 5, kind="mean", rate=0.1)
    assert whole.dtype == torch.float32
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole, atol=0, rtol=0)
