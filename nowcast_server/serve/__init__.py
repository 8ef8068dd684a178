"""The nowcast server on Ray Serve: the same app in several replicas, one device each, behind a router that keeps a job on one."""
