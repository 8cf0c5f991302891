"""Files of models: PEFT adapters, full checkpoints, and whether several fit each other."""
