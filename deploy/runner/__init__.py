"""The inference runner: one executable zipapp, `runner.pyz`, beside the model files of a bundle."""

__version__ = "0.1.0"
