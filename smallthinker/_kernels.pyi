"""The engine's arithmetic, in C++ (kernels/).

Arrays are C-contiguous numpy arrays of exactly the type given; results go into arrays that the caller brings. Every
argument is checked before memory is touched: ValueError says what was expected and what was found. Compute functions
release the GIL.

A token's result is the same bits whatever the other tokens of the call, the number of threads and their timing. It may
differ between instruction sets in functions that take a pool; the others have one text for all of them.

`rmsnorm`, `rope`, `route`, `combine` and `add` are parts of Forward and AttentionLayer; by these entries their tests
reach them.

Shape letters: T tokens, E experts, H query heads, K key-value heads, D head size, k experts per token, d hidden size.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from smallthinker._cache import Books
from smallthinker.forward import LayerArithmetic

Quant = Literal[
    "f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl", "mxfp4", "iq4_xs", "q2_k", "q3_k", "q4_k",
    "q5_k", "q6_k",
]  # fmt: skip
FfnQuants = tuple[Quant, Quant, Quant]  # of gate, up and down
KvQuant = Literal["f16", "q8_0"]
Layout = Literal["tiles", "rows"]
Pairing = Literal["half", "interleaved"]
Gating = Literal["softmax", "sigmoid"]
Activation = Literal["relu", "silu", "gelu", "gelu_tanh", "relu2", "clamped_swiglu"]
F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

BLOCK: int
"""Columns of an input that share one scale, where it is rounded to int8."""
TILE_ROWS: int
"""Rows of a group of the tiles layout; matrices are padded to a multiple of it."""

KV_GROUP: int
"""Positions that lie together in the KV cache; its capacity is a multiple of it."""

KV_SPLIT: int
"""Positions of one split of attention: sums begin anew at its multiples, and threads share a query by splits."""

COMPILER: str
"""What compiled this module, with its version."""

def isa() -> str:
    """The instruction set of pools that name none: the best of this CPU, or that of SMALLTHINKER_ISA.

    The variable is read once, at import. A name that is unknown or that this CPU can't run makes the import fail.
    """

def available_isas() -> list[str]:
    """Of portable, avx2, avx2vnni, avx512 and neon those that this CPU can run, best last."""

def built_isas() -> list[str]:
    """The instruction sets that this build has, best last; this CPU may lack some."""

def timings() -> dict[str, tuple[int, float]]:
    """As `ThreadPool.timings`, of the kernels that take no pool, over the whole process since it started."""

class ThreadPool:
    """Threads that wait for kernel calls, and the scratch memory of those calls.

    `threads` from 1 to 256 counts the calling thread, so 1 starts none. Idle threads sleep. Python threads may share a
    pool: their calls take turns. Scratch grows to the largest call made and is kept.
    """

    def __init__(self, threads: int, isa: str | None = None) -> None: ...
    @property
    def threads(self) -> int: ...
    @property
    def isa(self) -> str: ...
    @property
    def scratch_bytes(self) -> int:
        """Bytes of scratch memory held now."""

    def release_scratch(self) -> None:
        """Free the scratch memory; the next kernel takes what it needs."""

    def timings(self) -> dict[str, tuple[int, float]]:
        """Kernel -> calls and seconds since the pool was made. Seconds are wall time with the GIL released; waiting for
        another thread's call on the same pool is in them. Threads of the pool are not added up."""

class KvLayer:
    """One sequence's KV cache of one layer, as in `kv_append`, checked once and kept alive."""

    overflow: float
    """The largest finite key or value so far that is infinite in the cache, beyond its format's range; 0.0 for none."""

    def __init__(self, quant: KvQuant, keys: U8, values: U8, head_dim: int) -> None: ...

class Norm:
    """Of `size` numbers x: x / sqrt(mean(x^2) + eps) or, "layer", the same of x - mean(x); times weight [size], plus
    bias [size], where there are any. Checked once and kept alive."""

    def __init__(
        self,
        size: int,
        eps: float,
        weight: F32 | None = None,
        bias: F32 | None = None,
        kind: Literal["rms", "layer"] = "rms",
    ) -> None: ...

