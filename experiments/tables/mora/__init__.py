"""The tables of MoRA's fine-tuning and pre-training."""
