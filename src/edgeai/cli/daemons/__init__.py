"""The daemons: parts wired together in one process, their helpers supervised as children.

`cloud` runs coordinator and the cloud node's controller, with nats-server as a child; `edge` runs the edge's controller, with
its broker and its bridge as children. Brokers may also be given from outside, and every part may run alone. What each is told
is in `options`, how all of them live and end in `life`. A module imports only what its daemon needs: on a small edge every
process counts.
"""
