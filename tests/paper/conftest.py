"""The paper's experiments are a program beside the package: tests find it in the checkout."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

if not (ROOT / "examples" / "paper").is_dir():
    pytest.skip("the paper's experiments are not part of this copy", allow_module_level=True)


@pytest.fixture(scope="session")
def small_skin7(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Skin7's layout: 140 images of 87 x 43 pixels, noise about the grey of their class, two a lesion."""
    folder = tmp_path_factory.mktemp("skin7")
    (folder / "images").mkdir()
    random = np.random.default_rng(0)
    lines = ["image,label,lesion_id,fold,fold_by_image"]
    for number, (label, images) in enumerate(
        {"nv": 50, "mel": 20, "bkl": 20, "bcc": 20, "akiec": 10, "vasc": 10, "df": 10}.items()
    ):
        for i in range(images):
            name = f"{label}_{i:03d}.png"
            pixels = random.normal(40 + 25 * number, 20, (43, 87, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name)
            lines.append(f"{name},{label},{label}{i // 2},{i // 2 % 5},{i % 5}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder
