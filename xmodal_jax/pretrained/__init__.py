"""Hugging Face checkpoints in, trained models out: `pretrained.load`, `pretrained.export`."""
