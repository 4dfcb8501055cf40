"""The aggregation worker: the role is built in, this only starts it."""

import asyncio

from edgeai.worker.aggregation import main

asyncio.run(main())
