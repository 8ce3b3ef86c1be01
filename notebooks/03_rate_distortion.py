# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Rate and distortion, from real files
#
# `evaluate` writes the files of each codec, has another process decode them, and measures what
# comes back: a row for each file. Nothing is estimated; headers and checksums are counted. Here
# `MetaSiren` at three widths and `LatentGrid` at four step sizes stand beside JPEG with its default
# tables and with fitted ones, and WebP.

# %%
import os
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from inrjax import datasets, fit, metrics, plots, results
from inrjax.codecs import Jpeg, LatentGrid, MetaSiren, WebP, decode_stream, describe
from inrjax.evaluate import evaluate, stream_path
from inrjax.grids import packaged_base
from inrjax.init import packaged_init
from inrjax.plots import Panel

SMOKE = os.environ.get("INRJAX_SMOKE") == "1"  # as the tests run it: small, few steps
fit.use_every_core()

# %%
CROP = 96 if SMOKE else 600
images = {name: image[:CROP, :CROP] for name, image in datasets.packaged().items()}
figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
for ax, (name, image) in zip(axes, images.items(), strict=True):
    ax.imshow(image)
    ax.set_title(f"{name}, {image.shape[1]} x {image.shape[0]}")
    ax.axis("off")

# %% [markdown]
# ## A curve is a list of codecs
#
# A codec has a name, and a setting that sets its rate: the width of `MetaSiren`'s network, the step
# size of `LatentGrid`. 600 steps a fit of `MetaSiren` are for a notebook: its default is 6000.

# %%
STEPS, WIDTHS = (5, (24, 32)) if SMOKE else (600, (24, 32, 48))
ours = [MetaSiren(width=width, num_steps=STEPS) for width in WIDTHS]
grid = [LatentGrid(step) for step in ((36, 44) if SMOKE else (32, 36, 40, 44))]
classic = [
    *[Jpeg(quality, optimize=False) for quality in (2, 5, 9, 15, 25)],
    *[Jpeg(quality, optimize=True) for quality in (2, 5, 9, 15, 25)],
    *[WebP(quality) for quality in (0, 3, 10, 25)],
]

# %% [markdown]
# ## Measuring
#
# The files stay in the folder, beside the table `rows.csv`; a second call measures only what is
# missing. Decoding happens in another process, which gets the codec's fields and the file.

# %%
folder = Path("runs/rate_distortion")
rows = evaluate([*ours, *grid, *classic], images, folder, batch_size=len(images))
print(f"{len(rows)} files in {folder / 'streams'}")
for row in rows[: 3 * len([*ours, *grid])]:
    size = f"{row.num_bytes:6} bytes {row.bpp:.3f} bpp"
    print(f"{row.image:10} {row.setting:20} {size} {row.psnr:.2f} dB")

# %% [markdown]
# ## The curves
#
# Means over the three photographs, taken last. Three photographs say little of a codec:
# `results/kodak_rd` has all of Kodak, at six widths and 6000 steps.

# %%
curves = results.measured_curves(results.summarise(rows))
plots.rd_figure(curves, {}, bpp_range=None if SMOKE else (0, 0.6))

# %%
anchor = np.array(curves["jpeg-optimized"])
for name, curve in curves.items():
    if name == "jpeg-optimized":
        continue
    try:
        gain = metrics.bd_rate(*anchor.T, *np.array(curve).T)
        over = f"over {gain.low_db:.2f} to {gain.high_db:.2f} dB"
        print(f"BD-rate of {name} against jpeg-optimized: {gain.percent:+.1f} % {over}")
    except ValueError as error:
        print(f"BD-rate of {name} against jpeg-optimized: none, {error}")

shared = ", ".join(f"{packaged_init(w).shared_bytes} at width {w}" for w in WIDTHS)
print(f"Bytes of the init that decoders share, once, in no file and no bpp: {shared}")
print(f"Bytes of LatentGrid's base, shared likewise: {packaged_base().shared_bytes}")

# %% [markdown]
# ## What the numbers look like
#
# The smallest network beside optimised JPEG of at most as many bytes, or JPEG's smallest file where
# it cannot go so low. The network blurs; JPEG makes blocks.


# %%
def beside_jpeg(name: str) -> list[Panel]:
    """The photograph, ours, and JPEG in as many bytes."""
    image = images[name]
    stream = stream_path(folder, ours[0], name).read_bytes()
    files = [Jpeg(quality, optimize=True).encode([image])[0] for quality in range(1, 60)]
    fitting = [file for file in files if len(file) <= len(stream)]
    jpeg = fitting[-1] if fitting else min(files, key=len)
    [jpeg_hat] = Jpeg(1, optimize=True).decode([jpeg])
    panels = [Panel(name, image)]
    for title, data, image_hat in (
        ("MetaSiren", stream, decode_stream(stream)),
        ("JPEG", jpeg, jpeg_hat),
    ):
        bpp = metrics.bpp(len(data), *image.shape[:2])
        panel = Panel(f"{title}, {len(data)} bytes", image_hat, bpp, metrics.psnr(image, image_hat))
        panels.append(panel)
    return panels


plots.comparison_figure([beside_jpeg(name) for name in images])

# %% [markdown]
# ## Latents instead of weights
#
# `LatentGrid` overfits grids of latents to a photograph, coarse and fine, and no network: the nets
# that make pixels of latents, and predict each latent's distribution, were learned beforehand, and
# decoders have them. So a file takes a moment, not thousands of steps. `codec.encode` is all there
# is to it; a larger step size gives a smaller file.

# %%
name = "chelsea"
figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
for ax, step in zip(axes, (28, 40), strict=False):
    begin = time.perf_counter()
    [stream] = LatentGrid(step).encode([images[name]])
    seconds = time.perf_counter() - begin
    image_hat = decode_stream(stream)
    ax.imshow(image_hat)
    psnr = metrics.psnr(images[name], image_hat)
    ax.set_title(f"step {step}: {len(stream)} bytes, {psnr:.2f} dB, {seconds:.1f} s")
axes[-1].imshow(images[name])
axes[-1].set_title("the photograph")
for ax in axes:
    ax.axis("off")

# %% [markdown]
# ## What is in a file
#
# Of `MetaSiren`: nearly all bytes are range-coded symbols, the quantised params.

# %%
figure, axes = plt.subplots(figsize=(8, 2.6), layout="constrained")
left = np.zeros(len(ours))
parts = [describe(stream_path(folder, codec, "coffee").read_bytes()).sections for codec in ours]
for section in parts[0]:
    sizes = np.array([part[section] for part in parts])
    axes.barh([f"width {w}" for w in WIDTHS], sizes, left=left, label=section)
    left += sizes
axes.set_xlabel("bytes of coffee.inr")
axes.legend(frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.25))
axes.spines[["top", "right"]].set_visible(False)
