"""Fine-tuning of a model on a folder of talking-head clips."""
