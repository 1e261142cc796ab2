"""Answers images (`python run.py image.npy`); `python run.py --check` proves that bundle and machine are right."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort

HERE, FILES = Path(__file__).resolve().parent, "about.json golden.npz labels.json model.onnx preprocessing.json run.py"
found = {name: hashlib.sha256((HERE / name).read_bytes()).hexdigest() for name in FILES.split()}
if json.dumps(found, indent=1) + "\n" != (HERE / "manifest.json").read_text():
    sys.exit("refused: a file is not the one that manifest.json vouches for")
facts, labels = (json.loads((HERE / name).read_text()) for name in ("preprocessing.json", "labels.json"))
known = np.load(HERE / "golden.npz") if sys.argv[1:] == ["--check"] else None
images = np.load(sys.argv[1]) if known is None else known["images"]  # uint8 [H, W, C] or [N, H, W, C]
images = images[None] if images.ndim == 3 else images
if images.dtype != np.uint8 or list(images.shape[1:]) != facts["shape"]:
    sys.exit(f"refused: expected uint8 {facts['shape']}, found {images.dtype} {list(images.shape[1:])}")
session = ort.InferenceSession(str(HERE / "model.onnx"), providers=["CPUExecutionProvider"])
answers = session.run([facts["output"]], {facts["input"]: images})[0]
if known is None:
    sys.exit(print("\n".join(f"{labels[row.argmax()]} {row.max():.4f}" for row in answers)))
lost = known["probabilities"].max(1) - known["probabilities"][range(len(answers)), answers.argmax(1)]
if not (lost <= facts["tie"]).all():
    sys.exit(f"refused: {(lost > facts['tie']).sum()} of {len(lost)} known answers are others on this machine")
print(f"right: the files are as packed, and {len(lost)} known answers come out")
