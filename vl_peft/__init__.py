"""Parameter-efficient multi-task training of vision-and-language models."""

__version__ = "0.1.0"
