class Bits:
    """Reads numbers of any width from bytes, the highest bit first.

    Args:
        data: the bytes. Beyond their end everything reads as 0.

    Example:
        >>> bits = Bits(bytes([0b10100110]))
        >>> bits.take(1), bits.golomb(), bits.golomb()
        (1, 1, 2)
    """

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data)
        self._left = 8 * len(data)

    def take(self, num_bits: int) -> int:
        """The next bits as a number."""
        self._left -= num_bits
        shifted = self._value >> self._left if self._left >= 0 else self._value << -self._left
        return shifted & ((1 << num_bits) - 1)

    def golomb(self) -> int:
        """The next Exp-Golomb number, the unsigned kind in the standards of H.264 and HEVC."""
        zeros = 0
        while self._left > 0 and not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)

    def signed_golomb(self) -> int:
        """The next signed Exp-Golomb number."""
        number = self.golomb()
        return (number + 1) // 2 if number % 2 else -(number // 2)