class Residual:
    """How what a part of a layer gives, y, changes the state: x becomes (x + scale * norm(y)) * output_scale."""

    def __init__(self, norm: Norm | None = None, scale: float = 1.0, output_scale: float = 1.0) -> None: ...

class AttentionLayer:
    """The attention half of one layer: its weights, checked once and kept alive.

    q [H * D, d], k and v [K * D, d], o [d, H * D] in the tiles layout, each in its own of `quants`, and with its own of
    `biases`, if it has any. norms: of q, k and v, of each head or of the whole product. v None: the values are what k
    gives, before its norm; k None, too: they are in the caches. clip: q, k and v are kept within +-clip before they are
    rotated; 0 is none. rope: the column of cos and sin where its pairs begin, how many numbers of a head are rotated,
    and what is paired. growth: queries are multiplied by 1 + beta ln(1 + floor((position + offset) / every)), (beta,
    every, offset).

    window, scale, softcap, sinks, chunk: see `attention`. residual: of o's product; None adds it as it is. parallel:
    the experts take what q, k and v take. Norms before them are None where there is none.
    """

    def __init__(
        self,
        pool: ThreadPool,
        quants: tuple[Quant, Quant, Quant, Quant],
        input_norm: Norm | None,
        q: U8,
        k: U8 | None,
        v: U8 | None,
        o: U8,
        post_norm: Norm | None,
        hidden: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        window: int = 0,
        rope: tuple[int, int, Pairing] | None = None,
        scale: float | None = None,
        biases: tuple[F32 | None, F32 | None, F32 | None, F32 | None] = ...,
        norms: tuple[Norm | None, Norm | None, Norm | None] = ...,
        clip: float = 0.0,
        softcap: float = 0.0,
        sinks: F32 | None = None,
        chunk: int = 0,
        growth: tuple[float, int, int] | None = None,
        residual: Residual | None = None,
        parallel: bool = False,
    ) -> None: ...
    def forward(
        self, x: F32, caches: list[KvLayer], starts: list[int], counts: list[int], cos: F32, sin: F32, normed: F32
    ) -> None:
        """x [T, d] += o(attention(q, k, v of input_norm(x))), for T tokens: counts[i] of the sequence that caches[i]
        belongs to, from its position starts[i] on, one sequence after the other.

        Appends them to the caches. normed [T, d] becomes post_norm(x), which the experts take. cos, sin [T, P] are
        those of `rope_angles`.
        """

def formats() -> dict[Quant, tuple[int, int]]:
    """The weight formats: columns of a block, 1 for those without, and bytes of a row's block."""

def can_pack(quant: Quant) -> bool:
    """Whether `pack` makes it of numbers; other formats come from files."""

def has_rows(quant: Quant) -> bool:
    """Whether it has the layout rows; all have tiles."""

def packed_bytes(quant: Quant, layout: Layout, rows: int, cols: int) -> int:
    """Bytes of a packed matrix. `cols` is a multiple of the format's block."""

def activations() -> list[Activation]:
    """Those that a feed-forward network may have; "gelu" is the exact one, by erf, "relu2" the square of "relu".
    "clamped_swiglu" takes gate and up, (u + 1) * g * sigmoid(alpha * g), with u within +-limit and g at most limit."""

class Section:
    """A packed matrix in a record. is_transposed: its rows are the columns of the model's matrix."""

    @property
    def layout(self) -> Layout: ...
    @property
    def is_transposed(self) -> bool: ...
    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def nbytes(self) -> int: ...

def record_sections(
    quants: FfnQuants,
    hidden: int,
    ffn: int,
    activation: Activation,
    gated: bool,
    biased: bool = False,
    whole: bool = False,
) -> list[Section]:
    """An expert's record: gate, if gated, up and down, each on a multiple of 64; it ends where the last one does.
    biased: then the biases of the same, rows of f32.

    Behind a relu gate, without biases, where up and down have rows: gate in tiles [ffn, hidden], up and the transposed
    down in rows [ffn, hidden], so that dead neurons can be skipped; not so where the `whole` network is to be computed.
    Else all in tiles: gate and up [ffn, hidden], down [hidden, ffn]. Both sizes are multiples of 32 and of the formats'
    blocks. Without a gate its format is ignored, as
    wherever FfnQuants are asked for.
    """

