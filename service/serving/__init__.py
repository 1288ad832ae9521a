"""The models open in this process, and the one act of judging. Knows no HTTP."""
