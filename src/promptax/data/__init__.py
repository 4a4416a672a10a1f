"""Data: sources, streams of tasks, loaders, augmentation on the device."""

from promptax.data.augment import prepare_eval as prepare_eval
from promptax.data.augment import prepare_train as prepare_train
from promptax.data.benchmark import BENCHMARKS as BENCHMARKS
from promptax.data.benchmark import Benchmark as Benchmark
from promptax.data.box import BOX_SETS as BOX_SETS
from promptax.data.box import box_set as box_set
from promptax.data.box import glyph_domains as glyph_domains
from promptax.data.box import split_fashion_mnist as split_fashion_mnist
from promptax.data.box import split_glyphs as split_glyphs
from promptax.data.dataset import Dataset as Dataset
from promptax.data.gaussian import gaussian_schedule as gaussian_schedule
from promptax.data.loader import TestBatches as TestBatches
from promptax.data.loader import TrainBatches as TrainBatches
from promptax.data.loader import read_ahead as read_ahead
from promptax.data.location import open_dataset as open_dataset
from promptax.data.location import prepared as prepared
from promptax.data.own import own_set as own_set
from promptax.data.sequence import dataset_sequence as dataset_sequence
from promptax.data.source import ArraySource as ArraySource
from promptax.data.source import Source as Source
from promptax.data.source import read_arrays as read_arrays
from promptax.data.stream import Split as Split
from promptax.data.stream import TaskStream as TaskStream
from promptax.data.stream import class_incremental as class_incremental
from promptax.data.stream import domain_incremental as domain_incremental
