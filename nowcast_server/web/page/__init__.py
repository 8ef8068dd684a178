"""The live page at `/`: what the jobs are doing now, in a browser, without any request beyond this server."""
