"""The only room with ONNX Runtime: a model folder is checked, loaded, warmed up and asked in batches.

A model is a folder with two files. `card.toml` is what the model says of itself (`Card`); `model.onnx` is the network.
`infer/card.py` reads the card, `infer/device.py` finds out whether there is a CUDA device that works, and
`infer/model.py` loads the network and asks it. `infer/raw.py` asks it with raw frames, reduced on the device; frames
wait for that in `infer/ring.py` and get there by `infer/driver.py`.
"""

from streamer.infer.card import Card, Grid, ModelInput, ModelOutput, read_card, require_coverage, require_tensors
from streamer.infer.device import Device, choose_device, cuda_obstacle
from streamer.infer.model import Model, find_model, list_models, load_model
from streamer.infer.raw import FRAME, RawModel, Reduction, Window, load_raw_model

__all__ = [
    "FRAME",
    "Card",
    "Device",
    "Grid",
    "Model",
    "ModelInput",
    "ModelOutput",
    "RawModel",
    "Reduction",
    "Window",
    "choose_device",
    "cuda_obstacle",
    "find_model",
    "list_models",
    "load_model",
    "load_raw_model",
    "read_card",
    "require_coverage",
    "require_tensors",
]
