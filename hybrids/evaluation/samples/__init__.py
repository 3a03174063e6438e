"""What samples are worth beside real examples: distances, neighbours, sharpness, and what a classifier sees."""
