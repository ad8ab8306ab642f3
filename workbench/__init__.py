"""The workbench: dense, prune, retrain, quantize and report, from specs in experiments/."""
