"""Checkpoints of other formats as folders of safetensors, which imr.lens reads; nothing is executed."""
