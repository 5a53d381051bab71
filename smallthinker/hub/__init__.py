"""Models from a Hugging Face hub: what there is, fetched whole, converted."""
