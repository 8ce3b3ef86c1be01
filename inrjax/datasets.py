"""Named image sets: which files, in which order, with which checksums.

The sets live in folders of one data root, given as an argument or by the environment variable
INRJAX_DATA. Only `packaged` needs no files of its own.

============  ======================================  ===========================================
set           files                                   use
============  ======================================  ===========================================
kodak         kodak/kodim01.png .. kodim24.png        the test set: nothing is learned or chosen
                                                      on it
cid22         cid22/\\*.webp (CC BY-SA 4.0)            meta-training (`cid22_train`), choosing
                                                      defaults (`cid22_held_back`)
bsds500       bsds500/{train,val,test}/\\*.jpg         ablations only: its licence is not stated,
                                                      and it is JPEG-compressed
clic2025_val  clic2025_val/\\*.png (Unsplash licence)  large pictures: memory, time
============  ======================================  ===========================================
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from inrjax import images
from inrjax.types import Image

ENVIRONMENT_VARIABLE = "INRJAX_DATA"
KODAK_URL = "https://r0k.us/graphics/kodak/kodak/"

KODAK_SHA256: Mapping[str, str] = {
    "kodim01.png": "a56e27cbf5f843c048b6af1d6e090760e9c92fadba88b7dee0205918a37523bd",
    "kodim02.png": "4f4b74a79237e311d72cad958237b5f7088d8bce1c82305ebefe1a70e3022dfd",
    "kodim03.png": "e25ca1ff2f0c0cb5fdfd5f9b0a0bb21ac4c3de3c84a67f35b09a85d3306249db",
    "kodim04.png": "e3b946107c5d3441c022f678d0c3caf1e224d81b1604ba840a4f88e562de61aa",
    "kodim05.png": "10349e963c5c813d327852f82c1795fa4148d69fedffc4c589bee458e3ac3d53",
    "kodim06.png": "363510303b715d4cbc384e1ce227e466b613a09e1b71ae985882bf8e7fbd9b18",
    "kodim07.png": "b77d3f006f42414bb242222e0482e750c0fb9e5ee8d4bed2f6f11c5605fe54a4",
    "kodim08.png": "ba23983c76b4832ee0e8af0592664756841a16779acd69f792e268fb6d13d6e7",
    "kodim09.png": "6a4361c2fc194feb4edaa9f9a4a0620fb9943e460ac7fdf037fb0f6dd6607a7d",
    "kodim10.png": "9dfb70f5867c29ff9ed6313683f19b3d867849e40fbc0c4c54a4a89df341cf23",
    "kodim11.png": "7936814b58b5387fce2e4e2488b4ec830dadd95fa9520f358ddb30990b50f2b6",
    "kodim12.png": "d78c37c2f04f23761ed2367dd77e2db584ddd4c3950833fecf89f199a8126980",
    "kodim13.png": "bc34a3ce58dea09dce1704c997171602de90cb34d0c8503a988b77f473d39b08",
    "kodim14.png": "55a94550ff18f3246c4074fd32b77b0c74447c26b6ad274d564d999c0450ba6e",
    "kodim15.png": "7538cbb80cb9103606c48b806eae57d56c885c7f90b9b3be70a41160f9cbb683",
    "kodim16.png": "a89c7268ccd4718ba424a99fc4643c572cf692ca6eae887185ceb4e9f11d2e54",
    "kodim17.png": "37afcc89fbdcb76d9518e04b2fc011027e2f4cd14b3b2f83cefd721641a47c5b",
    "kodim18.png": "1a9258c365988961d87a0598725b609139c303ad48a5aad6c503c3b1a87849aa",
    "kodim19.png": "b7450b264b1b0a411390d8931b112c27905a992520fc90569dc4b920aa32bbdc",
    "kodim20.png": "3b46c71e3b92a563820ba32936be8330c586c41f938efd94be938386aae4328a",
    "kodim21.png": "ac958597c82073f6bb65129c68f72b651db5b9efd82e11547d07350214bc268b",
    "kodim22.png": "1cee58eb1f2d9c7ebb254d208a03c783ce6cf2c4d8c2cf45e235dd23b4ce1b29",
    "kodim23.png": "e3111a2fd4da24af15d6459ef9eacfe54106b38e27b4a21821b75c3f5d2d5baf",
    "kodim24.png": "1071c68372cc5a01435c2c225a5cf7d4bb803846ec08bb6b3d6721b156d7cb96",
}
"""SHA-256 of each file of the Kodak Lossless True Color Image Suite, in the set's order."""

_BSDS500_PARTS = ("train", "val", "test")
_HELD_BACK_MODULUS = 6


def data_root(root: str | PathLike[str] | None) -> Path:
    """The folder that holds the sets: the argument or, where it is None, INRJAX_DATA.

    Raises ValueError if neither is given, or it is no folder.
    """
    chosen = root if root is not None else os.environ.get(ENVIRONMENT_VARIABLE)
    if not chosen:
        raise ValueError(
            f"no data folder given: name one, or set it once with "
            f"`export {ENVIRONMENT_VARIABLE}=/path/to/data`"
        )
    path = Path(chosen)
    if not path.is_dir():
        raise ValueError(f"{path} is not a folder: check the data folder or {ENVIRONMENT_VARIABLE}")
    return path


