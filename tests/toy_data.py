"""Toy data of the three kinds, clean and not, and toy graphs: small enough that a fit takes seconds."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vaegis.models.spec import ImageSpec, SeriesSpec, VectorSpec

WINDOW = 16
IMAGES = ImageSpec(height=16, width=16, channels=1)
SERIES = SeriesSpec(columns=("speed", "flow", "temperature"), window=WINDOW)
VECTORS = VectorSpec(columns=("a", "b", "c", "d", "e", "f"))
SPECS = {"image": IMAGES, "series": SERIES, "vector": VECTORS}
SMALL = {  # arguments that make a family quick to fit and export
    "vae": {"width": 8, "latent": 4},
    "autoencoder": {"width": 8, "latent": 4, "memory": 20},
    "gan": {"width": 8, "latent": 4},
    "flow": {"width": 16, "layers": 1, "bins": 4},
    "diffusion": {"width": 8, "steps": 100},
    "vae_gan": {"width": 8, "latent": 4},
    "vae_flow": {"width": 8, "latent": 4, "prior_layers": 2, "prior_width": 16},
    "autoregressive": {"width": 12, "layers": 2, "mixture": 3},
}


def digits(wanted=(0, 1, 2, 3), most=300):
    """Handwritten digits, (n, 16, 16) uint8."""
    from sklearn.datasets import load_digits

    found = load_digits()
    pictures = np.kron((found.images * 15.9).astype(np.uint8), np.ones((1, 2, 2), np.uint8))
    chosen = pictures[np.isin(found.target, wanted)]
    return chosen[np.random.default_rng(0).permutation(len(chosen))][:most]


def pump(rows, seed, fault=None):
    """Speed, flow and temperature of a pump, (rows, 3) float32; its flow meter lags from row `fault` on."""
    rng, t = np.random.default_rng(seed), np.arange(rows)
    speed = 50 + 5 * np.sin(t / 15) + rng.normal(0, 0.3, rows)
    flow = 0.6 * speed + rng.normal(0, 0.2, rows)
    heat = 40 + np.convolve(speed - 50, np.ones(10) / 10, "same") + rng.normal(0, 0.1, rows)
    if fault is not None:
        flow[fault:] = 0.8 * flow[fault:] + rng.normal(0, 1.5, rows - fault)
    return np.stack([speed, flow, heat], axis=1).astype(np.float32)


def vectors(rows, seed):
    """Six columns that two causes explain, (rows, 6) float32."""
    causes = np.random.default_rng(7).normal(size=(2, 6))
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(rows, 2)) @ causes + 0.1 * rng.normal(size=(rows, 6))).astype(np.float32)


def recipes(n, which, seed):
    """(n, 4) vectors made by recipe A or B, whose columns go together in different ways."""
    rng = np.random.default_rng(seed)
    t = rng.normal(size=(n, 1))
    slopes, level = {"A": ([1, 2, -1, 0.5], 0.0), "B": ([1, -2, 1, -0.5], 0.5)}[which]
    return (t * slopes + level + 0.1 * rng.normal(size=(n, 4))).astype(np.float32)


def windows(table, stride=1):
    """(rows, C) -> every window, (n, WINDOW, C)."""
    return np.stack([table[i : i + WINDOW] for i in range(0, len(table) - WINDOW + 1, stride)])


def clean(kind, n, seed=1):
    """(n, *spec.shape) clean parts in raw units."""
    match kind:
        case "image":
            return digits(most=n)[..., None]
        case "series":
            return windows(pump(n + WINDOW - 1, seed))
        case _:
            return vectors(n, seed)


def defective(kind, n):
    """(n, *spec.shape) parts with a defect that nobody could overlook."""
    x = clean(kind, n, seed=2).copy()
    match kind:
        case "image":
            x[:, 3:13, 3:13] = 255 - x[:, 3:13, 3:13]
        case "series":
            x[:, WINDOW // 2 :, 1] += 10.0
        case _:
            x[:, 2] += 8.0
    return x


def write_csv(path, table, stamps=True, columns=SERIES.columns):
    """A table with a row per second."""
    lines = [",".join([*(["timestamp"] if stamps else []), *columns])]
    for i, row in enumerate(table):
        stamp = [f"2026-01-01T{i // 3600 % 24:02d}:{i // 60 % 60:02d}:{i % 60:02d}"] if stamps else []
        lines.append(",".join([*stamp, *(f"{v:.5f}" for v in row)]))
    path.write_text("\n".join(lines) + "\n")
    return path


def constant(name, value, kind=np.float32):
    return numpy_helper.from_array(np.asarray(value, kind), name)


def onnx_bytes(nodes, outputs, constants, spec, extra_inputs=()):
    """A checked graph from nodes; `outputs` is name -> shape."""
    kind = {"uint8": TensorProto.UINT8, "uint16": TensorProto.UINT16, "float32": TensorProto.FLOAT}[str(spec.dtype)]
    given = [helper.make_tensor_value_info("input", kind, ["batch", *spec.shape]), *extra_inputs]
    named = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "toy", given, named, constants),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    onnx.checker.check_model(model)
    return model.SerializeToString()


def mean_graph(spec, doc=""):
    """score = mean of x; twice = 2 score; map = x, an image's averaged over its channels."""
    axes = constant("axes", range(1, len(spec.shape) + 1), np.int64)
    nodes = [
        helper.make_node("Cast", ["input"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["x", "axes"], ["score"], keepdims=0, doc_string=doc),
        helper.make_node("Add", ["score", "score"], ["twice"]),
    ]
    constants = [axes]
    if spec.kind == "image":
        nodes.append(helper.make_node("ReduceMean", ["x", "channel"], ["map"], keepdims=0))
        constants.append(constant("channel", [3], np.int64))
    else:
        nodes.append(helper.make_node("Identity", ["x"], ["map"]))
    outputs = {"score": ["batch"], "twice": ["batch"], "map": ["batch", *spec.map_shape]}
    return onnx_bytes(nodes, outputs, constants, spec)
