"""Where forecasts come from: a server over HTTP or this process, and the thread that keeps either informed."""