def pack(quant: Quant, layout: Layout, w: F32) -> U8:
    """Packs w [rows, cols] into bytes [packed_bytes], in a format that `can_pack`. Rounds as ggml does.

    A block of 32 with a NaN or an infinity becomes all NaN. Scales beyond f16 become infinite.
    """

def piece_stage(shapes: Sequence[tuple[Quant, Layout, int, int, int, int]]) -> object:
    """A stage for `_storage.ReadQueue`: pieces of these shapes, rows of ggml's blocks as a file has them, go into their
    place of a slot as `repack` lays them out. Of each: format, layout, rows, cols, bytes from one row's beginning to
    the next one's, and where it goes. A piece has the bytes up to its last row's end."""

def repack(quant: Quant, layout: Layout, blocks: U8, finite: bool = False) -> U8:
    """Rows of ggml's blocks [rows, row bytes], as a file has them, as bytes [packed_bytes] that mean the same: bytes
    move, no weight is computed. Padding rows of tiles are zero bytes. finite: raises ValueError where a scale, a min or
    an element is NaN or infinite."""

def unpack(quant: Quant, layout: Layout, data: U8, rows: int, cols: int) -> F32:
    """The matrix [rows, cols] that packed bytes mean, exactly."""

def embed(quant: Quant, data: U8, rows: int, cols: int, ids: I32, out: F32) -> None:
    """out [T, cols] = rows `ids` [T] of a matrix in the tiles layout."""

def rmsnorm(x: F32, weight: F32, eps: float, out: F32) -> None:
    """out [T, d] = x / sqrt(mean(x^2) + eps) * weight [d]. `out` may be `x`."""

def norm(how: Norm, x: F32, out: F32) -> None:
    """out [T, d] = how(x). `out` may be `x`."""

def linear(pool: ThreadPool, quant: Quant, data: U8, rows: int, cols: int, x: F32, out: F32) -> None:
    """out [T, rows] = x [T, cols] @ W.T, W in the tiles layout.

    With formats of blocks, x is rounded to int8 with one scale per 32 columns; a block with a NaN or an infinity makes
    the token's results NaN. With the others, x and the sums are f32.
    """

def linear_groups(
    pool: ThreadPool, quant: Quant, data: U8, rows: int, cols: int, groups: I32, x: F32, out: F32
) -> None:
    """As `linear`, the same bits, but only rows 16 g to 16 g + 15 for every g in `groups` [n], ascending.

    The other columns of out [T, rows] stay.
    """

def finish_logits(pool: ThreadPool, logits: F32, bias: F32 | None, scale: float, softcap: float) -> None:
    """logits [T, V] become (logits + bias [V]) * scale and then, unless softcap is 0, softcap * tanh(. / softcap)."""

def rope_angles(positions: I64, frequencies: F64, factors: F64, cos: F32, sin: F32) -> None:
    """cos, sin [T, P] of positions [T] * frequencies [P], times factors [P], computed in double precision."""

def rope(x: F32, cos: F32, sin: F32, pairing: Pairing = "half") -> None:
    """Rotates the first 2P numbers of each head of x [T, H, D] in place; cos, sin [T, P]. Element i is paired with
    i + P ("NeoX") or, interleaved, 2i with 2i + 1."""

def route(
    logits: F32,
    k: int,
    gating: Gating,
    ids: I32,
    weights: F32,
    over_all: bool = False,
    normalise: bool = True,
    bias: F32 = ...,
    bias_chooses: bool = False,
    groups: int = 1,
    kept_groups: int = 1,
    scale: float = 1.0,
    expert_scale: F32 = ...,
) -> None:
    """The k largest of logits [T, E] into ids [T, k], descending, ties to the lower index; NaN is below everything.

    weights [T, k] are the softmax over those k logits, or their sigmoids divided by the sum of them. With `over_all`
    and not `normalise` the softmax over all E; sigmoids that aren't normalised stay as they are. bias [E] is part of
    the logits or, if `bias_chooses`, added to the softmax or sigmoids of all, by which is then chosen. Of `groups`
    equal parts of the experts only the kept_groups are chosen from whose best two have the largest sums. Weights are
    multiplied by `scale` and the expert's own of expert_scale [E]. Empty arrays are none.
    """

