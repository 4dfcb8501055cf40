"""The uni-portal: the web page and REST API over one cloud.

Start with `portal.app`: `PortalSettings`, `create_app`, `serve`."""
