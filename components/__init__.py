"""Parts of generative models: each is usable alone and knows nothing of training."""

PROJECT = "hybrids"
"""Says whose `components` this is: the name is not rare."""
