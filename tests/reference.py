"""L2P and DualPrompt a second time: plain functions over a dictionary of parameters.

Written from the description of the published behaviour alone (see `data/README.md`), with
unrolled blocks and no code of `promptax`, so that two independent implementations can be
compared where no file of the published code exists. `step` and `trajectory` give the arrays
of a golden file, `save` writes one.
"""

import json
from collections import defaultdict

import jax
import jax.numpy as jnp
import numpy as np

HEAD = ("head/kernel", "head/bias")


def make_meta(**changes):
    """A small L2P; `changes` replace entries, those of `arch` and `e_prompt` one by one."""
    arch = {"heads": 2, "hidden": 16, "image": 16, "layers": 2, "mlp": 24, "patch": 8}
    pool = {
        "batchwise": False,
        "embedding_key": "cls",
        "layers": [0],
        "length": 2,
        "pool_size": 5,
        "prefix": False,
        "prompt_key": True,
        "same_key_value": False,
        "top_k": 2,
        "train_mask_by_task": False,
        "transfer_keys": False,
        "transfer_prompts": False,
    }
    meta = {
        "classifier": "prompt",
        "g_prompt": None,
        "num_classes": 6,
        "pull_constraint_coeff": 1.0,
        "task": 0,
        "train_class_mask": True,
        **changes,
    }
    meta["arch"] = arch | changes.get("arch", {})
    meta["e_prompt"] = pool | changes.get("e_prompt", {})
    return meta


