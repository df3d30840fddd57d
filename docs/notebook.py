# %% [markdown]
# # A detector in a notebook
# Cells for Jupyter or VS Code (`jupytext --to ipynb docs/notebook.py`), run in the checkout. They need two seeds of one
# experiment: `ssd-effnet synthesize data/twin --frames 160`, then `ssd-effnet train lite0 --tiny data.root=data/twin`
# with `trainer.seed=0` and 1.

# %% Load
from pathlib import Path

import torch

from data_kaist.dataset import read_pair
from ssd_effnet import load_detector
from ssd_effnet.training.run_directory import RunDirectory

first, second = sorted(Path("runs/lite0-tiny").glob("seed*"))[:2]
detector = load_detector(first)
detector

# %% Detections of arrays: RGB pictures, uint8 (H, W, 3)
experiment, frames, found = RunDirectory(first).tested()
picture, _ = read_pair(frames[0], "visible")
(people,) = detector.predict([picture], score=0.3)
people

# %%
people.plot(picture)

# %% Rows for pandas, if it is installed: people.to_pandas()
for box, score in zip(people.boxes_xyxy, people.scores, strict=True):
    print(box.round(), score.round(2))

# %% Feature maps of each part: backbone, adapter, neck, extra levels
sample = detector.prepare(picture)
images = torch.from_numpy(sample.visible).permute(2, 0, 1)[None]
for part, maps in detector.detector.features(images).items():
    print(part, [tuple(x.shape) for x in maps])

# %% Two runs on the same frames: miss rates, and how sure their difference is
from ssd_effnet.evaluation.miss_rate import MissRateEvaluator
from ssd_effnet.evaluation.plots import miss_rate_figure
from ssd_effnet.evaluation.scores import compare_detectors, score, verdict
from ssd_effnet.evaluation.significance import blocks

evaluator = MissRateEvaluator([frame.annotations for frame in frames])
tables = {run.name: RunDirectory(run).tested()[2] for run in (first, second)}
scores = {name: score(evaluator, table) for name, table in tables.items()}
for name, of_run in scores.items():
    print(name, dict(of_run.named()))

# %%
a, b = map(evaluator.match, tables.values())
difference = compare_detectors([a], [b], blocks([frame.name for frame in frames]))["matlab"]["reasonable_all"]
print(difference.difference, verdict(difference))

# %% Miss rate against false positives per image
miss_rate_figure(scores)
