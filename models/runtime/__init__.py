"""Running an ONNX graph: the only room that imports onnxruntime."""
