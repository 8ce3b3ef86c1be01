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
# # A photograph as a function
#
# A SIREN maps a place (y, x) to a colour. Here one is fitted to one photograph with the plain
# functions under the codecs, and looked at while it learns: what it shows, which frequencies it
# has, where it is wrong. A function can also be asked what an array cannot: how steeply the colour
# changes, and what lies between the pixels.

# %%
import os
import time

import jax
import matplotlib.pyplot as plt
import numpy as np

from inrjax import datasets, fit, metrics, overfit
from inrjax.decoding import reconstruct
from inrjax.images import coordinates
from inrjax.nets.siren import Encoding, Siren
from inrjax.optimizers import Muon

SMOKE = os.environ.get("INRJAX_SMOKE") == "1"  # as the tests run it: small, few steps

# %% [markdown]
# ## The photograph, and the points a fit sees
#
# A fit knows nothing of images: it sees a list of places and colours, cut into tiles.

# %%
SIDE = 48 if SMOKE else 160
astronaut = datasets.packaged()["astronaut"]
image = astronaut[20 : 20 + SIDE, 140 : 140 + SIDE]

tiling = fit.tiling(num_points=SIDE * SIDE, points_per_step=SIDE * SIDE)
num_tiles = fit.bucket(-(-SIDE * SIDE // tiling.tile))
points = overfit.image_points(image, tiling, num_tiles, seed=0)
print(f"{SIDE * SIDE} pixels in {num_tiles} tiles of {tiling.tile}; coords {points.coords.shape}")

# %% [markdown]
# ## Two networks, and how they are fitted
#
# A plain SIREN, and one that sees sines and cosines of the coordinates first (positional encoding):
# 16 frequencies of ratio 1.4, as Strümpler et al. (2022) have it, and the codec `StrumplerMeta`;
# `MetaSiren` has 12 of ratio 1.5, and half the w0. The specs are static and hashable, the params
# are a plain dict of arrays. A plan says how one datum is fitted; its `start` and `advance` are
# pure, so they can be jitted.

# %%
NETS = {
    "plain": Siren(width=48, depth=4),
    "encoded": Siren(width=48, depth=4, encoding=Encoding(num_frequencies=16, ratio=1.4)),
}
CHECKPOINTS = (1, 2, 3) if SMOKE else (3, 30, 100, 400)


def fit_photograph(net: Siren) -> tuple[dict, np.ndarray, dict]:
    """Fitted params, the loss at each step, and the picture after some steps."""
    plan = overfit.PlainPlan(
        net, Muon(3e-3), num_steps=CHECKPOINTS[-1], tiles_per_step=tiling.tiles_per_step, window=1
    )
    options = fit.compiler_options(jax.default_backend())
    advance = jax.jit(plan.advance, static_argnames=("num_steps",), compiler_options=options)
    key = jax.random.key(0)
    state, losses, pictures = plan.start(key, points), [], {}
    for step in CHECKPOINTS:
        state, chunk = advance(key, points, state, num_steps=step - len(losses))
        losses += chunk.tolist()
        params = jax.tree.map(np.asarray, state.params)
        pictures[step] = reconstruct(net, params, SIDE, SIDE)
    return params, np.array(losses), pictures


fitted = {}
for name, net in NETS.items():
    begin = time.perf_counter()
    fitted[name] = fit_photograph(net)
    seconds = time.perf_counter() - begin
    print(f"{name}: {net.num_params} params, {CHECKPOINTS[-1]} steps in {seconds:.1f} s")

# %% [markdown]
# ## What it shows as it learns

# %%
figure, axes = plt.subplots(2, len(CHECKPOINTS) + 1, figsize=(13, 5.6), layout="constrained")
for row, (name, (_, _, pictures)) in zip(axes, fitted.items(), strict=True):
    for ax, (step, image_hat) in zip(row, pictures.items(), strict=False):
        ax.imshow(image_hat)
        ax.set_title(f"{name}, {step} steps\n{metrics.psnr(image, image_hat):.2f} dB")
    row[-1].imshow(image)
    row[-1].set_title("the photograph")
for ax in axes.flat:
    ax.axis("off")

# %%
figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
for name, (_, losses, _) in fitted.items():
    axes.semilogx(np.arange(1, len(losses) + 1), -10 * np.log10(losses), label=name)
axes.set(xlabel="steps", ylabel="PSNR of the fit (dB)")
axes.legend(frameon=False)
axes.grid(color="0.9")

# %% [markdown]
# ## Coarse first, fine later
#
# The spectrum of the plain network's picture, averaged over directions. A fit learns low
# frequencies first; those that it has not learned yet are missing, which is what blur is.


# %%
def radial_spectrum(picture: np.ndarray) -> np.ndarray:
    """Mean power of the grey picture at 1, 2, ... cycles over its side."""
    grey = picture.mean(-1) * np.outer(np.hanning(SIDE), np.hanning(SIDE))
    power = np.abs(np.fft.fft2(grey)) ** 2
    radius = np.hypot(*np.meshgrid(*[np.fft.fftfreq(SIDE, 1 / SIDE)] * 2)).astype(int)
    sums = np.bincount(radius.ravel(), power.ravel()) / np.bincount(radius.ravel())
    return sums[1 : SIDE // 2]


figure, axes = plt.subplots(figsize=(7, 3.8), layout="constrained")
colours = plt.get_cmap("viridis_r")(np.linspace(0.1, 0.95, len(CHECKPOINTS)))
for colour, (step, image_hat) in zip(colours, fitted["plain"][2].items(), strict=True):
    axes.loglog(radial_spectrum(image_hat), color=colour, label=f"{step} steps")
axes.loglog(radial_spectrum(image), "k--", label="the photograph")
axes.set(xlabel="cycles over the picture", ylabel="power")
axes.legend(frameon=False)
axes.grid(color="0.9")

# %% [markdown]
# ## Where it is wrong
#
# Along edges and in texture: what is left is high frequencies.

# %%
figure, axes = plt.subplots(1, 2, figsize=(8.6, 3.9), layout="constrained")
errors = {
    name: np.abs(image.astype(float) - pictures[CHECKPOINTS[-1]]).mean(-1)
    for name, (_, _, pictures) in fitted.items()
}
limit = np.percentile(errors["plain"], 99)
for ax, (name, error) in zip(axes, errors.items(), strict=True):
    shown = ax.imshow(error, cmap="magma", vmin=0, vmax=limit)
    ax.set_title(f"error of the {name} network")
    ax.axis("off")
figure.colorbar(shown, ax=axes, shrink=0.85, label="grey levels")

# %% [markdown]
# ## Its slope, exactly
#
# The derivative of the network by its coordinates, by automatic differentiation: no finite
# differences of pixels. Sitzmann et al. (2020) built SIREN for that. The plain network's slope is
# the photograph's; the encoded one has the right colour at every pixel, and quite another slope.


# %%
def brightness_slope(net: Siren, params) -> np.ndarray:
    """Length of d(grey)/d(y, x) at each pixel, (SIDE, SIDE)."""
    grey = jax.grad(lambda place: net.apply(params, place).mean())
    return np.linalg.norm(jax.vmap(grey)(coordinates(SIDE, SIDE)), axis=-1).reshape(SIDE, SIDE)


slopes = {f"slope, {name}": brightness_slope(net, fitted[name][0]) for name, net in NETS.items()}
differences = np.hypot(*np.gradient(image.mean(-1) / 127.5, 2 / SIDE))
figure, axes = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
limit = np.percentile(differences, 99)
fields = slopes | {"pixel differences": differences}
for ax, (title, field) in zip(axes, fields.items(), strict=True):
    ax.imshow(field, cmap="gray", vmin=0, vmax=limit)
    ax.set_title(title)
    ax.axis("off")

# %% [markdown]
# ## Between the pixels
#
# The same params asked at eight times as many places each way. The plain SIREN is smooth there. The
# encoding holds frequencies near those of the pixels, and nothing tells it what to do between them:
# more decibels in as many steps are paid for with a function that is not smooth.

# %%
ZOOM, PART = 8, SIDE // 4
top, left = SIDE // 3, SIDE // 2
figure, axes = plt.subplots(1, 3, figsize=(12, 4.3), layout="constrained")
axes[0].imshow(image[top : top + PART, left : left + PART])
axes[0].set_title(f"{PART} x {PART} pixels of the photograph")
for ax, (name, net) in zip(axes[1:], NETS.items(), strict=True):
    larger = reconstruct(net, fitted[name][0], ZOOM * SIDE, ZOOM * SIDE)
    ax.imshow(larger[ZOOM * top : ZOOM * (top + PART), ZOOM * left : ZOOM * (left + PART)])
    ax.set_title(f"the {name} network there, {ZOOM} times as fine")
for ax in axes:
    ax.axis("off")