def kv_append(pool: ThreadPool, quant: KvQuant, k: F32, v: F32, keys: U8, values: U8, start: int) -> None:
    """Writes k, v [T, K, D] into the KV cache of a layer; position p = start + t goes to p % capacity.

    keys and values are [K, capacity / 16, bytes of 16 positions]: KV_GROUP positions lie together, in an order that is
    the kernels' affair, and take `packed_bytes(quant, "tiles", KV_GROUP, D)`. q8_0 keeps int8 with one f16 scale per 32
    of D, which must be a multiple of 32: rounded as ggml does (amax / 127, to nearest even), a block with a NaN or an
    infinity becomes all NaN.
    """

def attention(
    pool: ThreadPool,
    quant: KvQuant,
    q: F32,
    keys: U8,
    values: U8,
    start: int,
    window: int,
    out: F32,
    scale: float | None = None,
    softcap: float = 0.0,
    sinks: F32 | None = None,
    chunk: int = 0,
) -> None:
    """out [T, H, D] = softmax(q k * scale) v over the KV cache of a layer, causal, T queries from position `start`;
    scale None is D ** -0.5.

    softcap: scores become softcap * tanh(score / softcap); 0 is none. sinks [H]: one more score of each head, whose
    value is zero. chunk: a query sees only its own of so many positions; 0 is none.

    A query at position s sees keys p <= s, with a window (0: none) those p > s - window. H is a multiple of K. Over
    q8_0, q is rounded to int8 too, one scale per 32 of D; sums are f32. Raises ValueError where the capacity can't hold
    all keys that the call's queries see.
    """

def experts(
    pool: ThreadPool,
    quants: FfnQuants,
    hidden: int,
    ffn: int,
    activation: Activation,
    gated: bool,
    x: F32,
    slots: U8,
    slot_ids: I32,
    offsets: I32,
    pairs: I32,
    k: int,
    out: F32,
    biased: bool = False,
    limit: float = 0.0,
    alpha: float = 0.0,
) -> int:
    """out[pair] = down(activation(gate(x)) * up(x)) or, not gated, down(activation(up(x))), for each expert i and each
    pair in pairs[offsets[i]:offsets[i + 1]].

    x [T, hidden]; slots [n_slots, record_bytes], each row an expert's record; slot_ids [n]; offsets [n + 1]; pairs [m],
    each at most once; out [T * k, hidden]. A pair is token * k + place among that token's experts; rows of `out`
    without a pair stay. Behind a relu gate neurons whose gate is zero or less are skipped; a NaN gate is not. Elsewhere
    none is. Returns how many were computed, over all pairs.

    biased: the bias of its record is added to each product. limit and alpha: of clamped_swiglu.

    x is rounded to int8 as in `linear`. Neurons are rounded as down's formats of blocks have it: all of a token at once
    as in `linear`, or behind a relu gate with factors of 64 of them.
    """

class Scoring:
    """How a layer's router chooses, see `route`; checked once and kept alive."""

    def __init__(
        self,
        experts: int,
        k: int,
        gating: Gating,
        over_all: bool = False,
        normalise: bool = True,
        bias: F32 = ...,
        bias_chooses: bool = False,
        groups: int = 1,
        kept_groups: int = 1,
        scale: float = 1.0,
        expert_scale: F32 = ...,
        logit_scale: float = 1.0,
    ) -> None: ...

