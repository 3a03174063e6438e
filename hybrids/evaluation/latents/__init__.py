"""What a model's latents are worth: reconstructions, linear probes, paths between them."""
