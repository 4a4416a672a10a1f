# %% [markdown]
# # What prompts learn
#
# L2P keeps a pool of prompts, each with a key. An image's feature from the frozen ViT is its query,
# and the prompts with the most similar keys are put in front of its tokens. This notebook trains
# L2P on ten tasks of letters and looks at three things: which prompts the images of each task
# receive, how similar keys and prompts are to each other, and how much the class token attends to
# the prompts.
#
# Run this file with Python, or open it as a notebook in an editor that knows cells (`# %%`).

# %%
import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import promptax as px

# %% [markdown]
# ## Train and record
#
# The preset gives each task two prompts of its own in training; in testing, the query decides. A
# callback keeps what was measured after each task, and with it the prompts of all test images. One
# epoch for each task, rather than the three of the preset, is enough to see what happens.


# %%
class Record(px.Callback):
    """Keeps the measurement after each task."""

    def __init__(self):
        self.measurements = []

    def on_task(self, event):
        self.measurements.append(event.measurement)


stream = px.data.split_glyphs()
preset = px.preset("split-glyphs-l2p")
recipe = dataclasses.replace(preset.recipe, schedule=px.Schedule(epochs=1, batch_size=32))
backbone = px.nn.load_vit("glyph-vit")

record = Record()
fit = px.fit(preset.method, stream, backbone, recipe, seed=0, callbacks=[record])
model = fit.learner.model
num_tasks = len(stream.tasks)
print(fit)
print(f"{model.pool.size} prompts, {model.pool.top_k} for each image")

# %% [markdown]
# ## Which prompts are used
#
# Row i shows the share of the test images of task i that are given each prompt, after the last
# task. Prompts 2i and 2i + 1 were trained by task i (both counted from 0), so an image of which
# the query finds the right task lies on the diagonal of pairs.

# %%
last = record.measurements[-1]
usage = np.array(
    [
        np.bincount(selected.ravel(), minlength=model.pool.size) / len(selected)
        for selected in last.selected
    ]
)

figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
image = axis.imshow(100 * usage, cmap="Blues", vmin=0, vmax=100, aspect="auto")
axis.set_xticks(range(0, model.pool.size, 2))
axis.set_yticks(range(num_tasks))
axis.set_xlabel("prompt")
axis.set_ylabel("task of the test image")
axis.set_title("Share of the images that are given each prompt (%)", fontsize=10)
figure.colorbar(image, ax=axis)
plt.show()

# %% [markdown]
# A prompt is only found if its key is still the most similar one when other tasks have come. The
# next figure shows, after each task, how many images are given a prompt of their own task.


# %%
def found(measurement):
    """For each task, the share of its images that are given a prompt of their task."""
    own = [
        selected // model.pool.top_k == task for task, selected in enumerate(measurement.selected)
    ]
    return np.array([mine.any(axis=1).mean() for mine in own])


figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
stages = np.arange(1, num_tasks + 1)
newest = [found(measurement)[-1] for measurement in record.measurements]
average = [found(measurement).mean() for measurement in record.measurements]
axis.plot(stages, 100 * np.array(newest), "o-", color="#3B82D6", label="images of the newest task")
axis.plot(
    stages, 100 * np.array(average), "s-", color="#E69F00", label="images of all tasks so far"
)
axis.plot(stages, 100 / stages, ":", color="#8C8C8C", label="a task chosen at random")
axis.set_xticks(stages)
axis.set_ylim(0, 105)
axis.set_xlabel("tasks learned")
axis.set_title("Images that are given a prompt of their own task (%)", fontsize=10)
axis.legend(frameon=False, fontsize=8)
plt.show()
print(f"right prompt {found(last).mean():.1%}, right class {fit.matrix.average_accuracy:.1%}")

# %% [markdown]
# The classes are told apart by all the weights of the head, so an image can be given the prompts of
# another task and still be classified correctly.
#
# ## How similar keys and prompts are
#
# Keys are drawn towards the queries of the images that selected them. The two keys of a task are
# nearly the same, since both were drawn towards the same queries; those of different tasks are
# similar as well, because all letters have something in common. Prompts show another pattern: each
# task starts from the prompts of the task before, so all first prompts resemble each other, and so
# do all second ones, while the two prompts of a task have hardly anything in common.


