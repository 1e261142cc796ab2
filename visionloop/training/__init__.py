"""How a model is trained: one loop, with Ray or without; data order, augmentation, models, checkpoints."""
