"""The sights of a run: files, bars and pictures.

`Tracker` → sinks (`metrics.jsonl`, console, TensorBoard, W&B) → `draw_training_curves`. A record is numbers by name:
whoever logs one more name gets one more number in the file and one more chart.
"""
