"""Train the twin in floats of the sample `fashion_binary` and write 1/model.onnx beside this file.

Run as `python model_repo/fashion_float/train.py`, with what that sample's script needs: the same data, steps and shape,
with ReLU for signs and float weights.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
from model_repo.fashion_binary.train import make  # noqa: E402

if __name__ == "__main__":
    make(HERE, binary=False)
