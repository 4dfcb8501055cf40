"""Listeners of the portal and of the gateway."""

import socket

from edgeai.web import bound


def test_connections_of_a_listener_do_not_hold_back_small_packets():
    with (
        bound("127.0.0.1", [0], "test", "--port") as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as connection,
    ):
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
