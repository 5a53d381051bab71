"""ggml's blocks of weights, which a GGUF file and the kernels share: `_kernels.repack` moves their bytes, so that
weights that were quantised elsewhere stay exactly what they were, whatever chose their scales. Knows nothing of files.

Shape letters: R rows, B blocks of a row.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from smallthinker import _kernels
from smallthinker.expert_store.format import QUANTS

U8 = npt.NDArray[np.uint8]

BLOCK_QUANTS = tuple(quant for quant in QUANTS if _kernels.formats()[quant][0] > 1)
_SCALE_BYTES = 2


def block_scales(blocks: U8) -> npt.NDArray[np.float16]:
    """[R, B]: the f16 that a block begins with."""
    return np.ascontiguousarray(blocks[:, :, :_SCALE_BYTES]).view("<f2")[:, :, 0]
