"""Models without trained weights: true shapes, random numbers. Knows nothing about reading them."""