class SharedFfn:
    """A network that every token uses beside its experts; checked once and kept alive.

    gate, up [width, hidden], down [hidden, width] and output_gate [1, hidden] in tiles, each in its own of `quants`. It
    gives down(activation(gate x) * up x), without a gate down(activation(up x)), times sigmoid(output_gate x) if there
    is one. around: of one that reads the state itself, norms of what it reads, of what it gives and of what the experts
    give.
    """

    def __init__(
        self,
        quants: tuple[Quant, Quant, Quant, Quant],
        hidden: int,
        width: int,
        activation: Activation,
        gate: U8 | None,
        up: U8,
        down: U8,
        output_gate: U8 | None,
        around: tuple[Norm | None, Norm | None, Norm | None] | None = None,
    ) -> None: ...

class Ffn:
    """The experts of one layer and its router [E, d], f32 in the tiles layout: checked once and kept alive. quants to
    gated, biased and whole: of a record, see `record_sections`; clamp: limit and alpha of clamped_swiglu.

    reads_mixed: the router reads what the experts read, the norm after attention, or with reads_state that state as it
    is; else the state before attention. router_norm: of what it reads. scoring and
    router None: a dense network in k = `experts` slices. Every token uses all, in order, with weight 1. shared: what it
    gives is added to what the experts give. weighs_input: a weight multiplies what its expert reads, not what it gives.
    residual: of their sum; None adds it as it is.
    """

    def __init__(
        self,
        quants: FfnQuants,
        hidden: int,
        ffn: int,
        activation: Activation,
        gated: bool,
        experts: int,
        k: int,
        scoring: Scoring | None,
        router: U8 | None,
        reads_mixed: bool = False,
        shared: SharedFfn | None = None,
        biased: bool = False,
        clamp: tuple[float, float] = (0.0, 0.0),
        weighs_input: bool = False,
        residual: Residual | None = None,
        whole: bool = False,
        router_norm: Norm | None = None,
        reads_state: bool = False,
    ) -> None: ...

class InputGate:
    """What a layer makes of `width` numbers that it is given of each token: x [T, d] and
    proj [d, width] @ (activation(gate [width, d] @ x) * the numbers), as `residual` has it. quants: of gate, proj."""

    def __init__(
        self,
        quants: tuple[Quant, Quant],
        hidden: int,
        width: int,
        activation: str,
        gate: U8,
        proj: U8,
        residual: Residual,
    ) -> None: ...

class Step:
    """One step's arithmetic, for `Layers`."""

