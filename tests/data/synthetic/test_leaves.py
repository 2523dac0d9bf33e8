import pytest
import torch

from kinescan.data.synthetic.leaves import leaf_pictures
from kinescan.errors import ConfigError


def test_leaf_pictures_are_those_of_their_seeds() -> None:
    pictures = leaf_pictures([3, 4, 3], size=48)
    assert pictures.shape == (3, 3, 48, 48)
    assert torch.equal(pictures[0], pictures[2])
    assert not torch.equal(pictures[0], pictures[1])
    assert 0 <= float(pictures.min()) < float(pictures.max()) <= 1


def test_leaf_pictures_have_less_of_what_is_finer_as_photographs_do() -> None:
    pictures = leaf_pictures(list(range(12)), size=64).mean(1)
    power = torch.fft.rfft2(pictures - pictures.mean((1, 2), keepdim=True)).abs().square().mean(0)
    assert power[1:4, 1:4].mean() > 10 * power[8:16, 8:16].mean() > 0


def test_leaf_pictures_of_no_size_are_refused() -> None:
    with pytest.raises(ConfigError):
        leaf_pictures([0], size=8)