def images_in(folder: str | PathLike[str]) -> list[Path]:
    """The image files directly in a folder (by their endings), sorted by name, hidden ones left.

    Raises ValueError if it is no folder, cannot be read, or holds none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: name a folder of images")
    try:
        paths = sorted(path for path in folder.iterdir() if _is_image_file(path))
    except OSError as error:
        raise ValueError(f"{folder} cannot be read ({error.strerror})") from error
    if not paths:
        raise ValueError(
            f"{folder} holds no image: put files ending in "
            f"{', '.join(sorted(images.SUFFIXES))} there"
        )
    return paths


def kodak(root: str | PathLike[str] | None = None) -> list[Path]:
    """The 24 Kodak images (768 x 512 or 512 x 768) in order, from the root's folder ``kodak``.

    The published test set: nothing may be learned or chosen on it. Raises ValueError if any is
    missing; `fetch_kodak` downloads them.
    """
    folder = data_root(root) / "kodak"
    paths = [folder / name for name in KODAK_SHA256]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise ValueError(
            f"{folder} lacks {len(missing)} of the 24 Kodak images, first {missing[0]}: "
            "download them with inrjax.datasets.fetch_kodak"
        )
    return paths


def cid22(root: str | PathLike[str] | None = None) -> list[Path]:
    """All CID22-512 training photographs (512 x 512) in the root's folder ``cid22``, sorted."""
    return images_in(data_root(root) / "cid22")


def cid22_train(root: str | PathLike[str] | None = None) -> list[Path]:
    """The cid22 images for meta-training: those that `cid22_held_back` leaves, about 5 in 6."""
    return [path for path in cid22(root) if not _is_held_back(path.name)]


def cid22_held_back(root: str | PathLike[str] | None = None) -> list[Path]:
    """The cid22 images for choosing defaults, never trained on, about 1 in 6.

    Those whose file name (UTF-8, with its ending) has a SHA-256 that is divisible by 6, the digest
    read as one big-endian integer: fixed for ever, whatever else is in the folder.
    """
    return [path for path in cid22(root) if _is_held_back(path.name)]


def bsds500(root: str | PathLike[str] | None = None) -> list[Path]:
    """The BSDS500 images (481 x 321 or 321 x 481): train, val, test, each sorted by name.

    JPEG files of quality 95: halve their size before use, and report no PSNR at high rate on them.
    """
    folder = data_root(root) / "bsds500"
    return [path for part in _BSDS500_PARTS for path in images_in(folder / part)]


def clic2025_val(root: str | PathLike[str] | None = None) -> list[Path]:
    """The CLIC 2025 validation images in the root's folder ``clic2025_val`` (2048 px), sorted."""
    return images_in(data_root(root) / "clic2025_val")


def packaged() -> dict[str, Image]:
    """Three photographs that come with scikit-image, no download: name -> uint8 (h, w, 3).

    astronaut 512 x 512, coffee 400 x 600, chelsea (a cat) 300 x 451; height x width. None has been
    JPEG-compressed in the package.
    """
    import skimage.data

    fetchers: dict[str, Callable[[], Any]] = {
        "astronaut": skimage.data.astronaut,
        "coffee": skimage.data.coffee,
        "chelsea": skimage.data.chelsea,
    }
    return {name: fetch() for name, fetch in fetchers.items()}


def fetch_kodak(root: str | PathLike[str]) -> list[Path]:
    """Download the Kodak images into the folder ``kodak`` of a data root, and check them.

    Files already there with the right checksum are kept, so a broken download resumes; each file
    appears whole or not at all. Returns their paths, as `kodak` does. Raises ValueError without
    pooch (the extra ``data``), without network, for a folder that cannot be written, and for a
    file that is not the published one.
    """
    try:
        import pooch
    except ImportError:
        raise ValueError(
            "the download needs pooch: install it with `pip install inrjax[data]`"
        ) from None
    folder = Path(root) / "kodak"
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel(logging.WARNING)  # pooch announces every file otherwise; only the CLI prints
    try:
        for name, digest in KODAK_SHA256.items():
            pooch.retrieve(KODAK_URL + name, f"sha256:{digest}", fname=name, path=folder)
    except (OSError, ValueError) as error:  # every exception of requests is an OSError
        raise ValueError(
            f"{folder} could not be filled from {KODAK_URL} ({_first_line(error)}): check the "
            "network and the folder, or download the 24 files by hand"
        ) from error
    finally:
        logger.setLevel(level)
    return kodak(root)


def verify(
    paths: Iterable[str | PathLike[str]], checksums: Mapping[str, str] = KODAK_SHA256
) -> None:
    """Check files against known SHA-256s, file name -> hex; those of Kodak unless others are given.

    Raises ValueError naming the first file that is missing, unknown or different.
    """
    for path in map(Path, paths):
        if path.name not in checksums:
            raise ValueError(f"{path} has no known checksum: check its name")
        if not path.is_file():
            raise ValueError(f"{path} does not exist: download it again")
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != checksums[path.name]:
            raise ValueError(f"{path} is not the published file (SHA-256 {found}): get it again")


def _is_image_file(path: Path) -> bool:
    hidden = path.name.startswith(".")
    return not hidden and path.suffix.lower() in images.SUFFIXES and path.is_file()


def _is_held_back(name: str) -> bool:
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest, "big") % _HELD_BACK_MODULUS == 0


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
