"""Parts of generative models: each is usable alone and independent of training."""

PROJECT = "hybrids"
"""The project that this package belongs to, since other packages may be called `components`."""
