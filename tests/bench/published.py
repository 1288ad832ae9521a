"""Figures others reached on the same protocols, as published. Areas and rates in %."""

from __future__ import annotations

# Set -> who: AUROC %, mean over the set's parts.
AUROC: dict[str, dict[str, str]] = {
    "fashion": {"ARNet": "93.9", "GeoTrans": "93.5", "OC-SVM (tuned)": "92.8", "PCA, 32 components": "90.5"},
    "elpv": {"DRA (sees 10 labelled anomalies)": "84.5", "distillation": "about 74", "PCA at 64x64": "69.3"},
    "screw": {
        "GANomaly, from scratch": "23.1",
        "PaDiM (ImageNet)": "75.9-84.5",
        "STFPM (ImageNet)": "83.5",
        "DFM (ImageNet)": "89.0",
        "CFlow (ImageNet)": "90.8",
        "PatchCore (ImageNet)": "96.0",
        "Reverse Distillation (ImageNet)": "98.5",
    },
}

# SKAB's leaderboard: F1, FAR %, MAR %.
SKAB: dict[str, tuple[float, float, float]] = {
    "Conv-AE": (0.78, 13.6, 28.0),
    "MSET": (0.78, 39.7, 14.1),
    "T2+Q": (0.76, 26.6, 24.9),
    "LSTM-AE": (0.74, 30.0, 25.9),
    "(everything anomalous)": (0.698, 100.0, 0.0),
    "T2": (0.66, 19.2, 42.6),
    "LSTM-VAE": (0.56, 9.1, 55.0),
    "vanilla LSTM": (0.54, 12.5, 59.5),
    "vanilla AE": (0.39, 2.6, 75.2),
    "MSCRED": (0.36, 49.9, 69.9),
    "isolation forest": (0.29, 2.6, 82.9),
}

# Tennessee Eastman, PCA with 11 components on all 52 variables: detection % at 1 % false alarms, (T2, SPE).
TEP: dict[int, tuple[float, float]] = {
    1: (99.2, 99.8),
    2: (98.0, 98.6),
    4: (5.8, 96.6),
    5: (22.9, 25.8),
    6: (98.9, 100.0),
    7: (93.6, 100.0),
    8: (96.6, 97.6),
    10: (36.0, 36.6),
    11: (23.0, 65.4),
    12: (97.4, 97.6),
    13: (94.0, 95.5),
    14: (86.1, 100.0),
    16: (19.1, 26.4),
    17: (75.2, 89.5),
    18: (88.8, 89.9),
    19: (0.6, 13.6),
    20: (32.4, 45.8),
    21: (27.3, 43.6),
}
