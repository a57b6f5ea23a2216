"""What the images of more than 8 bits of a run have in common: whether their white was another than assumed."""

from __future__ import annotations

from dataclasses import dataclass

from imbalance_perturb.files.typed_json import Count

#: Images all of whose pixels are below this share of white are taken for ones of fewer bits.
_DARK = 1 / 8

#: The highest value that --max-value takes.
_MOST_WHITE = 65535


@dataclass
class DeepImages:
    """What the images of a run have in common whose white was assumed: if all are dark, it was another.

    Attributes:
        count: number of them.
        bright: number of those with a pixel above an eighth of white.
        highest: the highest pixel of all.
    """

    count: Count = 0
    bright: Count = 0
    highest: Count = 0

    def add(self, highest: int, white: int) -> None:
        """Count one more image, by its highest pixel and the white that was assumed."""
        self.count += 1
        self.bright += highest >= _DARK * white
        self.highest = max(self.highest, highest)

    def merge(self, other: DeepImages) -> None:
        """Add the images of another part of the run."""
        self.count += other.count
        self.bright += other.bright
        self.highest = max(self.highest, other.highest)

    @property
    def warnings(self) -> tuple[str, ...]:
        """One line where all are dark (one image is enough, black ones say nothing), with the white that fits."""
        if self.bright or not self.highest:
            return ()
        white = 2 ** max(8, self.highest.bit_length()) - 1
        remedy = f"give --max-value {white}?" if white <= _MOST_WHITE else "convert them to fewer bits?"
        return (
            f"all {self.count:,} images of more than 8 bits stay below 1/8 of white (their highest pixel is"
            f" {self.highest}): they are seen nearly black; {remedy}",
        )