class Forward:
    """The layers of a model, each an AttentionLayer and an Ffn, which may differ in width, E and k; slots
    [n, record_bytes] hold experts' records. input_gates: what each layer ends with, of one width; empty: none.

    predictors: by the layer whose state is taken and the layer guessed for, a matrix [E, d] as q8_0 in the tiles layout
    and an offset [E]: what they make of a state of mean square 1 takes the place of the router's product. It is the
    state after that layer's attention, or before it where both are the same layer. Layer -1 is the final state of the
    token before.

    `Layers` runs a step's layers, of what `step` gives; `run` to `combine` do the same a call at a time, on any arrays.
    """

    DONE: int
    ROUTED: int
    GUESSED: int
    GUESSED_BEFORE: int

    def __init__(
        self,
        pool: ThreadPool,
        mixers: list[AttentionLayer],
        ffns: list[Ffn],
        slots: U8,
        predictors: Mapping[tuple[int, int], tuple[U8, F32]] = ...,
        input_gates: Sequence[InputGate | None] = ...,
    ) -> None: ...
    def run(
        self,
        first: int,
        last: int,
        x: F32,
        normed: F32,
        ids: I32,
        weights: F32,
        slot_of: I32,
        ahead: I32,
        caches: list[list[KvLayer]],
        starts: list[int],
        counts: list[int],
        cos: F32,
        sin: F32,
        inputs: F32 = ...,
    ) -> tuple[
        int,
        int,
        int,
        list[tuple[list[int], list[int], list[int]]],
        tuple[list[int], list[list[int]]],
        tuple[list[int], list[int]],
    ]:
        """x [T, d] through the layers from `first` on, in place, as long as they find their experts in slots; layer
        `last` is routed and no more.

        Returns the layer where it ended and why (DONE; ROUTED: an expert isn't in a slot, or it was `last`: attention
        has been added only if the router reads what comes of it, and nothing else of the layer is computed; GUESSED:
        its attention has been added, and what is guessed of another layer isn't all in slots; GUESSED_BEFORE: what is
        guessed before its attention isn't, and nothing of the layer is computed, not even a route); how many neurons
        were computed; for every layer that found its experts, the last one if GUESSED among them, (experts, tokens of
        each); the layer's route, (experts, pairs of each: token * k + rank), one token's experts best first, several
        tokens' ascending; and the guess, (experts, best rank that a token gives each).

        slot_of [E of all layers, or more]: where each expert is, -1 where it isn't. ahead [2, L]: the layer whose
        experts are guessed before this one's attention, if its router reads what comes of that, and the layer whose are
        once it has been added; -1 for none. caches: of each sequence, by layer, for counts[i] tokens from position
        starts[i] on. ids, weights [T, largest k] get the last route, from their start on as [T, its layer's k]; normed
        [T, d] the last norm; cos, sin [T, P]. inputs [T, L * width]: what layers with input gates are given.
        """

    def step(
        self,
        x: F32,
        normed: F32,
        ids: I32,
        weights: F32,
        slot_of: I32,
        caches: list[list[KvLayer]],
        starts: list[int],
        counts: list[int],
        cos: F32,
        sin: F32,
        inputs: F32 = ...,
    ) -> Step:
        """A step's arithmetic. Arguments are those of `run`, and live as long."""

    @property
    def live_neurons(self) -> int:
        """Computed so far by what `step` gave."""

    def guess(self, source: int, x: F32, targets: Sequence[int]) -> list[tuple[list[int], list[int]]]:
        """What each layer in `targets` would choose for x [T, d]: as its predictor for layer `source` says or, without
        one, as its own router does of the same x, or of its norm if it reads the norm. From -1 there must be one.
        Distinct experts, best rank first, and these ranks; of a layer without a router all slices, ranks 0."""

    def compute(
        self, layer: int, normed: F32, pairs: list[list[int]], slots: list[int], weights: F32 | None = None
    ) -> int:
        """What some of the layer's experts give the tokens that chose them, normed [T, d], kept until `combine`:
        pairs[i] are those of the expert in slots[i]. weights [T, k of the layer]: of the route, where they multiply
        what experts read. Returns how many neurons were computed."""

    def share(self, layer: int, normed: F32, x: F32 | None = None) -> None:
        """What the layer's shared network, if it has one, gives normed [T, d], or x [T, d] if it reads states, kept
        until `combine`."""

    def combine(self, layer: int, x: F32, weights: F32, inputs: F32 = ...) -> None:
        """x [T, d] += the sum over rank j of weights[t, j] times what was computed last for pair t * k + j, and then
        what was shared last, and what the layer makes of its inputs, the same bits as `run`; weights [T, k of the
        layer]. Raises ValueError for more tokens
        than any call before computed."""

    def be_lossy(self, tokens: int, experts: int, prefer: float, skip: float) -> None:
        """Steps of less than `tokens` tokens route as `lossy_routing.LossyRouting` says; experts 0: all."""

    def lossy_counts(self) -> tuple[int, int, int]:
        """As `lossy_routing.RoutingCounters`."""

    def release(self) -> None:
        """Free what contributions took; the next step takes what it needs."""

class Watcher(Protocol):
    """What it is shown lies in the step's own arrays. is_mixed: the layer's attention has been added by then."""

    def entered(self, layer: int) -> None: ...
    def routed(self, layer: int, is_mixed: bool, experts: list[int], pairs: list[list[int]]) -> None: ...
    def attended(self, layer: int) -> None: ...

