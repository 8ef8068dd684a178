"""The nowcast server on Ray Serve: replicas of the same app, one device each; a router keeps each job on one replica."""
