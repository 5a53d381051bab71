"""What is recorded of an engine's routing, and the predictor that is learned from it."""
