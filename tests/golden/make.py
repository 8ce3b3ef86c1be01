"""Write the golden streams that the current format version lacks: python tests/golden/make.py

A file that is there is never written again: it says what released readers must still read. v1: a
crop of scikit-image's astronaut.
"""

from __future__ import annotations

from pathlib import Path

from inrjax import bitstream, codecs, datasets
from inrjax.images import write_image

FOLDER = Path(__file__).parent


def main() -> None:
    """One stream and one decoded picture for each codec."""
    image = datasets.packaged()["astronaut"][40:104, 180:260]
    for codec in (
        codecs.Coin(8, 3, num_steps=300),
        codecs.MetaSiren(24, num_steps=300),
        codecs.ProductSiren(24, 32, num_steps=300, tune_steps=100),
    ):
        name = f"v{bitstream.VERSION}_{codec.name}"
        if (FOLDER / f"{name}.inr").exists():
            continue
        [stream] = codec.encode([image])
        (FOLDER / f"{name}.inr").write_bytes(stream)
        write_image(FOLDER / f"{name}.png", codec.decode([stream])[0])


if __name__ == "__main__":
    main()
