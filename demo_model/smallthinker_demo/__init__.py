"""The demo model: a store of 9 MB, in `store/`, and no code. What it is: docs/demo-model.md."""
