"""A job that learns digits fast and always the same: softmax regression, a few steps of gradient descent, no randomness.

`fault` is what is wrong with the model that a train worker makes in round `fault round` (1). `pause` keeps a stage at work,
`loading` the inference worker at loading a model. The inference worker writes each answer that it has given
to `journal`: so a test knows what was asked, and who answered.
"""

import asyncio
import json
import time
from pathlib import Path

import numpy as np

import edgeai

STEPS, RATE = 60, 0.5


def chances(weights, x):
    scores = x @ weights[0] + weights[1]
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


def trained(weights, x, y):
    known = np.eye(10, dtype="float32")[y]
    for _ in range(STEPS):
        error = (chances(weights, x) - known) / len(x)
        weights = [weights[0] - RATE * (x.T @ error), weights[1] - RATE * error.sum(0)]
    return [array.astype("float32") for array in weights]


def columns(data):
    return data["x"].reshape(-1, 64).astype("float32"), data["y"].astype(int)


async def train_stage(task):
    x, y = columns(task.dataset.load("train"))
    await asyncio.sleep(task.parameters["pause"])
    weights = trained(task.base_model.load(), x, y)
    metrics = {"examples": float(len(x))}
    fault = task.parameters["fault"] if task.round == task.parameters["fault round"] else "none"
    match fault:
        case "is worse":
            await task.report(metrics, model=[array * 0 for array in weights])
        case "raises on load":
            path = task.output_dir / "model.npz"
            path.write_bytes(b"PK\x03\x04 and then no archive")
            await task.report(metrics, model=path)
        case "is not finite":
            await task.report(metrics, model=[weights[0] * np.nan, weights[1]])
        case "has another shape":
            await task.report(metrics, model=[weights[0][:, :7], weights[1][:7]])
        case "is no file":
            await task.report(metrics, model=task.output_dir / "nowhere.npz")
        case "fails late":
            await task.report(metrics, model=[*weights, np.zeros(1, "float32")])
        case _:
            await task.report(metrics, model=weights)


async def eval_stage(task):
    x, y = columns(task.dataset.load("eval"))
    await asyncio.sleep(task.parameters["pause"])
    for place, model in enumerate(task.models):
        if task.parameters["believes"]:
            await task.report({"accuracy": 1.0 if place == 0 else 0.5}, model=model)
            continue
        right = chances(model.load(), x).argmax(axis=1) == y
        await task.report({"accuracy": float(right.mean())}, model=model)


def predict(weights, x):
    if len(weights) > 2 and x[0, 0] == 1:
        raise ValueError("this model cannot answer that")
    return chances(weights, x)


def loaded(model, seconds):
    time.sleep(seconds)
    return model.load()


async def deploy_stage(task):
    await task.serve(predict=predict, load=lambda model: loaded(model, task.parameters["loading"]))
    with Path(task.parameters["journal"]).open("a", buffering=1) as journal:
        async for batch in task.examples(batch_size=8):
            for name, x in zip(batch["id"], batch["x"], strict=True):
                answer = await task.infer(x.astype("float32"), id=str(name))
                line = {"id": answer.id, "hard": bool(answer.hard), "model": answer.model.digest}
                journal.write(json.dumps(line) + "\n")


async def main():
    async with edgeai.join() as task:
        await {"train": train_stage, "eval": eval_stage, "deploy": deploy_stage}[task.role](task)


asyncio.run(main())
