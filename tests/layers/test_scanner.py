import torch

from kinescan.layers.scanner import Scanner


def _awake(scanner: Scanner) -> Scanner:
    for name, parameter in scanner.named_parameters():
        if "out_proj" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return scanner


def test_scanner_adds_nothing_at_the_start() -> None:
    out, _ = Scanner(32)(torch.randn(2, 4, 6, 32))
    assert torch.count_nonzero(out) == 0


def test_scanner_keeps_every_location_to_itself() -> None:
    scanner = _awake(Scanner(32))
    tokens = torch.randn(2, 4, 6, 32)
    changed = tokens.clone()
    changed[:, :, 3] = torch.randn(2, 4, 32)
    difference = (scanner(tokens)[0] - scanner(changed)[0]).abs().amax(dim=(0, 1, 3))
    assert difference[3] > 1e-3
    assert torch.count_nonzero(difference) == 1


def test_scanner_looks_back_only_and_bidirectional_both_ways() -> None:
    tokens = torch.randn(1, 6, 3, 32)
    changed = tokens.clone()
    changed[:, 3] = torch.randn(1, 3, 32)
    for bidirectional in (False, True):
        scanner = _awake(Scanner(32, bidirectional=bidirectional))
        moved = (scanner(tokens)[0] - scanner(changed)[0]).abs().amax(dim=(0, 2, 3)) > 1e-6
        assert moved[3:].all()
        assert bool(moved[:3].all()) == bidirectional
        assert bool(moved[:3].any()) == bidirectional


def test_bidirectional_scanner_is_symmetric_in_time_when_both_halves_are_equal() -> None:
    scanner = _awake(Scanner(32, bidirectional=True))
    assert scanner.mamba_reverse is not None
    scanner.mamba_reverse.load_state_dict(scanner.mamba.state_dict())
    tokens = torch.randn(2, 5, 4, 32)
    torch.testing.assert_close(scanner(tokens.flip(1))[0], scanner(tokens)[0].flip(1), atol=1e-5, rtol=1e-5)


def test_scanner_in_pieces_equals_whole() -> None:
    scanner = _awake(Scanner(32))
    tokens = torch.randn(2, 7, 4, 32)
    whole, _ = scanner(tokens)
    first, state = scanner(tokens[:, :3])
    second, _ = scanner(tokens[:, 3:], state)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole, atol=1e-6, rtol=1e-5)
