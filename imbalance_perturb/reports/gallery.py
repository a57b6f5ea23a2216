"""The images whose label changed as cards of a page: what was predicted, and both pictures within the page itself."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imbalance_perturb.evaluation.changed_images import Changed, ChangedImages

if TYPE_CHECKING:
    from imbalance_perturb.inference.gallery import Gallery
    from imbalance_perturb.predictions.rows import PredictionRow


@dataclass(frozen=True)
class Card:
    """One image: its true class, its row, and its pictures as ``data:`` addresses."""

    label: str
    row: PredictionRow
    image: str
    perturbation: str | None


@dataclass(frozen=True)
class CardGroup:
    """The cards of one kind, of ``total`` images."""

    title: str
    total: int
    cards: tuple[Card, ...]


@dataclass(frozen=True)
class GalleryCards:
    """All cards, and what to know of their pictures."""

    groups: tuple[CardGroup, ...]
    amplification: float | None
    low_precision: str | None
    seed: int


def make_cards(changed: Changed, gallery: Gallery) -> GalleryCards:
    """Join the images that were drawn with their pictures."""
    groups = (
        _group("Wrong to right", changed.gained, gallery),
        _group("Right to wrong", changed.lost, gallery),
    )
    return GalleryCards(groups, gallery.amplification, gallery.low_precision, changed.seed)


def _group(title: str, images: ChangedImages, gallery: Gallery) -> CardGroup:
    cards = []
    for label, row in images.drawn:
        image, perturbation = gallery.pictures[row.image]
        cards.append(
            Card(
                label,
                row,
                _address("image/jpeg", image),
                None if perturbation is None else _address("image/png", perturbation),
            )
        )
    return CardGroup(title, images.total, tuple(cards))


def _address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{b64encode(content).decode()}"