def make_params(meta, seed=0):
    """Random parameters of every shape that a golden file has."""
    arch, pool, shared = meta["arch"], meta["e_prompt"], meta["g_prompt"]
    dim, heads, mlp = arch["hidden"], arch["heads"], arch["mlp"]
    head_dim = dim // heads
    shapes = {
        "cls": (1, 1, dim),
        "embedding/kernel": (arch["patch"], arch["patch"], 3, dim),
        "embedding/bias": (dim,),
        "Transformer/posembed_input/pos_embedding": (
            1,
            1 + (arch["image"] // arch["patch"]) ** 2,
            dim,
        ),
        "Transformer/encoder_norm/scale": (dim,),
        "Transformer/encoder_norm/bias": (dim,),
        "head/kernel": (dim, meta["num_classes"]),
        "head/bias": (meta["num_classes"],),
    }
    for layer in range(arch["layers"]):
        block = f"Transformer/encoderblock_{layer}/"
        attention = block + "MultiHeadDotProductAttention_0/"
        for norm in ("LayerNorm_0", "LayerNorm_1"):
            shapes |= {f"{block}{norm}/scale": (dim,), f"{block}{norm}/bias": (dim,)}
        for name in ("query", "key", "value"):
            shapes[f"{attention}{name}/kernel"] = (dim, heads, head_dim)
            shapes[f"{attention}{name}/bias"] = (heads, head_dim)
        shapes |= {
            attention + "out/kernel": (heads, head_dim, dim),
            attention + "out/bias": (dim,),
            block + "MlpBlock_0/Dense_0/kernel": (dim, mlp),
            block + "MlpBlock_0/Dense_0/bias": (mlp,),
            block + "MlpBlock_0/Dense_1/kernel": (mlp, dim),
            block + "MlpBlock_0/Dense_1/bias": (dim,),
        }
    count, size, length = len(pool["layers"]), pool["pool_size"], pool["length"]
    if pool["prefix"]:
        kv = 1 if pool["same_key_value"] else 2
        shapes["prompt_pool/prompt"] = (count, kv, size, length, heads, head_dim)
    else:
        shapes["prompt_pool/prompt"] = (count, size, length, dim)
    if pool["prompt_key"]:
        shapes["prompt_pool/key"] = (size, dim)
    if shared is not None:
        kv = 1 if shared["same_key_value"] else 2
        shapes["prefix"] = (arch["layers"], kv, shared["length"], heads, head_dim)
    rng = np.random.default_rng(seed)
    values = {name: rng.normal(0, 0.3, shape) for name, shape in sorted(shapes.items())}
    shift = {name: 1.0 for name in values if name.endswith("scale")}
    return {name: (x + shift.get(name, 0)).astype(np.float32) for name, x in values.items()}


def layer_norm(p, name, x):
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    return centred / jnp.sqrt(variance + 1e-6) * p[name + "/scale"] + p[name + "/bias"]


def gelu(x):
    return 0.5 * x * (1 + jnp.tanh(jnp.sqrt(2 / jnp.pi) * (x + 0.044715 * x**3)))


def attention(p, name, x, prefix):
    project = lambda part: (
        jnp.einsum("btd,dhk->bthk", x, p[f"{name}{part}/kernel"]) + p[f"{name}{part}/bias"]
    )
    query, key, value = project("query"), project("key"), project("value")
    if prefix is not None:
        keys, values = prefix
        key, value = jnp.concatenate([keys, key], 1), jnp.concatenate([values, value], 1)
    score = jnp.einsum("bqhk,bthk->bhqt", query, key) / jnp.sqrt(query.shape[-1])
    weight = jnp.exp(score - score.max(-1, keepdims=True))
    weight = weight / weight.sum(-1, keepdims=True)
    mixed = jnp.einsum("bhqt,bthk->bqhk", weight, value)
    return jnp.einsum("bqhk,hkd->bqd", mixed, p[name + "out/kernel"]) + p[name + "out/bias"]


def embed(p, images, patch):
    x = jax.lax.conv_general_dilated(
        images,
        p["embedding/kernel"],
        (patch, patch),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return (x + p["embedding/bias"]).reshape(len(images), -1, x.shape[-1])


def encode(p, meta, patches, front=None, prefixes=None):
    """`front`: by block, tokens put in front; `prefixes`: by block, keys and values."""
    front, prefixes = front or {}, prefixes or {}
    cls = jnp.tile(p["cls"], (len(patches), 1, 1))
    x = jnp.concatenate([cls, patches], 1) + p["Transformer/posembed_input/pos_embedding"]
    for layer in range(meta["arch"]["layers"]):
        name = f"Transformer/encoderblock_{layer}/"
        if layer in front:
            x = jnp.concatenate([front[layer], x], 1)
        y = layer_norm(p, name + "LayerNorm_0", x)
        mixed = attention(p, name + "MultiHeadDotProductAttention_0/", y, prefixes.get(layer))
        x = x + mixed
        y = layer_norm(p, name + "LayerNorm_1", x)
        y = y @ p[name + "MlpBlock_0/Dense_0/kernel"] + p[name + "MlpBlock_0/Dense_0/bias"]
        y = gelu(y) @ p[name + "MlpBlock_0/Dense_1/kernel"] + p[name + "MlpBlock_0/Dense_1/bias"]
        x = x + y
    return layer_norm(p, "Transformer/encoder_norm", x)


def query_of(p, meta, images):
    """From `p` as it was before training."""
    patches = embed(p, images, meta["arch"]["patch"])
    kind = meta["e_prompt"]["embedding_key"]
    if kind == "cls":
        return encode(p, meta, patches)[:, 0]
    mean, largest = patches.mean(1), patches.max(1)
    return {"mean": mean, "max": largest, "mean_max": largest + 2 * mean}[kind]


def unit(x):
    return x / jnp.sqrt(jnp.maximum((x**2).sum(-1, keepdims=True), 1e-12))


def choose(p, meta, query, slot):
    """Ids `[batch, top_k]` and their cosines; `slot` holds the task's ids, or -1."""
    pool = meta["e_prompt"]
    prompt, size, top_k = p["prompt_pool/prompt"], pool["pool_size"], pool["top_k"]
    keys = p["prompt_pool/key"] if pool["prompt_key"] else prompt.mean((0, 2))
    cosine = unit(query) @ unit(keys).T
    index = jnp.argsort(-cosine, 1, stable=True)[:, :top_k]
    if pool["batchwise"]:
        counts = (index[..., None] == jnp.arange(size)).sum((0, 1))
        winners = jnp.argsort(-counts, stable=True)[:top_k]
        index = jnp.tile(winners, (len(query), 1))
    index = jnp.where(slot >= 0, slot, index)
    return index, jnp.take_along_axis(cosine, index, 1)


def forward(p, meta, images, query, slot):
    """Logits, features, ids and summed cosine of one pass."""
    pool, shared, batch = meta["e_prompt"], meta["g_prompt"], len(images)
    index, cosine = choose(p, meta, query, slot)
    chosen = lambda values: [values[index[:, j]] for j in range(pool["top_k"])]
    front, keys, values = {}, defaultdict(list), defaultdict(list)
    for layer in [] if shared is None else shared["layers"]:
        general = p["prefix"][layer]
        keys[layer].append(jnp.tile(general[0], (batch, 1, 1, 1)))
        values[layer].append(jnp.tile(general[-1], (batch, 1, 1, 1)))
    for prompt, layer in zip(p["prompt_pool/prompt"], pool["layers"], strict=True):
        if pool["prefix"]:
            keys[layer] += chosen(prompt[0])
            values[layer] += chosen(prompt[-1])
        else:
            front[layer] = jnp.concatenate(chosen(prompt), 1)
    join = lambda parts: jnp.concatenate(parts, 1)
    prefixes = {layer: (join(keys[layer]), join(values[layer])) for layer in keys}
    x = encode(p, meta, embed(p, images, meta["arch"]["patch"]), front, prefixes)
    length = 0 if pool["prefix"] else len(pool["layers"]) * pool["top_k"] * pool["length"]
    features = {
        "token": x[:, length],
        "prompt": x[:, :length].mean(1),
        "token+prompt": x[:, : length + 1].mean(1),
        "gap": x.mean(1),
    }[meta["classifier"]]
    logits = features @ p["head/kernel"] + p["head/bias"]
    return logits, features, index, cosine.sum() / batch


def task_slot(meta, task, train=True):
    pool = meta["e_prompt"]
    ids = np.arange(task * pool["top_k"], (task + 1) * pool["top_k"])
    inside = train and pool["train_mask_by_task"] and ids[-1] < pool["pool_size"]
    return ids if inside else np.full_like(ids, -1)


def loss_of(trained, p, meta, images, labels, allowed, slot):
    query = query_of(p, meta, images)
    logits, features, index, cosine = forward({**p, **trained}, meta, images, query, slot)
    score = jnp.where(allowed, logits, -jnp.inf)
    score = score - jax.scipy.special.logsumexp(score, axis=1, keepdims=True)
    cross_entropy = -score[jnp.arange(len(labels)), labels].mean()
    loss = cross_entropy - meta["pull_constraint_coeff"] * cosine
    return loss, (query, logits, features, index, cosine)


def trainable(meta, params):
    if meta.get("trainable") == "all":
        return dict(params)
    prompts = ("prompt_pool/prompt", "prompt_pool/key", "prefix")
    return {name: params[name] for name in (*HEAD, *prompts) if name in params}


def mask(meta, classes):
    allowed = np.ones(meta["num_classes"], bool)
    if meta["train_class_mask"]:
        allowed[:] = False
        allowed[np.asarray(classes)] = True
    return allowed


def step(meta, params, images, labels, class_mask):
    """The arrays of a step file."""

    @jax.jit
    def run(p, images):
        args = (p, meta, images, labels, mask(meta, class_mask), task_slot(meta, meta["task"]))
        grad = jax.value_and_grad(loss_of, has_aux=True)
        (loss, train), grads = grad(trainable(meta, p), *args)
        free = task_slot(meta, 0, train=False)
        return loss, train, grads, forward(p, meta, images, train[0], free)

    loss, (query, *train), grads, evaluation = run(params, images)
    names = ("logits", "features", "prompt_idx", "reduce_sim")
    out = {
        "query": query,
        "loss": loss,
        **{f"train_{name}": x for name, x in zip(names, train, strict=True)},
        **{f"eval_{name}": x for name, x in zip(names, evaluation, strict=True)},
    }
    given = {"images": images, "labels": labels, "class_mask": class_mask}
    return flat(params=params, out=out, grad=grads, **{"in": given})


def trajectory(meta, params, images, labels, eval_images):
    """The arrays of a trajectory file; `images` are uint8."""
    optimizer, steps = meta["optimizer"], meta["steps_per_task"]
    limit = optimizer.get("clip_global_norm")

    @jax.jit
    def run(trained, moments, count, images, labels, allowed, slot):
        grad = jax.value_and_grad(loss_of, has_aux=True)
        (loss, _), grads = grad(trained, params, meta, images / 255.0, labels, allowed, slot)
        norm = jnp.sqrt(sum((g**2).sum() for g in grads.values()))
        scale = 1.0 if limit is None else jnp.minimum(1, limit / (norm + 1e-6))
        new, updated = {}, {}
        for name, value in trained.items():
            update, new[name] = direction(optimizer, grads[name] * scale, moments[name], count)
            updated[name] = value - optimizer["learning_rate"] * update
        return updated, new, loss, norm

    trained, losses, norms = trainable(meta, params), [], []
    fresh = {name: (np.zeros_like(x), np.zeros_like(x)) for name, x in trained.items()}
    moments, count = fresh, 0
    for task, classes in enumerate(meta["tasks"]):
        trained = transfer(meta, trained, task)
        if optimizer["reinit_each_task"]:
            moments, count = fresh, 0
        for n in range(task * steps, (task + 1) * steps):
            count += 1
            batch = (images[n], labels[n], mask(meta, classes), task_slot(meta, task))
            trained, moments, loss, norm = run(trained, moments, count, *batch)
            losses.append(loss)
            norms.append(norm)
    free = task_slot(meta, 0, train=False)
    evaluate = jax.jit(
        lambda p, images: forward(p, meta, images, query_of(params, meta, images), free)
    )
    logits = evaluate({**params, **trained}, eval_images)[0]
    out = {"losses": np.stack(losses), "grad_norms": np.stack(norms), "eval_logits": logits}
    given = {"images_uint8": images, "labels": labels, "eval_images": eval_images}
    return flat(params=params, out=out, final=trained, **{"in": given})


def direction(optimizer, grad, moments, count):
    """Adam's or SGD's update before the learning rate, and the new moments."""
    first, second = moments
    if optimizer["name"] == "sgd":
        first = grad + optimizer["momentum"] * first
        nesterov = optimizer["nesterov"]
        return (grad + optimizer["momentum"] * first if nesterov else first), (first, second)
    first, second = 0.9 * first + 0.1 * grad, 0.999 * second + 0.001 * grad**2
    mean, variance = first / (1 - 0.9**count), second / (1 - 0.999**count)
    return mean / (jnp.sqrt(variance) + 1e-8), (first, second)


def transfer(meta, trained, task):
    """Start the slot of a task from that of the task before, where both are in the pool."""
    pool, now = meta["e_prompt"], task_ids(meta, task)
    if task == 0 or now[-1] >= pool["pool_size"]:
        return trained
    before, trained = task_ids(meta, task - 1), dict(trained)
    for name, wanted, axis in (
        ("prompt_pool/prompt", pool["transfer_prompts"], 2 if pool["prefix"] else 1),
        ("prompt_pool/key", pool["transfer_keys"], 0),
    ):
        if wanted:
            value = np.moveaxis(np.array(trained[name]), axis, 0)
            value[now] = value[before]
            trained[name] = np.moveaxis(value, 0, axis)
    return trained


def task_ids(meta, task):
    return np.arange(task * meta["e_prompt"]["top_k"], (task + 1) * meta["e_prompt"]["top_k"])


def flat(**groups):
    return {
        f"{group}/{name}": np.asarray(value)
        for group, values in groups.items()
        for name, value in values.items()
    }


def make_step(meta, seed=0, batch=4):
    """A step file of random data."""
    rng = np.random.default_rng(seed)
    size, classes = meta["arch"]["image"], np.arange(2, meta["num_classes"])
    images = rng.uniform(size=(batch, size, size, 3)).astype(np.float32)
    labels = rng.choice(classes, batch).astype(np.int32)
    return step(meta, make_params(meta, seed), images, labels, classes)


def make_trajectory(meta, seed=0, batch=4):
    """A trajectory file of random data."""
    rng = np.random.default_rng(seed)
    size, steps = meta["arch"]["image"], meta["steps_per_task"]
    labels = [rng.choice(classes, (steps, batch)) for classes in meta["tasks"]]
    shape = (len(meta["tasks"]) * steps, batch, size, size, 3)
    images = rng.integers(0, 256, shape, dtype=np.uint8)
    eval_images = rng.uniform(size=(batch + 1, *shape[2:])).astype(np.float32)
    labels = np.concatenate(labels).astype(np.int32)
    return trajectory(meta, make_params(meta, seed), images, labels, eval_images)


def save(path, meta, arrays):
    np.savez(path, meta=json.dumps(meta), **arrays)
    return path


def load(path):
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    return json.loads(str(arrays.pop("meta"))), arrays
