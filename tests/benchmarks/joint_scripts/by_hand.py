"""What one would write by hand: a small model behind HTTP at the edge, a big one behind HTTP in the cloud, lists in JSON.

    python by_hand.py cloud PORT
    python by_hand.py edge PORT URL-OF-CLOUD FOLDER

It has no deadline, no budget, no new models, and nothing when the cloud is away. Predict runs in a thread, as a model would.
"""

import asyncio
import sys
from pathlib import Path

import httpx
import numpy as np
import uvicorn
from asking import follow
from model import predict
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

THRESHOLD = 0.3


async def answered(x) -> tuple[list, bool]:
    scores = (await asyncio.to_thread(predict, None, x[None]))[0]
    second, first = np.sort(scores)[-2:]
    return scores.tolist(), bool(first - second < THRESHOLD)


async def cloud(request):
    x = np.asarray((await request.json())["input"], dtype=np.uint8)
    return JSONResponse({"prediction": (await answered(x))[0], "by": "cloud"})


class Edge:
    def __init__(self, client: httpx.AsyncClient, url: str) -> None:
        self._client, self._url = client, url

    async def infer(self, x) -> dict:
        scores, hard = await answered(x)
        if not hard:
            return {"prediction": scores, "by": "edge"}
        response = await self._client.post(self._url, json={"input": x.tolist()})
        response.raise_for_status()
        return response.json()

    async def over_http(self, request):
        x = np.asarray((await request.json())["input"], dtype=np.uint8)
        return JSONResponse(await self.infer(x))


def server(endpoint, port: int) -> uvicorn.Server:
    app = Starlette(routes=[Route("/infer", endpoint, methods=["POST"])])
    return uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning", access_log=False))


async def main(role: str, port: str, url: str = "", folder: str = "") -> None:
    if role == "cloud":
        await server(cloud, int(port)).serve()
        return
    # Of its connections httpx keeps 20 by default, and makes the others anew for every question.
    async with httpx.AsyncClient(timeout=30, limits=httpx.Limits(max_keepalive_connections=100)) as client:
        edge = Edge(client, url)

        async def infer(x) -> str:
            return (await edge.infer(x))["by"]

        async def thread(x) -> str:
            await answered(x)
            return "edge"

        follower = asyncio.create_task(follow(Path(folder), {"infer": infer, "thread": thread}))
        await server(edge.over_http, int(port)).serve()
        follower.cancel()


asyncio.run(main(*sys.argv[1:]))
