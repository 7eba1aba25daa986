"""How long tests wait for what should come at once: on a busy machine it comes late."""

PATIENCE = 180.0  # seconds, after which it hangs
