"""Augmentation on the device, inside the compiled step: a file for each algorithm."""

from promptax.data.augment.erase import random_erasing as random_erasing
from promptax.data.augment.jitter import color_jitter as color_jitter
from promptax.data.augment.mix import mix as mix
from promptax.data.augment.prepare import prepare_eval as prepare_eval
from promptax.data.augment.prepare import prepare_train as prepare_train
from promptax.data.augment.prepare import random_crops as random_crops
from promptax.data.augment.randaugment import rand_augment as rand_augment
