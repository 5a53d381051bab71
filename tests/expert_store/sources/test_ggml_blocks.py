from __future__ import annotations

import numpy as np

from smallthinker.expert_store.sources.ggml_blocks import block_scales


def test_the_scales_of_blocks_are_the_f16_that_each_begins_with() -> None:
    blocks = np.full((1, 2, 18), 0x31, np.uint8)
    blocks[0, :, :2] = np.array([1.5, -0.0], "<f2").view(np.uint8).reshape(2, 2)
    assert block_scales(blocks).tolist() == [[1.5, -0.0]]
