"""Ours measured against named alternatives, side by side in one run: `python -m bench` writes docs/performance.md."""
