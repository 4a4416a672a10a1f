"""How data sets are stored where they are published, one file a format."""

from promptax.data.formats.format import AbstractFormat as AbstractFormat
