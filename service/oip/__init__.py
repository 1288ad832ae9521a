"""The Open Inference Protocol, version 2: its messages, and how they map onto blocks and verdicts."""
