"""Reads a GGUF file of a known architecture, or its parts, as if it were a Hugging Face checkpoint.

Quantised weights become float32 a few rows or one expert at a time, by the
package gguf; blocks that are wanted as they are stay bytes. Knows nothing about stores.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from smallthinker import _kernels
from smallthinker.errors import CheckpointError
from smallthinker.expert_store.format import (
    BLOCK_QUANTS,
    CONFIG_FILE,
    QUANTS,
    TOKENIZER_CONFIG_FILE,
    Quant,
)
from smallthinker.expert_store.sources.gguf_header import GgufHeader, GgufTensor, read_gguf_header
from smallthinker.expert_store.sources.gguf_tokenizer.tokenizer import MADE, GgufTokenizer, TokenizerFacts
from smallthinker.expert_store.sources.placed import read_placed
from smallthinker.expert_store.sources.weight_files import WeightFiles
from smallthinker.files import open_regular
from smallthinker.models.description import Model
from smallthinker.models.gguf_keys import FACTORS, GgufFacts
from smallthinker.models.places import Place
from smallthinker.models.registry import gguf_family, gguf_model, gguf_places, is_unused_in_gguf, to_config
from smallthinker.models.tensors import DOWN

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

GGUF_SUFFIX = ".gguf"
MOST_PARTS = 1000
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")

IN_PLACE_REMEDY = "convert the file instead (smallthinker convert)"  # of what can be read, but not where it lies
_HEAD = "output.weight"
_MOST_FACTORS = 1024  # rotary pairs
_HEAD_PREDICTOR = "lm_head_profiler.weight"  # which logits PowerInfer leaves out; no part of the model


class Found(NamedTuple):
    """Where a tensor of the model is: in which of the files, in which of its tensors, and where in that."""

    file: int
    tensor: GgufTensor
    place: Place


ReadRow = Callable[[int, GgufTensor], npt.NDArray[np.uint8]]
"""Of the n-th file, all bytes of a tensor that has one row."""


class GgufModel:
    """What the headers of a model's file, or of all its parts in order, describe: configuration, tokenizer, tensors.
    read: without one, tensors that are metadata (`FACTORS`) count as ones. reshaped: the model as it is wanted, of the
    same tensors. kept: of the tokenizer, where it has been made of this very file before.

    Raises CheckpointError (a tensor is missing, unknown, or has a shape that the metadata contradict), ConfigError.
    """

    def __init__(
        self,
        headers: Sequence[GgufHeader],
        read: ReadRow | None = None,
        reshaped: Callable[[Model], Model] = lambda model: model,
        kept: TokenizerFacts | None = None,
    ) -> None:
        self.where = headers[0].where
        metadata = headers[0].metadata
        gguf_family(metadata, self.where)  # before the tokenizer of another model is
        for number, header in enumerate(headers):
            _check_part(header, number, len(headers))
        tensors: dict[str, tuple[int, GgufTensor]] = {}
        for number, header in enumerate(headers):
            for name, tensor in header.tensors.items():
                if name in tensors:
                    raise CheckpointError(
                        f"{header.where}: tensor {name[:120]!a} is in another part too; download again"
                    )
                tensors[name] = number, tensor
        self.tokenizer: GgufTokenizer | None = None
        if kept is None:
            self.tokenizer = GgufTokenizer(metadata, self.where)
            kept = self.tokenizer.facts()
        self.tokenizer_facts = kept
        facts = GgufFacts(
            vocab_size=kept.vocab_size,
            tied=_HEAD not in tensors,
            bos_token_id=kept.bos_token_id,
            eos_token_ids=kept.eos_token_ids,
            tensors=tensors,
            factors_of={name: self._factors(*tensors[name], read) for name in FACTORS if name in tensors},
        )
        config, self.notes = gguf_model(metadata, facts, self.where)
        self.config = reshaped(config)
        self.places = self._places(tensors)

    def _factors(self, file: int, tensor: GgufTensor, read: ReadRow | None) -> Sequence[float]:
        if tensor.kind.name != "F32" or len(tensor.shape) != 1 or tensor.shape[0] > _MOST_FACTORS:
            raise CheckpointError(
                f"{self.where}: tensor '{tensor.name}': expected up to {_MOST_FACTORS} numbers of type F32, found "
                f"{list(tensor.shape)} of {tensor.kind.name}; convert the model again"
            )
        found: list[float] = np.ones(tensor.shape).tolist() if read is None else read(file, tensor).view("<f4").tolist()
        return found

    def _places(self, tensors: Mapping[str, tuple[int, GgufTensor]]) -> dict[str, Found]:
        """By the model's names."""
        ignored = (name for name in tensors if is_unused_in_gguf(self.config, name))
        unknown, found = set(tensors).difference(FACTORS, [_HEAD_PREDICTOR], ignored), {}
        for name, place in gguf_places(self.config):
            if place.name not in tensors:
                raise CheckpointError(
                    f"{self.where}: expected tensor '{place.name}' {list(place.stored_shape)}, found none; make the "
                    "file again"
                )
            number, tensor = tensors[place.name]
            places = [place]
            if f".{DOWN}." in name and len(place.stored_shape) == 3:  # transposed, as PowerInfer wants it, or not
                places.append(place.turned)
            fitting = next((place for place in places if place.stored_shape == tensor.shape), None)
            if fitting is None:
                expected = " or ".join(str(list(place.stored_shape)) for place in places)
                raise CheckpointError(
                    f"{self.where}: tensor '{place.name}': expected shape {expected} (metadata), found "
                    f"{list(tensor.shape)}; convert the model again"
                )
            if not _can_dequantize(tensor.kind):
                raise CheckpointError(
                    f"{self.where}: tensor '{place.name}': expected a type that the package gguf can read (F32, F16, "
                    f"BF16, Q8_0, Q4_0, ...), found {tensor.kind.name}; choose another file of the model"
                )
            unknown.discard(place.name)
            found[name] = Found(number, tensor, fitting)
        if unknown:
            raise CheckpointError(f"{self.where}: unknown tensor {min(unknown)[:120]!a}; this is another model")
        return found


