"""Adapters on disk: safetensors in one of the dialects of `formats`, strict to read, atomic and deterministic to write."""

from sdlora.files.container import located, read_metadata, serialised
from sdlora.files.description import describe
from sdlora.files.hashes import hashes
from sdlora.files.header import SETTINGS, header
from sdlora.files.library import Library, parse_bytes
from sdlora.files.reading import format_of, load, load_reported, read, read_reported
from sdlora.files.report import Report
from sdlora.files.writing import save

__all__ = [
    "SETTINGS",
    "Library",
    "Report",
    "describe",
    "format_of",
    "hashes",
    "header",
    "load",
    "load_reported",
    "located",
    "parse_bytes",
    "read",
    "read_metadata",
    "read_reported",
    "save",
    "serialised",
]
