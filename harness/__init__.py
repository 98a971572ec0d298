"""Supervised fine-tuning whose runs can be trusted: train, track, resume exactly, compare."""

__version__ = "0.1.0"
