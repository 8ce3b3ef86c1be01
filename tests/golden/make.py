"""Write the golden streams that the current format version lacks: python tests/golden/make.py

A file that is there is never written again: it says what released readers must still read. v1: a
crop of scikit-image's astronaut.
"""

from __future__ import annotations

import sys
from pathlib import Path

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER.parent))

from bases import tiny_base  # noqa: E402

from inrjax import bitstream, codecs, datasets  # noqa: E402
from inrjax.images import write_image  # noqa: E402


def main() -> None:
    """One stream and one decoded picture for each codec."""
    image = datasets.packaged()["astronaut"][40:104, 180:260]
    for codec in (
        codecs.Coin(8, 3, num_steps=300),
        codecs.MetaSiren(24, num_steps=300),
        codecs.ProductSiren(24, 32, num_steps=300, tune_steps=100),
        codecs.ModulatedSiren(tiny_base()),
    ):
        name = f"v{bitstream.VERSION}_{codec.name}"
        if (FOLDER / f"{name}.inr").exists():
            continue
        [stream] = codec.encode([image])
        (FOLDER / f"{name}.inr").write_bytes(stream)
        write_image(FOLDER / f"{name}.png", codec.decode([stream])[0])


if __name__ == "__main__":
    main()
