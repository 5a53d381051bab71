"""What arithmetic and Python cost on one machine, for one model's shapes; seconds. Measured by `kernel_bench`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class ComputeCosts:
    """Of one layer and one token unless said otherwise.

    route_sec: from the token's state to its experts' ids; attend_sec: attention with an empty context; key_sec: of each
    position in its context; one_expert_sec, all_experts_sec: a call with one expert, which comes after a wait for the
    disk, and with the token's `experts_per_token`. hit_python_sec: between kernels of a layer that misses nothing;
    miss_python_sec: of one that does, without landed_python_sec, for each time that experts have landed; guess_sec:
    asking the next layer's router. head_sec: embedding, last norm, head and the rest, of a token or of a whole chunk.

    Of a layer and a chunk of a prompt: chunk_sec + tokens * chunk_token_sec for all but experts, and chunk_key_sec for
    each pair of a token and a position; chunk_expert_sec for each expert + chunk_pair_sec for each token that chose it.

    stored_share: of a record that is left when it is compressed; decompress_sec: of one, with all threads at it.
    memory_bytes_per_sec: reading alone; int8_ops_per_sec: arithmetic alone; the two ceilings.
    """

    threads: int
    isa: str
    experts_per_token: int
    route_sec: float
    attend_sec: float
    key_sec: float
    one_expert_sec: float
    all_experts_sec: float
    hit_python_sec: float
    miss_python_sec: float
    landed_python_sec: float
    guess_sec: float
    head_sec: float
    chunk_sec: float
    chunk_token_sec: float
    chunk_key_sec: float
    chunk_expert_sec: float
    chunk_pair_sec: float
    stored_share: float
    decompress_sec: float
    memory_bytes_per_sec: float
    int8_ops_per_sec: float

    def experts_sec(self, experts: int) -> float:
        """Of one call with so many experts: between that of one and that of all, in a straight line."""
        if self.experts_per_token == 1 or experts <= 1:
            return self.one_expert_sec
        more = (self.all_experts_sec - self.one_expert_sec) / (self.experts_per_token - 1)
        return self.one_expert_sec + (experts - 1) * max(more, 0.0)

    def chunk_attend_sec(self, tokens: int) -> float:
        return self.chunk_sec + tokens * self.chunk_token_sec

    def chunk_experts_sec(self, experts: int, pairs: int) -> float:
        return experts * self.chunk_expert_sec + pairs * self.chunk_pair_sec

    def token_sec(self, layers: int) -> float:
        """Of a token that misses nothing, with an empty context."""
        return self.head_sec + layers * (self.route_sec + self.attend_sec + self.all_experts_sec + self.hit_python_sec)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
