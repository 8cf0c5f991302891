"""PEFT's dialect: LoRA folders read exactly, and written whole."""