# %%
def cosine(rows):
    """Cosine similarity of all pairs of rows."""
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


similarities = {
    "keys": cosine(np.asarray(model.pool.key)),
    "prompts": cosine(np.asarray(model.pool.prompt)[0].reshape(model.pool.size, -1)),
}
figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
for axis, (name, similarity) in zip(axes, similarities.items(), strict=True):
    image = axis.imshow(similarity, cmap="RdBu_r", vmin=-1, vmax=1)
    axis.set_title(f"Cosine similarity of {name}", fontsize=10)
    axis.set_xlabel("prompt")
    axis.set_xticks(range(0, model.pool.size, 4))
    axis.set_yticks(range(0, model.pool.size, 4))
figure.colorbar(image, ax=axes)
plt.show()

# %% [markdown]
# ## How much the class token attends to prompts
#
# Models are plain Equinox modules, so a forward pass can be written out block by block, with the
# attention weights in view. The prompts enter in front of the sequence, so position `front` is
# that of the class token, and the positions before it are those of the prompts.


# %%
@eqx.filter_jit
def look_inside(model, images):
    """The class token's attention to prompts `[block, image, head]`, and the logits."""
    vit = model.backbone
    chosen = model.pool.gather(model.pool.select(model.query(images)).index)
    x = vit.tokens(vit.patches(images))
    front = 0
    shares = []
    for number in range(vit.config.depth):
        block = jax.tree.map(lambda leaf, number=number: leaf[number], vit.blocks)
        if number in chosen:
            x = jnp.concatenate([chosen[number], x], axis=1)
            front += chosen[number].shape[1]
        if front:
            normalised = block.attention_norm(x)
            query = block.attention.project(normalised[:, front : front + 1], 0)
            key = block.attention.project(normalised, 1)
            score = jnp.einsum("bqhd,bthd->bht", query, key) / jnp.sqrt(key.shape[-1])
            shares.append(jax.nn.softmax(score)[..., :front].sum(-1))
        x = block(x)
    logits = model.head(vit.norm(x)[:, front])
    return jnp.stack(shares), logits


shares = []
for split in stream.test_sets:
    raw = stream.test[split.index]
    images = px.data.prepare_eval(jnp.asarray(raw), recipe.images)
    share, logits = look_inside(model, images)
    # What is written out here is the model that was trained.
    np.testing.assert_allclose(logits, fit.learner(raw), atol=1e-3)
    shares.append(np.asarray(share).mean(axis=1))
shares = np.array(shares)  # [task, block, head]
blocks = range(backbone.config.depth - shares.shape[1], backbone.config.depth)
length = model.pool.top_k * model.pool.prompt.shape[2]
uniform = length / (length + 1 + backbone.config.grid**2)

# %%
figure, axes = plt.subplots(
    1, len(blocks), figsize=(8, 3.2), layout="constrained", sharey=True, squeeze=False
)
for column, (axis, block) in enumerate(zip(axes[0], blocks, strict=True)):
    for head in range(shares.shape[2]):
        axis.plot(range(num_tasks), 100 * shares[:, column, head], ".-", label=f"head {head}")
    axis.axhline(100 * uniform, color="#8C8C8C", linestyle=":", label="all tokens alike")
    axis.set_xticks(range(num_tasks))
    axis.set_xlabel("task of the test image")
    axis.set_title(f"Block {block}", fontsize=10)
axes[0, 0].set_ylabel("attention to prompts (%)")
axes[0, -1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()
for block, share in zip(blocks, shares.mean(axis=(0, 2)), strict=True):
    print(
        f"block {block}: {share:.1%} of the class token's attention goes to {length} prompt tokens"
    )

# %% [markdown]
# In the block where they enter, four tokens of 21 receive most of the class token's attention. One
# block later, mainly one head still attends to them: the class token has taken up what they say.
#
# ## Next
#
# - [Concepts](../../.github/site/concepts.md) explains pools, queries and the class mask.
# - `promptax report RUN --figure figure.png` draws which prompts are used, for the runs of any
#   method that chooses them.
