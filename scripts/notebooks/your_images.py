# %% [markdown]
# # Your own images in five minutes
#
# From a folder of images to a saved classifier that learned its classes in three steps, two at a
# time. Everything runs on a laptop's processor in about a minute. To use images of your own,
# replace the first cell by the path of your folder.
#
# Run this file with Python, or open it as a notebook in an editor that knows cells (`# %%`).

# %%
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

import promptax as px

# %% [markdown]
# ## A folder of images
#
# Images are in one folder for each class, which gives the class its name. Here the folder is
# made from images of clothes that come with promptax. Your images may be of any size and format,
# and in a zip or tar archive as well.

# %%
workplace = Path(tempfile.mkdtemp())
folder = workplace / "photos"

clothes = px.data.bundled_set("small-fashion-mnist")
for label, name in enumerate(clothes.class_names[:6]):
    class_folder = folder / name.replace("/", " or ")
    class_folder.mkdir(parents=True)
    for number, position in enumerate(np.flatnonzero(clothes.train.labels == label)[:250]):
        image = clothes.train[np.array([position])][0]
        Image.fromarray(image.squeeze()).save(class_folder / f"{number}.png")

for path in sorted(folder.iterdir()):
    print(f"{path.name}: {len(list(path.iterdir()))} images")

# %% [markdown]
# ## Prepare it
#
# A set is decoded and resized once, into memory-mapped files. A folder that is not divided into
# `train` and `test` is divided by promptax: a fifth of each class is for testing. On the command
# line, this is `promptax data prepare photos FOLDER --format folder --size 32`.

# %%
data_dir = workplace / "prepared"
command = [sys.executable, "-m", "promptax", "data", "prepare", "photos", str(folder)]
command += ["--format", "folder", "--size", "32", "--data-dir", str(data_dir)]
done = subprocess.run(command, check=True, capture_output=True, text=True)
print(done.stdout)

# %% [markdown]
# ## Cut it into tasks
#
# A stream is a set whose classes are divided into tasks. Three tasks of six classes have two
# classes each, in alphabetical order.

# %%
stream = px.Data(stream="photos", tasks=3, dir=data_dir).load()
print(stream)

# %%
figure, axes = plt.subplots(1, stream.num_classes, figsize=(9, 1.9), layout="constrained")
for label, (axis, name) in enumerate(zip(axes, stream.class_names, strict=True)):
    first = np.flatnonzero(stream.train.labels == label)[:1]
    axis.imshow(stream.train[first][0])
    axis.set_title(name, fontsize=9)
    axis.axis("off")
plt.show()

# %% [markdown]
# ## Train
#
# L2P trains prompts and a head on a frozen backbone, here the small one that comes with promptax.
# The preset of a stream of the same size has settings that suit it; for photographs, take a
# backbone such as `px.nn.load_vit("vit_base_patch16_224.augreg_in21k")`, after
# `promptax weights fetch vit_base_patch16_224.augreg_in21k`.

# %%
preset = px.preset("split-fashion-mnist-l2p")
backbone = px.nn.load_vit("glyph-vit")
fit = px.fit(preset.method, stream, backbone, preset.recipe, seed=0)
print(fit)

# %% [markdown]
# Row i of the matrix holds the accuracy on each task after task i was learned. The last row is what
# the classifier is worth now, without being told which task an image belongs to.

# %%
tasks = [", ".join(stream.class_names[label] for label in task.classes) for task in stream.tasks]
figure, axis = plt.subplots(figsize=(5.5, 3.2), layout="constrained")
axis.imshow(100 * fit.matrix.values, vmin=0, vmax=100, cmap="Blues")
for row, column in zip(*np.tril_indices(len(tasks)), strict=True):
    value = 100 * fit.matrix.values[row, column]
    axis.text(
        int(column),
        int(row),
        f"{value:.1f}",
        ha="center",
        va="center",
        color="white" if value > 60 else "black",
    )
axis.set_xticks(range(len(tasks)), tasks, rotation=20, ha="right", fontsize=8)
axis.set_yticks(range(len(tasks)), [f"after task {number + 1}" for number in range(len(tasks))])
axis.set_title("Accuracy (%) on the test images of each task", fontsize=10)
plt.show()

# %% [markdown]
# ## Predict
#
# A learner takes pixels as they are in a file, and prepares them by itself.

# %%
paths = sorted(folder.glob("*/7.png"))
images = np.stack([np.asarray(Image.open(path)) for path in paths])
probabilities = np.asarray(fit.learner.probabilities(images))
for path, name, row in zip(paths, fit.learner.classify(images), probabilities, strict=True):
    print(f"{path.parent.name}: {name} ({row.max():.0%})")

# %% [markdown]
# ## Save it
#
# The file holds everything: method, weights, preparation of images and names of classes.

# %%
fit.learner.save(workplace / "photos.npz")
loaded = px.load(workplace / "photos.npz")
assert loaded.classify(images) == fit.learner.classify(images)
print(loaded)

# %% [markdown]
# ## Next
#
# - [Bring your data](../../src/promptax/data/README.md) lists all formats, and how sets that are
#   divided already keep their division.
# - `promptax train l2p --data.stream photos --data.tasks 3` does the same on the command line,
#   with checkpoints, plots and a log; `promptax predict RUN FOLDER` classifies a folder of images.