class GgufCheckpoint:
    """An opened and checked GGUF file, or the parts of one of which `path` is the first. Keeps what `WeightSource`
    promises. model: what the headers describe; headers: each
    file's. files: the parts and their sizes; files_bytes: of all. reshaped: see
    `GgufModel`. kept: what is known of the tokenizer of a file with that `digest`. Raises CheckpointError,
    ConfigError."""

    def __init__(
        self,
        path: str | Path,
        reshaped: Callable[[Model], Model] = lambda model: model,
        kept: tuple[str, TokenizerFacts] | None = None,
    ) -> None:
        self.path = Path(path)
        self._paths = [self.path.with_name(name) for name in part_names(self.path.name)]
        self._digest = sha256()
        self.headers = headers = [self._header(part) for part in self._paths]
        self.files = tuple(zip(self._paths, (header.file_bytes for header in headers), strict=True))
        self.files_bytes = sum(header.file_bytes for header in headers)
        self._files = WeightFiles(self._paths)
        try:
            facts = kept[1] if kept is not None and kept[0] == self.digest else None
            self.model = GgufModel(headers, self._row, reshaped, facts)
        except BaseException:
            self._files.close()
            raise
        self.config, self.notes = self.model.config, self.model.notes

    @property
    def digest(self) -> str:
        """Of all that is in the headers, and of what is made of it here."""
        return f"{MADE} {self._digest.hexdigest()}"

    def forget_tokenizer(self) -> None:
        """Let go of its lists of words; `small_files` hasn't got its file afterwards."""
        self.model.tokenizer = None

    def read(self, name: str, start: int = 0, stop: int | None = None) -> npt.NDArray[np.float32]:
        """Rows start..stop of a tensor as float32, [rows, cols] or [size]: what the blocks mean. Raises CheckpointError
        when the file can't be read."""
        from gguf import GGML_QUANT_SIZES, dequantize

        found = self.model.places[name]
        block = GGML_QUANT_SIZES[found.tensor.kind][0]

        def read(rows: range, cols: range) -> npt.NDArray[np.float32]:
            blocks = range(cols.start // block, -(-cols.stop // block))  # whole ones, of which we may want a part
            raw = self._blocks(found, rows, blocks)
            with np.errstate(all="ignore"):  # a scale may be NaN or infinite; who reads the weights looks
                weights: npt.NDArray[np.float32] = dequantize(raw.reshape(len(rows), -1), found.tensor.kind)
            skipped = blocks.start * block
            return weights[:, cols.start - skipped : cols.stop - skipped]

        return read_placed(found.place, read, start, stop)

    def blocks(
        self, name: str, quant: Quant, start: int = 0, stop: int | None = None, *, transposed: bool = False
    ) -> npt.NDArray[np.uint8] | None:
        """uint8 [rows, blocks, block bytes] if the file has blocks of this kind along a matrix's rows, else None."""
        found = self.model.places[name]
        place = found.place
        if quant not in BLOCK_QUANTS or self.own_format(name) != quant or place.transposed != transposed:
            return None
        if len(place.shape) < 2:
            return None
        block = _kernels.formats()[quant][0]
        if transposed:  # rows of the file's matrix
            place = replace(place, transposed=False, shape=place.shape[::-1])

        def read(rows: range, cols: range) -> npt.NDArray[np.uint8]:
            return self._blocks(found, rows, range(cols.start // block, cols.stop // block))

        return read_placed(place, read, start, stop)

    def own_format(self, name: str) -> Quant | None:
        """The format that the tensor has in the file and could keep, else None."""
        tensor, place = self.model.places[name].tensor, self.model.places[name].place
        quant = next((quant for quant in QUANTS if quant.upper() == tensor.kind.name), None)
        if quant not in BLOCK_QUANTS:
            return quant
        block = _kernels.formats()[quant][0]
        is_whole = place.cols.step == 1 and place.cols.start % block == 0 and len(place.cols) % block == 0
        is_lost = place.added or place.is_zero or (place.transposed and not _kernels.has_rows(quant))
        return quant if is_whole and not is_lost else None

    def small_files(self) -> dict[str, bytes]:
        """config.json and the tokenizer's files, made from the metadata; without its words where they were kept."""
        config = json.dumps(to_config(self.config), indent=1).encode("ascii")
        model = self.model
        if model.tokenizer is not None:
            return {CONFIG_FILE: config} | model.tokenizer.files()
        return {CONFIG_FILE: config, TOKENIZER_CONFIG_FILE: model.tokenizer_facts.settings.encode("ascii")}

    def crc32(self, file: int, offset: int, nbytes: int, *, again: bool = False) -> int:
        """Of bytes of the n-th file; again: as the disk has them, whatever the page cache says. Raises
        CheckpointError."""
        return self._files.crc32(self._paths[file], offset, nbytes, again=again)

    def drop_cached(self) -> None:
        """Take all of the file out of the page cache."""
        self._files.drop_cached()

    def close(self) -> None:
        self._files.close()

    def _header(self, path: Path) -> GgufHeader:
        try:
            with open_regular(path) as file:
                stream = cast(BinaryIO, _Digested(file, self._digest))
                return read_gguf_header(stream, str(path), os.fstat(file.fileno()).st_size)
        except OSError as e:
            remedy = "give a .gguf file" if len(self._paths) == 1 else "a model's parts belong side by side"
            raise CheckpointError(f"{path}: cannot read: {e.strerror or e}; {remedy}") from e

    def _row(self, file: int, tensor: GgufTensor) -> npt.NDArray[np.uint8]:
        return self._files.read(self._paths[file], tensor.start, tensor.nbytes)

    def _blocks(self, found: Found, rows: range, blocks: range) -> npt.NDArray[np.uint8]:
        """Blocks of rows of the file's tensor, seen as one matrix: uint8 [rows, blocks, block bytes]."""
        from gguf import GGML_QUANT_SIZES

        size, nbytes = GGML_QUANT_SIZES[found.tensor.kind]
        row_bytes = found.tensor.shape[-1] // size * nbytes
        raw = self._files.read_rows(
            self._paths[found.file],
            found.tensor.start + rows.start * row_bytes,
            len(rows),
            row_bytes,
            blocks.start * nbytes,
            blocks.stop * nbytes,
        )
        return raw.reshape(len(rows), len(blocks), nbytes)


class _Digested:
    """A stream, and a digest of all that is read of it."""

    def __init__(self, stream: BinaryIO, digest: Any) -> None:
        self._stream, self._digest = stream, digest

    def read(self, nbytes: int) -> bytes:
        data = self._stream.read(nbytes)
        self._digest.update(data)
        return data


def part_names(name: str) -> list[str]:
    """All parts of the model whose first part, or only file, this is. Raises CheckpointError for a later part."""
    part = _PART.fullmatch(name)
    if part is None:
        return [name]
    count = int(part["count"])
    if int(part["number"]) != 1 or not 1 <= count <= MOST_PARTS:
        raise CheckpointError(
            f"{name}: expected the first of 1 to {MOST_PARTS} parts of a model, found part {int(part['number'])} of "
            f"{count}; give {part['stem']}-00001-of-{part['count']}.gguf"
        )
    return [f"{part['stem']}-{number:05}-of-{part['count']}.gguf" for number in range(1, count + 1)]


def _check_part(header: GgufHeader, number: int, count: int) -> None:
    found = header.metadata.get("split.no", 0), header.metadata.get("split.count", 0) or 1
    if found != (number, count):
        raise CheckpointError(
            f"{header.where}: expected split.no {number} and split.count {count}, found {found[0]!r} and {found[1]!r}; "
            "give a model's parts the names that they were made with"
        )


@cache
def _can_dequantize(kind: GGMLQuantizationType) -> bool:
    from gguf import GGML_QUANT_SIZES, dequantize

    try:
        dequantize(np.zeros(GGML_QUANT_SIZES[kind][1], np.uint8), kind)
    except NotImplementedError:
        return False
    return True
