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
# # Learning where to start
#
# Every file of `MetaSiren` is the distance between a photograph's network and one that both sides
# have. That one is learned by MAML (Finn et al. 2017): an init from which a few steps of gradient
# descent go far, on photographs it has never seen. Here a small one is learned in seconds, and
# compared with a random init and with the packaged one.

# %%
import os
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from inrjax import datasets, fit, meta, metrics, overfit
from inrjax.decoding import reconstruct
from inrjax.images import coordinates
from inrjax.init import packaged_init

SMOKE = os.environ.get("INRJAX_SMOKE") == "1"  # as the tests run it: small, few steps

# %% [markdown]
# ## Tasks
#
# A task is a photograph to be fitted. These are crops of two photographs; the cat is kept back.

# %%
SIDE = 32 if SMOKE else 64
photographs = datasets.packaged()
cat = photographs["chelsea"][40 : 40 + 2 * SIDE, 90 : 90 + 2 * SIDE]


def random_crops(count: int, seed: int) -> np.ndarray:
    """uint8 (count, SIDE, SIDE, 3) from the astronaut and the cup, every second pixel."""
    rng = np.random.default_rng(seed)
    crops = []
    for i in range(count):
        image = photographs["astronaut" if i % 2 else "coffee"][::2, ::2]
        top, left = rng.integers(np.array(image.shape[:2]) - SIDE)
        crops.append(image[top : top + SIDE, left : left + SIDE])
    return np.stack(crops)


crops = random_crops(8 if SMOKE else 64, seed=0)
figure, axes = plt.subplots(1, 8, figsize=(12, 1.7), layout="constrained")
for ax, crop in zip(axes, crops, strict=False):
    ax.imshow(crop)
    ax.axis("off")

# %% [markdown]
# ## MAML in a page
#
# `meta.adapt` takes the inner steps, with a learning rate for each param and step; `meta.advance`
# moves the init and these rates by the gradient through them. Both know nothing of images.

# %%
net = packaged_init(24).net
INNER_STEPS, OUTER_STEPS, TASKS, POINTS = 3, 4 if SMOKE else 400, 2, 1024
coords = jnp.asarray(coordinates(SIDE, SIDE).T)
pixels = jnp.asarray(crops.reshape(len(crops), -1, 3).swapaxes(1, 2) / 127.5 - 1, jnp.float32)


def task_loss(params, data):
    """Mean squared error on [0, 1] at some points: data is (coords (2, n), pixels (3, n))."""
    return overfit.point_mse(net, params, *data, jnp.ones(data[0].shape[1]))


def sample_tasks(key: jax.Array) -> meta.Task:
    """Random crops; random points for each inner step, others to judge the adapted params on."""
    key_crop, key_point = jax.random.split(key)
    crop = jax.random.randint(key_crop, (TASKS, 1, 1), 0, len(pixels))
    point = jax.random.randint(key_point, (TASKS, INNER_STEPS + 1, POINTS), 0, SIDE * SIDE)
    some_coords = coords.T[point].swapaxes(-1, -2)
    some_pixels = pixels.swapaxes(1, 2)[crop, point].swapaxes(-1, -2)
    inner, outer = (
        (some_coords[:, :-1], some_pixels[:, :-1]),
        (some_coords[:, -1], some_pixels[:, -1]),
    )
    return meta.Task(inner, outer)


@jax.jit
def train(start: meta.MetaParams):
    """The outer loop: the state after it, and the loss of adapted params at each step."""
    schedule = optax.cosine_decay_schedule(1e-3, OUTER_STEPS)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    return meta.advance(
        task_loss, sample_tasks, meta.start(start, optimizer), optimizer, OUTER_STEPS,
        first_order=False, key=jax.random.key(1),
    )  # fmt: skip


random_params = net.init(jax.random.key(0))
begin = time.perf_counter()
trained, outer_losses = train(meta.init_meta(random_params, INNER_STEPS, rate=0.03))
outer_psnr = -10 * np.log10(np.asarray(outer_losses))
print(f"{OUTER_STEPS} outer steps in {time.perf_counter() - begin:.1f} s, compilation included")

figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
axes.plot(outer_psnr, color="0.8")
window = max(1, OUTER_STEPS // 20)
smooth = np.convolve(outer_psnr, np.ones(window) / window, mode="valid")
axes.plot(np.arange(len(smooth)) + window - 1, smooth, color="black")
axes.set(xlabel="outer steps", ylabel=f"PSNR after {INNER_STEPS} inner steps (dB)")
axes.grid(color="0.9")

# %% [markdown]
# ## Three starts on a photograph that none of them has seen
#
# The packaged init was learned in the same way, in 2000 steps on 143 photographs. All three are the
# same network, and fitted to all pixels by the same Adam. The learned ones begin with their inner
# steps, which count as steps. Then Adam takes over, which knows nothing of the rates: its first
# step is as long for every param, and loses what some of them had won.

# %%
starts = {
    "random": meta.MetaParams(random_params, None),
    "learned here": trained.meta,
    "packaged": meta.MetaParams(
        jax.tree.map(jnp.float32, packaged_init(24).params),
        jax.tree.map(jnp.float32, packaged_init(24).rates),
    ),
}
CHECKPOINTS = (3, 6, 9) if SMOKE else (3, 30, 300)
height, width = cat.shape[:2]
cat_data = (
    jnp.asarray(coordinates(height, width).T),
    jnp.asarray(cat.reshape(-1, 3).T / 127.5 - 1, jnp.float32),
)
optimizer = optax.adam(1e-3)


def inner_steps(start: meta.MetaParams) -> tuple[dict, list[float]]:
    """The params after the inner steps on the cat, and the loss before each of them."""
    params, losses = start.params, []
    for i in range(INNER_STEPS):
        losses.append(float(task_loss(params, cat_data)))
        rates = jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], start.rates)
        once = jax.tree.map(lambda leaf: leaf[None], cat_data)
        params = meta.adapt(task_loss, meta.MetaParams(params, rates), once, first_order=True)
    return params, losses


@jax.jit
def start_fit(params):
    return fit.start(params, optimizer)


def make_advance(num_steps: int):
    def advance(state: fit.FitState):
        def loss_fn(params, step, key):
            return task_loss(params, cat_data)

        key = jax.random.key(0)
        return fit.advance(loss_fn, state, optimizer, num_steps, window=1, key=key)

    return jax.jit(advance, compiler_options=fit.compiler_options(jax.default_backend()))


# %%
chunks = np.diff((INNER_STEPS, *CHECKPOINTS[1:]))
programs = {int(chunk): make_advance(int(chunk)) for chunk in {INNER_STEPS, *chunks}}
curves, pictures = {}, {}
for name, start in starts.items():
    if start.rates is None:
        state, losses = start_fit(start.params), []
        state, first = programs[INNER_STEPS](state)
        losses += first.tolist()
    else:
        params, losses = inner_steps(start)
        state = start_fit(params)
    pictures[name] = []
    for chunk in (0, *chunks):
        if chunk:
            state, more = programs[int(chunk)](state)
            losses += more.tolist()
        params = jax.tree.map(np.asarray, state.params)
        pictures[name].append(reconstruct(net, params, height, width))
    curves[name] = -10 * np.log10(losses)

# %%
figure, axes = plt.subplots(figsize=(7.5, 4), layout="constrained")
for (name, curve), colour in zip(curves.items(), ("#0072B2", "#D55E00", "black"), strict=True):
    axes.semilogx(np.arange(1, len(curve) + 1), curve, label=name, color=colour)
axes.set(xlabel="steps", ylabel="PSNR of the fit (dB)")
axes.legend(title="start", frameon=False)
axes.grid(color="0.9")

# %%
figure, axes = plt.subplots(len(pictures), 4, figsize=(11, 8.6), layout="constrained")
for row, (name, shown) in zip(axes, pictures.items(), strict=True):
    for ax, steps, image_hat in zip(row, CHECKPOINTS, shown, strict=False):
        ax.imshow(image_hat)
        ax.set_title(f"{name}, {steps} steps\n{metrics.psnr(cat, image_hat):.2f} dB")
    row[-1].imshow(cat)
    row[-1].set_title("the photograph")
for ax in axes.flat:
    ax.axis("off")

# %% [markdown]
# ## What the rates have become
#
# All inner rates began at 0.03, the grey line. Both ways of learning them agree: the first step is
# the most careful, and the outer layers move more than the inner ones.

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 3.2), layout="constrained", sharey=True)
for ax, name in zip(axes, ("learned here", "packaged"), strict=True):
    rates = starts[name].rates
    table = np.array(
        [
            [float(jnp.median(jnp.abs(rates[layer]["weight"][i]))) for layer in sorted(rates)]
            for i in range(INNER_STEPS)
        ]
    )
    for i, row in enumerate(table):
        ax.bar(np.arange(len(row)) + 0.25 * (i - 1), row, width=0.23, label=f"inner step {i + 1}")
    ax.axhline(0.03, color="0.6", linewidth=1)
    ax.set(title=name, xlabel="layer", yscale="log")
axes[0].set_ylabel("median rate of the weights")
axes[0].legend(frameon=False, fontsize=8)
