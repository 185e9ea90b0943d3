"""How many vectors of a catalogue a CPU second makes, by each form that `embed` takes.

all-MiniLM-L6-v2, from a package, encodes what icons and products of a made-up catalogue are called,
in turns with `float32`, which is sentence-transformers' `encode`. `ratio`: the median over the
turns of texts a CPU second by that form over those by `float32` just before; `cosine`: the mean and
the least to the vectors of `float32`. All on one thread."""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.iteration import packaged_model
from benchmarks.serve import make_texts
from embedding_studio.serving.batching import Vectors
from embedding_studio.serving.embed import EmbedFormat, encoder_of, write_form
from embedding_studio.serving.export import Encode

console = Console(width=120, soft_wrap=True)


def timed(encode: Encode, texts: list[str]) -> tuple[Vectors, float]:
    """Return vectors, and texts a CPU second of this process."""
    began = time.process_time()
    vectors = encode("document", texts)
    return vectors, len(texts) / (time.process_time() - began)


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    options.add_argument("--texts", type=int, default=512)
    options.add_argument("--turns", type=int, default=5)
    args = options.parse_args()
    texts = make_texts(0, args.texts)
    table = Table("format", "texts a CPU second", "ratio", "mean cosine", "least")
    summary = {}
    with tempfile.TemporaryDirectory(prefix="embed-") as name:
        models = Path(name)
        (models / "model").symlink_to(packaged_model())
        plain = encoder_of(models, EmbedFormat.FLOAT32)
        for form in EmbedFormat:
            write_form(models, form, "model")
            encode = encoder_of(models, form)
            encode("document", texts[:64])
            rates, ratios = [], []
            for _ in range(args.turns):
                exact, base = timed(plain, texts)
                found, rate = timed(encode, texts)
                rates.append(rate)
                ratios.append(rate / base)
            lengths = np.linalg.norm(exact, axis=1) * np.linalg.norm(found, axis=1)
            cosines = (exact * found).sum(axis=1) / lengths
            ratio = statistics.median(ratios)
            summary[form.value] = round(ratio, 2)
            told = [f"{ratio:.2f}", f"{cosines.mean():.6f}", f"{cosines.min():.6f}"]
            table.add_row(form.value, f"{statistics.median(rates):.0f}", *told)
    console.print(table)
    sys.stdout.write(json.dumps(summary) + "\n")


if __name__ == "__main__":
    main()