class GuessRecord:
    """See kernels/layers/guess_record.h; `LookAhead.record`. A source of -1 is the final state."""

    def __init__(self, layers: int, k: int, certain: Set[int], *, hope: float, keep: float, worth: float) -> None: ...
    def begin_token(self) -> None: ...
    def likelihoods(self, source: int, target: int) -> list[float]: ...
    def precision(self, target: int, own: bool) -> list[float]: ...
    def may_be_right(self, target: int, own: bool) -> bool: ...
    def predict(self, source: int, target: int, experts: Sequence[int], ranks: Sequence[int]) -> None:
        """These had to be read."""

    def score(self, layer: int, experts: Sequence[int]) -> None:
        """The exact ones."""

class Layers:
    guess_sec: float
    """What guesses have taken so far, by the system's clock."""

    def __init__(
        self,
        books: Books,
        layers: int,
        slots: int,
        *,
        own: Set[int],
        asks_early: bool,
        many_tokens: int,
        max_under_way: int,
    ) -> None:
        """own: layers whose routers read what attention gives; asks_early: of the other layers, for experts before
        attention; many_tokens: of a step, from which most of what its layers' routers name is wanted; max_under_way:
        guessed records of one token."""

    def run(
        self,
        arithmetic: Step | LayerArithmetic,
        tokens: int,
        guesses: GuessRecord | None,
        ahead: npt.NDArray[np.int32],
        *,
        held: bool,
        cancelled: Callable[[], bool] | None,
        on_layer: Callable[[int], None] | None,
        watcher: Watcher | None,
    ) -> tuple[list[tuple[int, list[tuple[int, int]]]], list[tuple[int, float, int]]]:
        """All layers of a step. arithmetic: of `StepArithmetic.layers_of`; ahead: as `LookAhead.ahead`. Returns
        what a step that is held has used: layers, and of each (token * k + rank, expert); and, where there are guesses,
        for `Trial.layer` what layers waited: each one's number, seconds, records that weren't kept. Raises
        CancelledError, StoreReadError, ForkedError, and
        whatever those raise that it asks."""

    def guess(self, arithmetic: Step | LayerArithmetic, guesses: GuessRecord, source: int, target: int) -> None:
        """Have what layer `target` will likely want read in the disk's idle time; the states of the step are those
        within layer `source`, or FINAL ones."""

def combine(pool: ThreadPool, x: F32, contributions: F32, weights: F32) -> None:
    """x[t] += weights[t, j] * contributions[t * k + j], j ascending.

    x [T, d], contributions [T * k, d], weights [T, k].
    """

def add(x: F32, y: F32) -> None:
    """x += y, both [T, d]."""

def sample(pool: ThreadPool, logits: F32, temperature: float, top_k: int, top_p: float, min_p: float, u: float) -> int:
    """The token that u in [0, 1) draws from logits [V], 1 to 2**20; the same on every instruction set and CPU.

    In order of logits, the largest first, ties by lower id, the first top_k tokens have weights round(2**42 * 2**y),
    y = (logit - largest) / (temperature * log 2) to the nearest 2**-32; none below 2**-43 of the largest. What is kept
    is the shortest beginning of them that has top_p of all their weight, and of that what weighs at least min_p of the
    first. Drawn is the first token that brings the running sum above u times what is kept. Logits of +inf share all
    weight. -1 when a logit is NaN or all are -inf.
    """

def top_ids(pool: ThreadPool, logits: F32, ids: I32) -> None:
    """ids [k] = those of the largest of logits [V], the largest first, ties by lower id; NaN is below everything."""

def log_sum_exp(pool: ThreadPool, logits: F32) -> float:
    """log(sum(exp(logits - max(logits)))) of logits [V] without NaN, with the weights of `sample`."""

def penalize(logits: F32, recent: I32, penalty: float) -> None:
    """Of logits [V], those of the tokens `recent` [n], once each: positive ones / penalty, negative ones * penalty.

    Finite ones stay finite.
    """

def read_memory(pool: ThreadPool, data: U8) -> int:
    """Reads every byte of data [n] and returns some mix of them: what reading costs when nothing else is done."""

def multiply_add(pool: ThreadPool, multiplications: int, int8: bool = False) -> int:
    """About as many multiplications, and additions, in f32 or of int8 into int32, without memory; returns how many.

    What arithmetic can give: a ceiling for the other kernels.
    """
